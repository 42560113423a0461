"""Have a policy answer held-out examples, and score the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation.results import Evaluation, score
from mlx_sumrl.rollouts.types import Group, Sampler, Sampling


def evaluate(
    sampler: Sampler,
    examples: Sequence[Example],
    length: LengthConfig,
    sampling: Sampling,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """One completion per example, ``batch_size`` prompts at a time, scored by `score`.

    See `answered`. The length-matched baseline is the same call with ``min_tokens = max_tokens = target``.
    """
    return score(answered(sampler, examples, sampling, batch_size, seed, progress), length)


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
        answers = sampler.sample(batch, 1, sampling, seed + start)
        for example, group in zip(batch, answers, strict=True):
            if group.example.id != example.id or len(group.completions) != 1:
                raise ValueError(
                    f"asked for 1 completion of {example.id!r}, the sampler gave {len(group.completions)} "
                    f"of {group.example.id!r}"
                )
        groups.extend(answers)
        if progress is not None:
            progress(len(groups), len(examples))
    return groups
