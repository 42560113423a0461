"""How many rows of each source a prepared dataset takes, and which. Never imports mlx.

Invariant: rows are drawn without replacement, so none is there twice; of sources with weights as many are drawn as the
scarcest allows: all of its rows are taken, and of each other source its weight's part beside that, to half a row. The
same rows, options and seed draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from mlx_sumrl.config.prepare import SourceConfig
from mlx_sumrl.data.declared_sources import SplitName
from mlx_sumrl.data.splits import Sizes, random_split

OVER_LIMIT = "more than the limit of its source"
OVER_WEIGHT = "more than the weight of its source"
"""Reasons that rows are counted under."""


def counts_by_weight(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Rows to take of each source that has ``available`` rows, so that they are to each other as the ``weights``.

    A source without a row takes no part, and the others share by their own weights.
    """
    parts = [Fraction(str(weight)) for weight in weights]
    one = min(
        (Fraction(count) / part for count, part in zip(available, parts, strict=True) if count),
        default=Fraction(0),
    )
    # Half up; the scarcest source's own product is whole.
    return [
        min(int(one * part + Fraction(1, 2)), count) for count, part in zip(available, parts, strict=True)
    ]


def within_limits(source_of: Sequence[int], sources: Sequence[SourceConfig], seed: int) -> list[int]:
    """Indices, ascending, of the rows that the sources' limits leave; ``source_of`` names each row's source."""
    available = np.bincount(np.asarray(source_of, np.int64), minlength=len(sources)).tolist()
    counts = [
        count if source.limit is None else min(source.limit, count)
        for source, count in zip(sources, available, strict=True)
    ]
    return drawn(source_of, counts, seed)


def by_weight(source_of: Sequence[int], sources: Sequence[SourceConfig], seed: int) -> list[int]:
    """Indices, ascending, of the rows that the sources' weights leave; all where they have none."""
    weights = [source.weight for source in sources]
    if any(weight is None for weight in weights):
        return list(range(len(source_of)))
    available = np.bincount(np.asarray(source_of, np.int64), minlength=len(sources)).tolist()
    counts = counts_by_weight(available, [weight for weight in weights if weight is not None])
    return drawn(source_of, counts, seed)


def drawn(source_of: Sequence[int], counts: Sequence[int], seed: int) -> list[int]:
    """Indices, ascending, of ``counts[s]`` rows of each source ``s``, drawn at random."""
    of_row = np.asarray(source_of, np.int64)
    kept: list[int] = []
    for source, count in enumerate(counts):
        own = np.flatnonzero(of_row == source)
        order = np.random.default_rng(np.random.SeedSequence((seed, 2, source))).permutation(len(own))
        kept += own[order[:count]].tolist()
    return sorted(kept)


def stratified_split(
    clusters: Sequence[int], source_of: Sequence[int], sizes: Sizes, seed: int
) -> list[SplitName]:
    """A random split of each source by itself, so that every split has the shares of the whole, to a row.

    A cluster is split with the source of its first row; ``clusters`` are as in `random_split`.
    """
    stratum_of: dict[int, int] = {}
    for cluster, source in zip(clusters, source_of, strict=True):
        stratum_of.setdefault(cluster, source)
    strata = [stratum_of[cluster] for cluster in clusters]
    members = {
        stratum: [i for i, one in enumerate(strata) if one == stratum] for stratum in sorted(set(strata))
    }
    shares = [len(rows) for rows in members.values()]
    validation = _shared_out(sizes.validation, shares, shares)
    test = _shared_out(sizes.test, shares, [n - taken for n, taken in zip(shares, validation, strict=True)])
    splits: list[SplitName] = ["train"] * len(clusters)
    for place, (stratum, rows) in enumerate(members.items()):
        renumbered: dict[int, int] = {}
        own = [renumbered.setdefault(clusters[i], len(renumbered)) for i in rows]
        of_stratum = int(np.random.SeedSequence((seed, 3, stratum)).generate_state(1)[0])
        for i, split in zip(
            rows, random_split(own, Sizes(validation[place], test[place]), of_stratum), strict=True
        ):
            splits[i] = split
    return splits


def _shared_out(total: int, shares: Sequence[int], room: Sequence[int]) -> list[int]:
    """``total`` in whole parts as nearly proportional to ``shares`` as can be, none above its ``room``: the largest
    remainders get one more."""
    everything = sum(shares)
    parts = [min(total * share // everything, most) for share, most in zip(shares, room, strict=True)]
    remainders = sorted((-(total * share % everything), place) for place, share in enumerate(shares))
    while free := [place for _, place in remainders if parts[place] < room[place]][: total - sum(parts)]:
        for place in free:
            parts[place] += 1
    return parts
