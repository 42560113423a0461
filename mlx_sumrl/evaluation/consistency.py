"""How alike several samples of one prompt are. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from mlx_sumrl.metrics.catalogue import CATALOGUE

_YES_OR_NO = frozenset(("within", "exact", "language_kept", "unfinished", "ends_sentence", "whole_sentences"))


def is_varied(name: str) -> bool:
    """Whether a coefficient of variation makes sense of a metric: it begins at 0 and is no yes or no.

    BERTScore is taken too: it may be negative, and never is for two texts.
    """
    metric = CATALOGUE.get(name)
    return metric is not None and name not in _YES_OR_NO and metric.low in (0.0, -1.0)


def consistency_of(values: Sequence[float | None]) -> float | None:
    """The coefficient of variation: the standard deviation (of a sample: N - 1) over the mean. 0: all alike.

    None where a value is missing, there are fewer than two, or their mean is 0, of which nothing is a share.
    """
    known = [value for value in values if value is not None]
    if len(known) < max(len(values), 2):
        return None
    mean = fmean(known)
    return stdev(known) / mean if mean else None
