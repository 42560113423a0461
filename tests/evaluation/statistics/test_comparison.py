"""Families of comparisons: who is compared on what, corrected how, and what is then said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.evaluation.statistics import compare_all, correlations, sentence, shared_metrics

pytestmark = pytest.mark.filterwarnings("error")
Made = Callable[..., Evaluation]
OPTIONS = ComparisonConfig(resamples=999)
ROWS = 80


@pytest.fixture
def scores() -> dict[str, np.ndarray]:
    """Three policies on 80 rows: `same` is like `base`, `good` is .05 better."""
    generator = np.random.default_rng(0)
    base = generator.beta(3, 6, ROWS)
    return {
        "base": base,
        "same": base + generator.normal(0, 0.05, ROWS),
        "good": base + 0.05 + generator.normal(0, 0.05, ROWS),
    }


def test_one_family(made: Made, scores: dict[str, np.ndarray]) -> None:
    results = {name: [made({"meteor": values, "repetition": values})] for name, values in scores.items()}
    found = compare_all(results, "base", ["meteor", "repetition"], OPTIONS)
    assert [(one.metric, one.other, one.verdict) for one in found] == [
        ("meteor", "same", "no difference shown"),
        ("meteor", "good", "better"),
        ("repetition", "same", "no difference shown"),
        ("repetition", "good", "worse"),  # the less the better
    ]
    for one in found:
        base, other = scores["base"], scores[one.other]
        expected = stats.ttest_rel(other, base)
        assert (one.t, one.p_t) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-6)
        assert (one.rows, one.left_out, one.seeds, one.family, one.test) == (ROWS, 0, (1, 1), 4, "t")
        assert one.baseline_mean == pytest.approx(base.mean())
        assert one.other_mean - one.baseline_mean == pytest.approx(one.difference)
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.difference < one.high
        interval = stats.ttest_rel(other, base).confidence_interval(0.95)  # near to it for 80 rows
        assert (one.low, one.high) == pytest.approx((interval.low, interval.high), abs=0.003)
    # Holm by hand: the smallest p times 4, the next times 3, ..., none below the one before.
    corrected, last = {}, 0.0
    for place, one in enumerate(sorted(found, key=lambda one: one.p)):
        last = max(last, min((4 - place) * one.p, 1.0))
        corrected[one.metric, one.other] = last
    assert {(one.metric, one.other): one.p_holm for one in found} == pytest.approx(corrected)
    json.dumps([asdict(one) for one in found], allow_nan=False)


def test_rows_are_paired_by_id(made: Made, scores: dict[str, np.ndarray]) -> None:
    ids = [f"row {n}" for n in range(ROWS)]
    order = np.random.default_rng(1).permutation(ROWS)
    base = made({"meteor": scores["base"]}, ids)
    there = made({"meteor": scores["good"]}, ids)
    shuffled = made({"meteor": scores["good"][order]}, [ids[n] for n in order])
    found = [
        compare_all({"base": [base], "good": [one]}, "base", ["meteor"], OPTIONS) for one in (there, shuffled)
    ]
    assert found[0] == found[1]


def test_other_rows_are_refused(made: Made) -> None:
    one = made({"meteor": [0.1] * 5}, ["a", "b", "c", "d", "e"])
    two = made({"meteor": [0.1] * 2}, ["e", "f"])
    with pytest.raises(UserError) as caught:
        compare_all({"one": [one], "two": [one, two]}, "one", ["meteor"], OPTIONS)
    said = str(caught.value)
    assert "one and two (number 2) are not of the same rows" in said
    assert "4 only in one (a, b, c, …), 1 only in two (number 2) (f)" in said


def test_mistakes(made: Made) -> None:
    one, none = made({"meteor": [0.1, 0.2]}), made({"meteor": [None, None]})
    for results, baseline, expected in (
        ({"one": [one]}, "two", "'two' is not among the results: choose one of one"),
        ({"one": [one]}, "one", "nothing to compare 'one' with"),
        ({"one": [one], "two": []}, "one", "two has no rows"),
        ({"one": [one], "two": [none]}, "one", r"meteor in no common row: compare what both have \(length\)"),
    ):
        with pytest.raises(UserError, match=expected):
            compare_all(results, baseline, ["meteor"], OPTIONS)
    assert compare_all({"one": [one], "two": [one]}, "one", [], OPTIONS) == ()
    assert shared_metrics({"one": [one], "two": [none]}) == ("length",)
    assert shared_metrics({"one": [one], "two": [one]}) == ("length", "meteor")


def test_rows_without_a_number_are_left_out_of_both(made: Made) -> None:
    one = made({"meteor": [0.1, None, 0.3, 0.4, 0.9]})
    two = made({"meteor": [0.2, 0.9, math.nan, 0.6, 0.9]})
    (found,) = compare_all({"one": [one], "two": [two]}, "one", ["meteor"], OPTIONS)
    assert (found.rows, found.left_out) == (3, 2)
    assert found.difference == pytest.approx(0.1)
    assert "2 without a number left out" in sentence(found)


@pytest.mark.parametrize(
    ("one", "two", "p", "verdict"),
    [
        ([0.3] * 6, [0.3] * 6, 1.0, "no difference shown"),
        ([0.3] * 8, [0.5] * 8, 2 / 256, "better"),  # all by the same: the signs decide
        ([0.1, 0.2], [0.2, 0.1], 1.0, "no difference shown"),
        ([0.1], [0.9], 1.0, "no difference shown"),
        ([0.1], [0.1], 1.0, "no difference shown"),
        ([0.1 + 0.2, 0.7 - 0.4], [0.3, 0.3], 1.0, "no difference shown"),  # nothing but rounding
    ],
)
@pytest.mark.parametrize("seeds", [1, 2])
def test_nothing_to_test(
    made: Made, one: list[float], two: list[float], p: float, verdict: str, seeds: int
) -> None:
    results = {"one": [made({"meteor": one})] * seeds, "two": [made({"meteor": two})] * seeds}
    (found,) = compare_all(results, "one", ["meteor"], OPTIONS)
    assert (found.p, found.verdict) == (pytest.approx(p), verdict)
    json.dumps(asdict(found), allow_nan=False)
    assert "nan" not in sentence(found)
    assert "None" not in sentence(found)
    if len(one) == 1:
        assert found.low is None
        assert "one row can show nothing" in sentence(found)


def test_yes_or_no_is_mcnemar_s(made: Made) -> None:
    """Only 3 of 100 rows change, all for the better: Student's t says p = .08, the three coins .25."""
    before, after = [0.0] * 50 + [1.0] * 50, [1.0] * 3 + [0.0] * 47 + [1.0] * 50
    results = {"before": [made({"within": before})], "after": [made({"within": after})]}
    (found,) = compare_all(results, "before", ["within"], OPTIONS)
    assert (found.test, found.interval) == ("mcnemar", "newcombe")
    assert found.p == found.p_mcnemar == pytest.approx(0.25)
    assert found.p_t < 0.1
    assert found.difference == pytest.approx(0.03)
    assert found.low is not None
    assert found.low < 0 < found.difference


def test_wilcoxon_decides_if_asked(made: Made, scores: dict[str, np.ndarray]) -> None:
    results = {name: [made({"meteor": scores[name]})] for name in ("base", "same")}
    (found,) = compare_all(results, "base", ["meteor"], OPTIONS.model_copy(update={"test": "wilcoxon"}))
    expected = stats.wilcoxon(np.round(scores["same"] - scores["base"], 12))
    assert (found.test, found.p, found.w) == ("wilcoxon", pytest.approx(expected.pvalue), expected.statistic)


def test_each_with_each(made: Made, scores: dict[str, np.ndarray]) -> None:
    results = {name: [made({"meteor": scores[name]})] for name in ("same", "base", "good")}
    pairwise = OPTIONS.model_copy(update={"pairwise": True})
    found = compare_all(results, "base", ["meteor"], pairwise)
    assert [(one.baseline, one.other) for one in found] == [
        ("base", "same"),
        ("base", "good"),
        ("same", "good"),
    ]
    assert [one.verdict for one in found] == ["no difference shown", "better", "better"]


def test_neither_way_is_better(made: Made, scores: dict[str, np.ndarray]) -> None:
    generator = np.random.default_rng(3)
    values = {"meteor": scores["base"]}
    short = made(values, lengths=generator.integers(20, 30, ROWS).tolist())
    long = made(values, lengths=generator.integers(60, 70, ROWS).tolist())
    (found,) = compare_all({"short": [short], "long": [long]}, "short", ["length"], OPTIONS)
    assert found.verdict == "higher"
    assert sentence(found).startswith("Length: higher (+")


def test_seeds_are_averaged_row_by_row(made: Made, scores: dict[str, np.ndarray]) -> None:
    generator = np.random.default_rng(4)
    base = [scores["base"] + generator.normal(0, 0.03, ROWS) for _ in range(2)]
    good = [scores["good"] + generator.normal(0, 0.03, ROWS) for _ in range(3)]
    results = {
        "base": [made({"meteor": one}) for one in base],
        "good": [made({"meteor": one}) for one in good],
    }
    (found,) = compare_all(results, "base", ["meteor"], OPTIONS)
    expected = stats.ttest_rel(np.mean(good, axis=0), np.mean(base, axis=0))
    assert (found.t, found.p_t) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-6)
    welch = stats.ttest_ind([one.mean() for one in good], [one.mean() for one in base], equal_var=False)
    assert found.p_seeds == pytest.approx(welch.pvalue)
    assert (found.seeds, found.interval) == ((2, 3), "hierarchical")
    assert "2 and 3 seeds averaged" in sentence(found)
    assert "over seeds p " in sentence(found)


def test_sentence_by_hand(made: Made) -> None:
    generator = np.random.default_rng(5)
    base = generator.normal(0.3, 0.1, 300)
    noise = generator.normal(0, 0.06, 300)
    noise -= noise.mean()
    results = {"base": [made({"meteor": base})], "other": [made({"meteor": base + 0.003 + noise})]}
    (found,) = compare_all(results, "base", ["meteor"], OPTIONS)
    p = stats.ttest_1samp(0.003 + noise, 0).pvalue
    assert 0.3 < p < 0.5
    assert sentence(found) == (
        f"METEOR: no difference shown (+0.003, 95 % interval {found.low:.3f} to {found.high:.3f}, 300 rows, "
        f"p = .{round(100 * p)}; a difference of {found.detectable:.3f} would have been found four times in five)"
    )


def test_correlations(made: Made) -> None:
    generator = np.random.default_rng(6)
    one = generator.normal(0, 1, 50)
    two = np.round(one + generator.normal(0, 1, 50))  # ties
    gaps = [None if n % 5 == 0 else value for n, value in enumerate(two.tolist())]
    evaluation = made(
        {"a": one, "b": two, "gaps": gaps, "still": np.ones(50), "few": [1.0, 2.0] + [None] * 48}
    )
    found = correlations([evaluation], ["a", "b", "gaps", "still", "few"])
    # Spearman's is Pearson's of mean ranks.
    expected = np.corrcoef(stats.rankdata(one), stats.rankdata(two))[0, 1]
    assert found.rho[0][1] == found.rho[1][0] == pytest.approx(expected)
    assert (found.rows[0][2], found.rows[0][1], found.rows[4][4]) == (40, 50, 2)
    known = np.arange(50) % 5 != 0
    assert found.rho[0][2] == pytest.approx(stats.spearmanr(one[known], two[known]).statistic)
    assert found.rho[0][0] == 1
    assert {found.rho[3][n] for n in range(5)} == {None}, "it never changes"
    assert found.rho[0][4] is None
