"""Options: how what one policy does better than another is measured, and when it counts as shown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlx_sumrl.config.room import Room

RowTest = Literal["t", "wilcoxon"]
"""Paired tests of a metric that is more than yes or no."""


class IntervalConfig(Room):
    """Bootstrap intervals of a difference."""

    resamples: int = Field(default=9999, gt=99)
    """Times that the held-out rows are drawn anew for an interval."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of such intervals that hold the true difference; 1 minus it is the level of the tests."""


class ComparisonConfig(IntervalConfig):
    """Several results against a baseline, row by row."""

    test: RowTest = "t"
    """The test that decides: `t` asks about means, which is what is reported, and holds from a few dozen rows on
    whatever their distribution; `wilcoxon` asks about the ranks of differences and gives less to single rows. Yes or no
    (within, exact) is always decided by McNemar's."""
    power: float = Field(default=0.8, gt=0, lt=1)
    """How often the smallest detectable difference would be found."""
    pairwise: bool = False
    """Compare every result with every other, not only with the baseline; more comparisons show less."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the bootstrap's draws."""

    @property
    def alpha(self) -> float:
        """Level of the tests: the share of comparisons without a difference that may be called one."""
        return 1 - self.confidence
