"""The scoring benchmark as a user runs it: all variants give the same scores, and the table holds the numbers."""

from __future__ import annotations

import pytest

from benchmarks import reward_scoring
from benchmarks.fresh_process import Taken
from benchmarks.reward_scoring import found, made_groups
from mlx_sumrl.errors import UserError
from tests.benchmarks.programs import check_spread, run, text_of


def test_the_program(shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLTK_DATA", str(shared / "nltk_data"))
    report = run("reward_scoring", "--repeats", "1", "--processes", "1")
    assert report["completions"] == 4 * 8
    assert list(report["seconds"]) == list(reward_scoring.VARIANTS)
    for numbers in report["seconds"].values():
        check_spread(numbers, n=3)
    assert report["score_difference"] <= 1e-12
    assert 0 < report["beside"]["share_of_idle"]["median"] < 2
    shown_text = text_of(reward_scoring.table(report))
    assert all(variant in shown_text for variant in reward_scoring.VARIANTS)


def test_other_scores_are_refused() -> None:
    one = {"scores": [0.5, 0.25], "seconds": [1.0]}
    results = {variant: [one] for variant in reward_scoring.VARIANTS}
    results[reward_scoring.THREAD] = [{**one, "scores": [0.5, 0.250001]}]
    with pytest.raises(UserError, match=r"differ by up to 1\.0e-06"):
        found(Taken(results, (0.0, 0.0)))


def test_completions_are_about_as_long_as_asked_and_none_is_another() -> None:
    [first, second] = made_groups(None, 3, 2)
    texts = [one.text for group in [*first, *second] for one in group.completions]
    assert len(texts) == 2 * 3 * 8
    assert len(set(texts)) > 40
    assert max(len(text.split()) for text in texts) <= reward_scoring.WORDS
