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
    wanted: list[tuple[SplitName, int]] = [("test", sizes.test), ("validation", sizes.validation)]
    wanted = [(split, size) for split, size in wanted if size]
    if len(cuts) < len(wanted):
        names = ", ".join(["train", *(split for split, _ in wanted)])
        raise UserError(
            f"{len(ordered)} rows have only {len(cuts) + 1} different dates, too few for {names}: set "
            f"--split.{wanted[-1][0]} 0, or split randomly with --split.by random"
        )
    begins: list[tuple[SplitName, datetime]] = []
    until = len(ordered)
    for still_to_cut, (split, size) in zip(range(len(wanted) - 1, -1, -1), wanted, strict=True):
        possible = [p for p in cuts[still_to_cut:] if p < until]
        until = min(possible, key=lambda p: (abs(until - p - size), p))
        begins.append((split, ordered[until]))

    def split_of(moment: datetime) -> SplitName:
        for split, begin in begins:
            if moment >= begin:
                return split
        return "train"

    return [split_of(moment) for moment in dates]
