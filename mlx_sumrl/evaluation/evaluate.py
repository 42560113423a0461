"""Have a policy answer held-out examples, and score the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from statistics import fmean, median
from typing import TYPE_CHECKING

from mlx_sumrl.config import DataConfig, LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation.asked_prompts import prompts_sha256
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.evaluation.row_metrics import Scoring
from mlx_sumrl.evaluation.score import score_samples
from mlx_sumrl.rollouts.answer_part import AnswerPart
from mlx_sumrl.rollouts.types import Group, Sampler, Sampling

if TYPE_CHECKING:
    from mlx_sumrl.policy.policy import Policy


def evaluate(
    sampler: Sampler,
    examples: Sequence[Example],
    length: LengthConfig,
    sampling: Sampling,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    answers: AnswerPart | None = None,
    *,
    data: DataConfig | None = None,
    samples: int = 1,
    scoring: Scoring | None = None,
    untouched: Policy | None = None,
) -> Evaluation:
    """``samples`` completions per example, ``batch_size`` prompts at a time, scored by `score_samples`.

    See `answered`. The length-matched baseline is the same call with ``min_tokens = max_tokens = target``.

    With ``answers`` only that part of each completion is scored; the rows keep the whole beside it, and the summary
    says under ``reasoning_unfinished`` and ``reasoning_length`` what `AnswerPart.metrics` says. With ``data``, which
    the examples were made by, the result knows what was asked (``prompts_sha256``). With an ``untouched`` policy each
    row has its ``perplexity`` under that one, and the summary also ``perplexity_median``.
    """
    groups = answered(sampler, examples, sampling, batch_size, seed, progress, samples)
    shown = groups if answers is None else answers.shown(groups)
    found = replace(
        score_samples(shown, length, scoring or Scoring()),
        options={"decoding": asdict(sampling) | {"samples": samples}, "seed": seed, "batch_size": batch_size},
        prompts_sha256=None if data is None else prompts_sha256(examples, data, length),
    )
    if untouched is not None:
        from mlx_sumrl.evaluation.perplexity import perplexities  # with MLX, which scoring does without

        found = _with_perplexity(found, perplexities(untouched, groups), samples)
    reasoning = {} if answers is None else answers.metrics(groups, shown)
    if not reasoning:
        return found
    rows = tuple(
        replace(row, completion=group.completions[0].text)
        for row, group in zip(found.rows, groups, strict=True)
    )
    said = {name.replace("/", "_"): value for name, value in reasoning.items()}
    return replace(found, rows=rows, summary={**found.summary, **said})


def _with_perplexity(found: Evaluation, values: Sequence[float | None], samples: int) -> Evaluation:
    """``values`` are of every completion, ``samples`` for each row."""
    firsts = values[::samples]
    rows = tuple(
        replace(row, metrics={**row.metrics, "perplexity": value})
        for row, value in zip(found.rows, firsts, strict=True)
    )
    known = [value for value in firsts if value is not None]
    said = {
        "perplexity": fmean(known) if known else None,
        "perplexity_median": median(known) if known else None,
    }
    return replace(found, rows=rows, summary={**found.summary, **said})


def answered(
    sampler: Sampler,
    examples: Sequence[Example],
    sampling: Sampling,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    samples: int = 1,
) -> list[Group]:
    """``samples`` completions per example, ``batch_size`` prompts at a time, in the order of the examples.

    Greedy when ``sampling.temperature`` is 0, and then ``seed`` changes nothing. ``progress`` is called after each
    batch with the number of examples done and of all examples.

    Raises:
        ValueError: no examples, a batch size or a number of samples below 1, or a sampler that answers something
            else than it was asked.
    """
    if samples < 1:
        raise ValueError(f"cannot draw {samples} samples")
    if not examples or batch_size < 1:
        raise ValueError(f"cannot evaluate {len(examples)} examples in batches of {batch_size}")
    groups: list[Group] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        # Each batch has its own seed: with one for all, row i of every batch would draw the same numbers.
        sampled = sampler.sample(batch, samples, sampling, seed + start)
        for example, group in zip(batch, sampled, strict=True):
            if group.example.id != example.id or len(group.completions) != samples:
                asked = f"{samples} completion{'s' if samples > 1 else ''}"
                raise ValueError(
                    f"asked for {asked} of {example.id!r}, the sampler gave {len(group.completions)} "
                    f"of {group.example.id!r}"
                )
        groups.extend(sampled)
        if progress is not None:
            progress(len(groups), len(examples))
    return groups
