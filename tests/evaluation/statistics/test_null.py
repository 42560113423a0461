"""Experiments in which nothing differs: how often something is found, 2,000 times each.

A right test at 5 % rejects in 76 to 126 of them, 99 times in 100.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.evaluation.statistics import Comparison, compare_all, mcnemar_test
from mlx_sumrl.evaluation.statistics.comparison import holm_corrected
from mlx_sumrl.evaluation.statistics.intervals import hierarchical_interval, mean_interval
from mlx_sumrl.evaluation.statistics.row_tests import paired_t, wilcoxon

REPEATS = 2000
pytestmark = pytest.mark.filterwarnings("error")


def in_band(found: int, share: float = 0.05) -> bool:
    low, high = stats.binom.interval(0.99, REPEATS, share)
    return bool(low <= found <= high)


def null_differences(kind: str, rows: int, seed: int) -> np.ndarray:
    """[REPEATS, rows] differences of two policies that are alike."""
    generator = np.random.default_rng(seed)
    shape = (2, REPEATS, rows)
    if kind == "scores":  # like ROUGE: bounded, skewed, many zeros, rows of their own difficulty
        difficulty = generator.beta(2, 5, (1, REPEATS, rows))
        scores = np.clip(difficulty + generator.normal(0, 0.15, shape), 0, 1)
    elif kind == "counts":  # like lengths: ties
        scores = np.round(generator.normal(30, 6, shape))
    else:
        scores = generator.normal(0, 1, shape)
    return np.asarray(scores[1] - scores[0])


@pytest.mark.parametrize("rows", [20, 60, 200])
@pytest.mark.parametrize("kind", ["normal", "scores", "counts"])
def test_t_and_wilcoxon(kind: str, rows: int) -> None:
    differences = null_differences(kind, rows, seed=11)
    assert in_band(int((paired_t(differences)[1] < 0.05).sum()))
    assert in_band(int((wilcoxon(differences)[1] < 0.05).sum()))


@pytest.mark.parametrize("kind", ["normal", "scores"])
def test_the_interval_holds_the_truth(kind: str) -> None:
    differences = null_differences(kind, 200, seed=12)
    held = 0
    for start in range(0, REPEATS, 50):  # those of a call share their draws
        low, high = mean_interval(differences[start : start + 50], resamples=999, confidence=0.95, seed=start)
        held += int(((low <= 0) & (high >= 0)).sum())
    assert in_band(held, 0.95)


def test_mcnemar() -> None:
    """300 rows, a third of which the policies differ in; and 40, of which a few: exact, so seldomer than 5 %."""
    generator = np.random.default_rng(13)
    rejected = {}
    for rows in (300, 40):
        one = generator.random((REPEATS, rows)) < 0.4
        changed = generator.random((REPEATS, rows)) < 1 / 3
        coin = generator.random((REPEATS, rows)) < 0.4
        two = np.where(changed, coin, one)
        rejected[rows] = sum(
            mcnemar_test(a.astype(float), b.astype(float)).p < 0.05 for a, b in zip(one, two, strict=True)
        )
    assert in_band(rejected[300])
    assert 0 < rejected[40] <= stats.binom.interval(0.99, REPEATS, 0.05)[1]


def test_a_family_after_holm(made: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch) -> None:
    """Six metrics of policies that are alike: one or more "found" in 5 % of families, not in the 26 % without."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels collects garbage after each family
    options = ComparisonConfig(resamples=100)
    pair = {"a": [made({"meteor": [0.1, 0.3]})], "b": [made({"meteor": [0.2, 0.3]})]}
    template: Comparison = compare_all(pair, "a", ["meteor"], options)[0]
    differences = np.stack([null_differences("scores", 60, seed) for seed in range(20, 26)])
    p_MR = paired_t(differences)[1]
    means_MR = differences.mean(axis=-1)
    found = 0
    for p_M, means_M in zip(p_MR.T, means_MR.T, strict=True):
        family = [
            replace(template, p=p, difference=mean)
            for p, mean in zip(p_M.tolist(), means_M.tolist(), strict=True)
        ]
        found += any(one.verdict != "no difference shown" for one in holm_corrected(family, options))
    assert in_band(found)
    assert (p_MR < 0.05).any(axis=0).mean() > 0.2


@pytest.mark.parametrize(
    ("seeds", "by_seed", "at_least", "at_most"),
    [
        (1, 0.0, 0.92, 0.98),
        (3, 0.0, 0.92, 0.98),  # seeds differ row by row only
        (3, 0.1, 0.90, 0.98),  # and in their means, by about as much as 80 rows leave open
        (5, 1.0, 0.80, 0.95),  # in their means above all: five seeds say little of others,
        (2, 1.0, 0.50, 0.90),  # and two hardly anything
    ],
)
def test_rows_and_seeds(seeds: int, by_seed: float, at_least: float, at_most: float) -> None:
    """300 experiments of two alike methods: 80 rows, each with a difficulty of its own for both."""
    generator = np.random.default_rng(14)
    held = 0
    for trial in range(300):
        of_rows = generator.normal(0, 1, 80)
        sides = [
            of_rows + generator.normal(0, by_seed, (seeds, 1)) + generator.normal(0, 1, (seeds, 80))
            for _ in range(2)
        ]
        low, high = hierarchical_interval(*sides, resamples=400, confidence=0.95, seed=trial)
        held += low <= 0 <= high
    print(f"held {held / 300:.3f}")
    assert at_least <= held / 300 <= at_most
