"""Sources in the shares that were asked for: counted row by row, against enumeration, and in the card."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlx_sumrl.config.prepare import PrepareConfig, SourceConfig
from mlx_sumrl.data.data_card import card_page, make_card
from mlx_sumrl.data.prepared import Prepared, prepare
from mlx_sumrl.data.source_mix import (
    OVER_LIMIT,
    OVER_WEIGHT,
    by_weight,
    counts_by_weight,
    stratified_split,
    within_limits,
)
from mlx_sumrl.data.splits import Sizes

from .small_sources import MADE_WITH, check_account, ids, near, row, text, write


@pytest.mark.parametrize(
    ("available", "weights", "counts"),
    [
        ([100, 100], [3, 1], [100, 33]),
        ([300, 50], [3, 1], [150, 50]),
        ([300, 50, 10], [6, 3, 1], [60, 30, 10]),
        ([7, 7], [0.1, 0.3], [2, 7]),  # a tenth is a tenth here: 7/3 rounds to 2
        ([5, 9], [1, 0.5], [5, 3]),  # half a row is one
        ([0, 8, 8], [1, 1, 3], [0, 3, 8]),
        ([0, 0], [1, 1], [0, 0]),
        ([4], [7], [4]),
    ],
)
def test_counts(available: list[int], weights: list[float], counts: list[int]) -> None:
    assert counts_by_weight(available, weights) == counts


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=4))
def test_no_larger_mix_has_the_shares(given_sources: list[tuple[int, int]]) -> None:
    """The scarcest source is used up, no source beyond its rows, and each is its part to half a row."""
    available, weights = (list(part) for part in zip(*given_sources, strict=True))
    counts = counts_by_weight(available, weights)
    fractions = [Fraction(n, d) for n in range(1, 31) for d in range(1, 6)]
    one = max(
        part
        for part in fractions
        if all(part * weight <= count for count, weight in zip(available, weights, strict=True))
    )
    assert any(taken == count for taken, count in zip(counts, available, strict=True))
    for taken, count, weight in zip(counts, available, weights, strict=True):
        assert taken <= count
        assert abs(taken - one * weight) <= Fraction(1, 2)


def test_drawn_at_random_without_replacement() -> None:
    sources = [SourceConfig(source="a", weight=1), SourceConfig(source="b", weight=1)]
    of_row = [0] * 40 + [1] * 10
    often: Counter[int] = Counter()
    for seed in range(200):
        kept = by_weight(of_row, sources, seed)
        assert kept == sorted(set(kept))
        assert kept == by_weight(of_row, sources, seed)
        assert Counter(of_row[i] for i in kept) == {0: 10, 1: 10}
        often.update(kept)
    assert [often[i] for i in range(40, 50)] == [200] * 10
    assert all(20 <= often[i] <= 85 for i in range(40))  # 50 expected, standard deviation 6


def test_limits() -> None:
    sources = [SourceConfig(source="a", limit=3), SourceConfig(source="b"), SourceConfig(source="c", limit=9)]
    of_row = [0, 1, 2] * 5
    kept = within_limits(of_row, sources, 0)
    assert Counter(of_row[i] for i in kept) == {0: 3, 1: 5, 2: 5}
    assert by_weight(of_row, sources, 0) == list(range(15))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=4, max_size=60),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(0, 3),
)
@example([0, 1, 2, 2, 2, 2], 2, 2, 0)  # a source of one row, which both splits would have
def test_splits_have_the_shares_of_the_whole(
    of_row: list[int], validation: int, test: int, seed: int
) -> None:
    validation, test = validation % (len(of_row) // 2), test % (len(of_row) // 2)
    splits = stratified_split(range(len(of_row)), of_row, Sizes(validation, test), seed)
    assert Counter(splits)["validation"] == validation
    assert Counter(splits)["test"] == test
    for source, count in Counter(of_row).items():
        for name, size in (("validation", validation), ("test", test)):
            own = sum(one == source and split == name for one, split in zip(of_row, splits, strict=True))
            assert abs(own - size * count / len(of_row)) < 1


def test_clusters_stay_together() -> None:
    clusters = [n // 2 for n in range(40)]
    splits = stratified_split(clusters, [n % 3 for n in range(40)], Sizes(8, 8), 0)
    assert all(splits[n] == splits[n + 1] for n in range(0, 40, 2))
    assert {"validation", "test"} < set(splits)


def mixed(files: list[str], weights: list[float | None], **options: Any) -> PrepareConfig:
    sources = [{"source": file, "weight": weight} for file, weight in zip(files, weights, strict=True)]
    return PrepareConfig.model_validate({"sources": sources, "out": "out", "max_unusable_share": 1} | options)


def sources_of(prepared: Prepared) -> dict[str, Counter[str]]:
    return {name: Counter(one.source for one in rows) for name, rows in prepared.splits.items()}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """400 rows and 60."""
    return [
        write(tmp_path / "many.jsonl", [row(n) for n in range(400)]),
        write(tmp_path / "few.jsonl", [row(n) for n in range(400, 460)]),
    ]


def test_the_shares_are_exact_in_every_split(files: list[str]) -> None:
    options = mixed(files, [3, 1], split={"validation": 0.1, "test": 20})
    prepared = prepare(options)
    check_account(prepared)
    assert sources_of(prepared) == {
        "train": {"many.jsonl": 147, "few.jsonl": 49},
        "validation": {"many.jsonl": 18, "few.jsonl": 6},
        "test": {"many.jsonl": 15, "few.jsonl": 5},
    }
    assert {reason: len(rows) for reason, rows in prepared.dropped.items()} == {OVER_WEIGHT: 220}
    assert ids(prepare(options)) == ids(prepared)
    assert ids(prepare(mixed(files, [3, 1], split={"validation": 0.1, "test": 20}, seed=1))) != ids(prepared)
    card = json.loads(json.dumps(make_card(prepared, options, None, MADE_WITH)))
    many, few = card["sources"]
    assert (many["offered"], many["written"], few["offered"], few["written"]) == (400, 180, 60, 60)
    assert (many["asked_share"], many["written_share"], few["written_share"]) == (0.75, 0.75, 0.25)
    assert many["offered_share"] == 400 / 460
    assert many["shares"] == {"train": 0.75, "validation": 0.75, "test": 0.75}
    assert card["rows"]["read"] == card["rows"]["written"] + card["rows"]["left_out"] == 460
    page = card_page(card, "mine")
    assert "| many.jsonl | 3 | 75.0% |  | 400 (87.0%) | 180 (75.0%) | 75.0% | 75.0% | 75.0% |" in page


def test_limits_come_before_weights(files: list[str]) -> None:
    options = mixed(files, [1, 1], split={"validation": 10, "test": 0})
    sources = (options.sources[0], options.sources[1].model_copy(update={"limit": 25}))
    prepared = prepare(options.model_copy(update={"sources": sources}))
    check_account(prepared)
    assert sources_of(prepared)["train"] + sources_of(prepared)["validation"] == {
        "many.jsonl": 25,
        "few.jsonl": 25,
    }
    assert {reason: len(rows) for reason, rows in prepared.dropped.items()} == {
        OVER_LIMIT: 35,
        OVER_WEIGHT: 375,
    }


def test_splits_that_the_source_has_are_mixed_one_by_one(tmp_path: Path) -> None:
    """After leaks are left out, so that the shares are exact all the same."""
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        begin = 1000 * number
        train = [row(begin + n) for n in range(50 + 30 * number)]
        held = [row(begin + 500 + n) for n in range(12)]
        held += [{**row(begin + n), "id": f"leak{begin}x{n}", "document": near(begin + n)} for n in range(8)]
        write(tmp_path / name / "train.jsonl", train)
        write(tmp_path / name / "validation.jsonl", held)
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    prepared = prepare(mixed(folders, [2, 1], split={"by": "source"}, leakage="drop"))
    check_account(prepared)
    assert sources_of(prepared) == {"train": {"a": 42, "b": 21}, "validation": {"a": 20, "b": 10}}
    assert len(prepared.dropped[OVER_WEIGHT]) == (72 - 21) + (20 - 10)


def test_by_time(tmp_path: Path) -> None:
    files = [
        write(
            tmp_path / f"{name}.jsonl", [row(first + n, day=f"2020-01-{n % 28 + 1:02}") for n in range(count)]
        )
        for name, first, count in (("a", 0, 60), ("b", 100, 20))
    ]
    prepared = prepare(mixed(files, [1, 1], date_column="day"))
    check_account(prepared)
    assert sum(sources_of(prepared).values(), Counter()) == {"a.jsonl": 20, "b.jsonl": 20}
    dates = {name: [one.date for one in rows] for name, rows in prepared.splits.items()}
    assert max(dates["train"]) < min(dates["validation"])  # type: ignore[type-var]


def test_two_sources_of_one_name(tmp_path: Path) -> None:
    for name, first, count in (("x", 0, 30), ("y", 100, 10)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", [row(first + n) for n in range(count)])
    files = [str(tmp_path / name / "rows.jsonl") for name in ("x", "y")]
    options = mixed(files, [1, 2], split={"validation": 3, "test": 0})
    prepared = prepare(options)
    taken = [int(one.document.split("x")[0][1:]) >= 100 for rows in prepared.splits.values() for one in rows]
    assert Counter(taken) == {True: 10, False: 5}
    assert [one["written"] for one in make_card(prepared, options, None, MADE_WITH)["sources"]] == [5, 10]


def test_duplicates_go_before_the_shares(tmp_path: Path) -> None:
    copies = [{**row(n), "id": f"copy{n}", "document": text(n).upper()} for n in range(20)]
    files = [
        write(tmp_path / "a.jsonl", [row(n) for n in range(30)]),
        write(tmp_path / "b.jsonl", [*copies, *(row(100 + n) for n in range(20))]),
    ]
    prepared = prepare(mixed(files, [1, 1], duplicates={"drop": "exact"}, split={"validation": 4, "test": 0}))
    check_account(prepared)
    assert prepared.offered == [30, 20]
    assert sum(sources_of(prepared).values(), Counter()) == {"a.jsonl": 20, "b.jsonl": 20}


def test_options(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"few\.jsonl has no weight, but another source has one"):
        mixed(files, [1, None])
    with pytest.raises(ValidationError):
        mixed(files, [1, 0])
    unweighted = mixed(files, [None, None], split={"validation": 10, "test": 0})
    prepared = prepare(unweighted)
    assert prepared.dropped == {}
    card = make_card(prepared, unweighted, None, MADE_WITH)
    assert "could be taken" not in card_page(card, "mine")
    assert [one["asked_share"] for one in card["sources"]] == [None, None]
    assert [one["written"] for one in card["sources"]] == [400, 60]
