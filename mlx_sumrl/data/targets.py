"""Which length each row is asked for, where rows are asked for different ones. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def drawn_targets(targets: Sequence[int], rows: int, seed: int) -> list[int]:
    """One of the targets for each of so many rows, in a random order in which each comes equally often, to one.

    The first rows are asked for the same whatever their number: more rows change nothing about those before.
    """
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    while len(drawn) < rows:
        drawn += [targets[place] for place in rng.permutation(len(targets))]
    return drawn[:rows]
