"""Several results compared on the same rows: what differs, by how much, and whether that is shown.

Invariant: every number is finite or None, and a verdict other than "no difference shown" is one whose test, corrected
for all the comparisons of its call, rejects at the level asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.statistics.intervals import hierarchical_interval, mean_interval
from mlx_sumrl.evaluation.statistics.paired_rows import (
    PairedRows,
    Scored,
    check_same_rows,
    paired_rows,
    shared_metrics,
)
from mlx_sumrl.evaluation.statistics.power import detectable
from mlx_sumrl.evaluation.statistics.row_tests import d_average, row_tests, seed_test
from mlx_sumrl.evaluation.statistics.shares import is_yes_or_no, mcnemar_test, paired_share_interval
from mlx_sumrl.metrics.catalogue import CATALOGUE

Verdict = Literal["better", "worse", "higher", "lower", "no difference shown"]
"""``higher`` and ``lower`` are said of metrics of which neither end is the better one, like a length."""
Test = Literal["t", "wilcoxon", "mcnemar"]
Interval = Literal["bca", "newcombe", "hierarchical"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one result against one baseline, paired by row id.

    With several seeds of a result each row's number is the mean over its seeds, and rows are what is tested. So the
    tests and the verdict speak of *these* trained models on other rows like these; they do not cover what other
    training seeds would have given. Of that speak `p_seeds`, which needs more seeds than are usually at hand, and the
    interval, which draws seeds anew as well.
    """

    metric: str
    baseline: str
    other: str
    rows: int
    """Rows in which both have a number."""
    left_out: int
    """Rows in which one has none."""
    seeds: tuple[int, int]
    """Of the baseline and of the other."""
    baseline_mean: float
    other_mean: float
    difference: float
    """``other_mean - baseline_mean``, in the metric's unit, as the interval's ends and `detectable`."""
    low: float | None
    """Ends of the interval; None for a single row."""
    high: float | None
    interval: Interval
    """How it was made: BCa bootstrap over rows; Newcombe's for yes or no; with several seeds, bootstrap over rows and
    seeds."""
    confidence: float
    t: float | None
    """Student's paired t and its p; see `RowTests` for what stands where there is none. So the next three."""
    p_t: float
    w: float | None
    p_wilcoxon: float
    cohens_d: float | None
    """d_z, by the standard deviation of the rows' differences."""
    d_av: float | None
    """By the mean standard deviation of the two results."""
    p_mcnemar: float | None
    """Of yes or no (every value 0 or 1, one seed each); None for other metrics."""
    p_seeds: float | None
    """Welch's over the seeds' means; None with fewer than two seeds of one."""
    test: Test
    """The one that decides."""
    p: float
    """Its p. By default Student's t: it asks about means, which is what is reported, and a mean of a few dozen rows
    is near enough to normal whatever the rows are. Yes or no is decided by McNemar's, for which no number of rows is
    too small."""
    p_holm: float
    """`p` corrected for all the comparisons of one call (Holm 1979): how often, without any difference, even one of
    them would look like this."""
    family: int
    """Comparisons of that call."""
    detectable: float | None
    """The smallest true difference that one paired t test of these rows, with this spread, would find `power` of the
    time, without Holm's correction; None where the rows' differences have no spread to tell it from."""
    power: float
    verdict: Verdict


def compare_all(
    results: Mapping[str, Sequence[Scored]], baseline: str, metrics: Sequence[str], options: ComparisonConfig
) -> tuple[Comparison, ...]:
    """Each metric of each result against the baseline; with ``options.pairwise`` of every two results, the one that
    comes first in ``results`` as the baseline (``baseline`` is then the first of all).

    ``results`` holds an evaluation per seed; rows of one id in one evaluation (several samples) are averaged. All
    comparisons of a call are one family: ask for what you want to know in one call, and for no more. One metric after
    the other, in the order given.

    Raises:
        UserError: the baseline is not among the results, there is nothing to compare it with, rows are not the same,
            or two results have a metric in no common row (`shared_metrics` says which all have).
    """
    if baseline not in results:
        raise UserError(
            f"the baseline {baseline!r} is not among the results: choose one of {', '.join(results)}"
        )
    if len(results) < 2:
        raise UserError(f"there is nothing to compare {baseline!r} with: name another result")
    check_same_rows(results)
    names = [baseline, *(name for name in results if name != baseline)]
    pairs = list(combinations(names, 2)) if options.pairwise else [(baseline, name) for name in names[1:]]
    found = [_compared(results, pair, metric, options) for metric in metrics for pair in pairs]
    return holm_corrected(found, options)


def _compared(
    results: Mapping[str, Sequence[Scored]], pair: tuple[str, str], metric: str, options: ComparisonConfig
) -> Comparison:
    """One comparison, before it is known what else is compared."""
    rows = paired_rows(results[pair[0]], results[pair[1]], metric)
    count = rows.baseline_SN.shape[1]
    if not count:
        shared = ", ".join(shared_metrics({name: results[name] for name in pair}))
        raise UserError(
            f"{pair[0]} and {pair[1]} have {metric} in no common row: compare what both have ({shared})"
        )
    difference_N = rows.differences
    tests = row_tests(difference_N)
    seeds = (len(rows.baseline_SN), len(rows.other_SN))
    yes_or_no = seeds == (1, 1) and is_yes_or_no(rows.baseline_SN) and is_yes_or_no(rows.other_SN)
    p_mcnemar = mcnemar_test(rows.baseline_SN[0], rows.other_SN[0]).p if yes_or_no else None
    decides: Test = "mcnemar" if yes_or_no else options.test
    p = {"t": tests.p_t, "wilcoxon": tests.p_wilcoxon, "mcnemar": p_mcnemar}[decides]
    assert p is not None
    low, high, interval = _interval(rows, options, yes_or_no)
    spread = float(difference_N.std(ddof=1)) if count > 1 else 0.0
    return Comparison(
        metric=metric,
        baseline=pair[0],
        other=pair[1],
        rows=count,
        left_out=rows.left_out,
        seeds=seeds,
        baseline_mean=float(rows.baseline_SN.mean()),
        other_mean=float(rows.other_SN.mean()),
        difference=float(difference_N.mean()),
        low=low,
        high=high,
        interval=interval,
        confidence=options.confidence,
        t=tests.t,
        p_t=tests.p_t,
        w=tests.w,
        p_wilcoxon=tests.p_wilcoxon,
        cohens_d=tests.cohens_d,
        d_av=d_average(rows.baseline_SN.mean(axis=0), rows.other_SN.mean(axis=0)),
        p_mcnemar=p_mcnemar,
        p_seeds=seed_test(rows.baseline_SN.mean(axis=1), rows.other_SN.mean(axis=1)),
        test=decides,
        p=p,
        p_holm=p,
        family=1,
        detectable=detectable(count, spread, options.power, options.alpha) if np.ptp(difference_N) else None,
        power=options.power,
        verdict="no difference shown",
    )


def _interval(
    rows: PairedRows, options: ComparisonConfig, yes_or_no: bool
) -> tuple[float | None, float | None, Interval]:
    several = max(len(rows.baseline_SN), len(rows.other_SN)) > 1
    interval: Interval = "hierarchical" if several else "newcombe" if yes_or_no else "bca"
    if rows.baseline_SN.shape[1] < 2:
        return None, None, interval
    drawn = {"resamples": options.resamples, "seed": options.seed}
    if several:
        low, high = hierarchical_interval(
            rows.baseline_SN, rows.other_SN, confidence=options.confidence, **drawn
        )
    elif yes_or_no:
        low, high = paired_share_interval(rows.baseline_SN[0], rows.other_SN[0], options.confidence)
    else:
        ends = mean_interval(rows.differences, confidence=options.confidence, **drawn)
        low, high = float(ends[0]), float(ends[1])
    return low, high, interval


def holm_corrected(found: Sequence[Comparison], options: ComparisonConfig) -> tuple[Comparison, ...]:
    """All of one family, with Holm's p and the verdicts."""
    if not found:
        return ()
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests([one.p for one in found], alpha=options.alpha, method="holm")[1]
    return tuple(
        replace(
            one,
            p_holm=float(p),
            family=len(found),
            verdict=_verdict(one.metric, one.difference, float(p) < options.alpha),
        )
        for one, p in zip(found, corrected, strict=True)
    )


def _verdict(metric: str, difference: float, shown: bool) -> Verdict:
    if not shown or difference == 0:  # equal means may still have unequal ranks
        return "no difference shown"
    known = CATALOGUE.get(metric)
    better = known.better if known else None
    rises = difference > 0
    if better in ("higher", "lower"):
        return "better" if rises == (better == "higher") else "worse"
    return "higher" if rises else "lower"
