"""Have a policy answer held-out examples, and score the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation.results import Evaluation, score
from mlx_sumrl.rollouts.answer_part import AnswerPart
from mlx_sumrl.rollouts.types import Group, Sampler, Sampling


def evaluate(
    sampler: Sampler,
    examples: Sequence[Example],
    length: LengthConfig,
    sampling: Sampling,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    answers: AnswerPart | None = None,
) -> Evaluation:
    """One completion per example, ``batch_size`` prompts at a time, scored by `score`.

    See `answered`. The length-matched baseline is the same call with ``min_tokens = max_tokens = target``.

    With ``answers`` only that part of each completion is scored; the rows keep the whole beside it, and the summary
    says under ``reasoning_unfinished`` and ``reasoning_length`` what `AnswerPart.metrics` says.
    """
    groups = answered(sampler, examples, sampling, batch_size, seed, progress)
    if answers is None:
        return score(groups, length)
    shown = answers.shown(groups)
    found = score(shown, length)
    reasoning = answers.metrics(groups, shown)
    if not reasoning:
        return found
    rows = tuple(
        replace(row, completion=group.completions[0].text)
        for row, group in zip(found.rows, groups, strict=True)
    )
    said = {name.replace("/", "_"): value for name, value in reasoning.items()}
    return replace(found, rows=rows, summary={**found.summary, **said})


def answered(
    sampler: Sampler,
    examples: Sequence[Example],
    sampling: Sampling,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Group]:
    """One completion per example, ``batch_size`` prompts at a time, in the order of the examples.

    Greedy when ``sampling.temperature`` is 0, and then ``seed`` changes nothing. ``progress`` is called after each
    batch with the number of examples done and of all examples.

    Raises:
        ValueError: no examples, a batch size below 1, or a sampler that answers something else than it was
            asked.
    """
    if not examples or batch_size < 1:
        raise ValueError(f"cannot evaluate {len(examples)} examples in batches of {batch_size}")
    groups: list[Group] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        # Each batch has its own seed: with one for all, row i of every batch would draw the same numbers.
        sampled = sampler.sample(batch, 1, sampling, seed + start)
        for example, group in zip(batch, sampled, strict=True):
            if group.example.id != example.id or len(group.completions) != 1:
                raise ValueError(
                    f"asked for 1 completion of {example.id!r}, the sampler gave {len(group.completions)} "
                    f"of {group.example.id!r}"
                )
        groups.extend(sampled)
        if progress is not None:
            progress(len(groups), len(examples))
    return groups
