"""Which rows train, which validate, which test. Never imports mlx.

Invariant: every row is in exactly one split; the same rows, options and seed give the same splits. Randomly split,
no cluster is in two; split by time, every date of train is before every date of validation, and that before test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from mlx_sumrl.config.prepare import SplitConfig
from mlx_sumrl.data.declared_sources import SplitName
from mlx_sumrl.errors import UserError


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows that validation and test should have."""

    validation: int
    test: int

    @classmethod
    def of(cls, rows: int, options: SplitConfig) -> Sizes:
        """Shares become rows, at least one where the share is above 0.

        Raises:
            UserError: nothing would be left to train on.
        """
        asked = [
            max(round(size * rows), 1) if 0 < size < 1 else int(size)
            for size in (options.validation, options.test)
        ]
        if sum(asked) >= rows:
            raise UserError(
                f"split.validation ({asked[0]}) and split.test ({asked[1]}) leave none of {rows} rows to train on: "
                "make them smaller, or take more rows"
            )
        return cls(*asked)


def random_split(clusters: Sequence[int], sizes: Sizes, seed: int) -> list[SplitName]:
    """A split for each row, given the cluster that each is in (0 to clusters - 1).

    Clusters come in random order; one that would make test or validation larger than asked goes to train.
    """
    of_cluster = np.bincount(np.asarray(clusters, dtype=np.int64))
    room: dict[SplitName, int] = {"test": sizes.test, "validation": sizes.validation}
    chosen: dict[int, SplitName] = {}
    for cluster in np.random.default_rng(seed).permutation(len(of_cluster)).tolist():
        size = int(of_cluster[cluster])
        split: SplitName = next((name for name, left in room.items() if size <= left), "train")
        chosen[cluster] = split
        if split != "train":
            room[split] -= size
    return [chosen[cluster] for cluster in clusters]


def time_split(dates: Sequence[datetime], sizes: Sizes) -> list[SplitName]:
    """A split for each row by its date: the latest test, those before them validate, the earliest train.

    Rows of the same moment stay together, so the sizes are met as nearly as the dates allow.

    Raises:
        UserError: too few different dates to cut between.
    """
    ordered = sorted(dates)
    # A cut before position p is one between different dates.
    cuts = [p for p in range(1, len(ordered)) if ordered[p - 1] < ordered[p]]
    until = len(ordered)
    begins: dict[SplitName, datetime | None] = {"test": None, "validation": None}
    for split, size in (("test", sizes.test), ("validation", sizes.validation)):
        if not size:
            continue
        possible = [p for p in cuts if p < until]
        if not possible:
            raise UserError(
                f"the dates have too few different values to cut {split} rows off ({len(cuts) + 1} in all): "
                f"set --split.{split} 0, or split randomly with --split.by random"
            )
        until = min(possible, key=lambda p: (abs(until - p - size), p))
        begins[split] = ordered[until]  # type: ignore[index]

    def split_of(moment: datetime) -> SplitName:
        for split, begin in begins.items():
            if begin is not None and moment >= begin:
                return split
        return "train"

    return [split_of(moment) for moment in dates]
