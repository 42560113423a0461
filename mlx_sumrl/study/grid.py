"""The options of a study -> its runs, each checked as if it had been given by itself. Never imports mlx.

Invariant: runs come seed by seed, so that a half-finished study has every method at the first seed; two runs of a
line (a method with a set of rewards) differ in their seed alone; names of lines, runs and baselines are all different,
upper and lower case taken for the same, since they become names of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_sumrl.config import RunConfig, StudyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.tree import merged
from mlx_sumrl.options.values import from_values
from mlx_sumrl.study.budgets import check_equal
from mlx_sumrl.study.quality import QUALITY, says_quality, with_rewards


@dataclass(frozen=True)
class StudyRun:
    """One run of the grid."""

    name: str
    line: str
    """What its numbers are put together under with those of other seeds: the method, and the rewards where a method is
    run with several sets."""
    method: str
    rewards: str | None
    """The set that `quality` stands for; None where the method does not say it."""
    seed: int
    options: dict[str, Any]
    """As a file of `recipes.grpo_staged` would have them."""
    config: RunConfig
    """The same, checked."""

    @property
    def folder(self) -> Path:
        """The run's own."""
        return self.config.folder

    @property
    def model(self) -> Path:
        """What it leaves to be measured."""
        return self.folder / "export" / "model"


def runs_of(study: StudyConfig) -> list[StudyRun]:
    """All runs in the order in which they are made.

    Raises:
        UserError: options of a run are wrong (the message names method, rewards and option), two names are the same,
            or budgets differ.
    """
    methods = [method for method in study.methods if not study.only or method in study.only]
    lines = [(method, rewards) for method in methods for rewards in _sets(study, method)]
    runs = [_run(study, method, rewards, seed) for seed in study.seeds for method, rewards in lines]
    _check_names(study, runs)
    if not study.unequal_budgets:
        check_equal({run.method: run.config for run in reversed(runs)})
    return runs


def common_run(study: StudyConfig) -> RunConfig:
    """The options that all runs share, without stages: what the untrained model is, and what it is asked."""
    shared = {name: value for name, value in study.options.items() if name != "stages"}
    return from_values(RunConfig, shared, "options")


def _sets(study: StudyConfig, method: str) -> Iterator[str | None]:
    if not says_quality(merged(study.options, study.methods[method])):
        yield None
    elif study.rewards:
        yield from study.rewards
    else:
        raise UserError(
            f"methods.{method} says `kind: {QUALITY}` and there are no rewards for it to stand for: name a set, as "
            "rewards: {rougeL: [{kind: rougeL}]}"
        )


def _run(study: StudyConfig, method: str, rewards: str | None, seed: int) -> StudyRun:
    line = f"{method}-{rewards}" if rewards is not None and len(study.rewards) > 1 else method
    whose = f"method {method}" + (f", rewards {rewards}" if rewards is not None else "")
    options = merged(study.options, study.methods[method])
    if rewards is not None:
        options = with_rewards(options, study.rewards[rewards], whose)
    name = f"{line}-seed{seed}"
    own = {"name": name, "runs_dir": str(study.folder / "runs"), "seed": seed}
    # The study measures and draws; a page and pictures of each run take as long as a small run.
    options = merged({"report": False, "curves": {"draw": False}, "evaluation": {"samples": 0}}, options)
    options = merged(options, {**own, "export": {"fused": True}, "data": {"evaluation_rows": study.own_rows}})
    config = from_values(RunConfig, options, whose)
    if not config.stages:
        raise UserError(f"{whose}: stages are missing; give it some, or all methods in `options`")
    return StudyRun(name, line, method, rewards, seed, options, config)


def _check_names(study: StudyConfig, runs: list[StudyRun]) -> None:
    lines = dict.fromkeys((run.line, run.method, run.rewards) for run in runs)
    met: dict[str, str] = {}
    for name in [*study.baselines, *(line for line, _, _ in lines), *(run.name for run in runs)]:
        if name.casefold() in met:
            raise UserError(
                f"two things would be called {met[name.casefold()]} and {name}: rename a method, a set of rewards or "
                "a baseline"
            )
        met[name.casefold()] = name
