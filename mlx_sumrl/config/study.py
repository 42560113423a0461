"""Options: many runs, and what they are measured by."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.comparison import ComparisonConfig
from mlx_sumrl.config.named_run import NamedFolderConfig, RunName

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OF_THE_STUDY = ("name", "runs_dir", "seed")
"""Options of a run that the study gives."""


class StudyConfig(NamedFolderConfig):
    """A grid of runs, method by reward by seed, and the evaluations of what they leave."""

    name: RunName = "study"
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of `recipes.grpo_staged` that every run has; `base: FILE` in it takes those of a run's own file. Name,
    folder and seed are given by the study."""
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> options laid over `options`: stages above all. Among a stage's rewards `{kind: quality}` stands for the
    rewards of a set of `rewards`, with its weight times theirs and its other keys put on each; so does `quality` in
    `constraint.scales`."""
    rewards: dict[str, tuple[dict[str, Any], ...]] = Field(default_factory=dict)
    """Name -> list of rewards: what `quality` stands for. Each method that says `quality` is run with each set."""
    only: tuple[str, ...] = ()
    """Names of the methods to run; all of them where none is named."""
    seeds: tuple[int, ...] = (0,)
    """Each method is run once with each."""
    evaluations: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> options of `recipes.evaluate` with which every run's exported model is measured. What a run was asked
    (`data`, `length`, `answer`, most tokens) holds where they do not say otherwise, but for `data.evaluation_rows`."""
    baselines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> options of `recipes.evaluate`, over each evaluation's, for the model that no run has trained yet."""
    untouched: str | None = None
    """Model under which each summary's perplexity is computed; `policy.model` of `options` otherwise."""
    baseline: str | None = None
    """What the reports hold the others against: a line of the table. The first otherwise."""
    at_once: int = Field(default=1, gt=0)
    """Runs that are trained side by side, each in a process of its own."""
    cluster: Path | None = None
    """A nodes.yaml: the workers that sample for every run, one run at a time."""
    own_rows: int = Field(default=32, gt=0)
    """Held-out rows on which a run measures itself before, between and after its stages (`data.evaluation`)."""
    unequal_budgets: bool = False
    """Let methods differ in stage steps x prompts x completions of each; otherwise that is refused."""
    comparison: ComparisonConfig = ComparisonConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for room in ("methods", "rewards", "evaluations", "baselines"):
            for name in getattr(self, room):
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{room}.{name}: a name is part of a folder's: use letters, digits, '.', '_' and '-'"
                    )
        for name, rewards in self.rewards.items():
            if not rewards:
                raise ValueError(f"rewards.{name} is empty: name a reward, as [{{kind: rougeL}}]")
        for name, options in self.methods.items():
            if given := [one for one in OF_THE_STUDY if one in options]:
                raise ValueError(
                    f"methods.{name}.{given[0]} cannot be set: name, folder and seed of a run are the study's"
                )
        if unknown := [name for name in self.only if name not in self.methods]:
            raise ValueError(
                f"only names {unknown[0]!r}, which is none of methods: {', '.join(self.methods)}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are {list(self.seeds)}: name one or more from 0 on, each once")
        if self.cluster is not None and self.at_once > 1:
            raise ValueError(
                f"at_once {self.at_once} with cluster {self.cluster}: workers hold one run's policy at a time; leave "
                "one of the two out"
            )
        return self
