"""Preparing as a whole: every row is in one split or in the account, and nothing leaks unless it is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_sumrl.config.prepare import PrepareConfig
from mlx_sumrl.data import prepared as prepared_module
from mlx_sumrl.data.data_card import card_page, make_card
from mlx_sumrl.data.prepared import Prepared, prepare
from mlx_sumrl.errors import UserError

from .small_sources import MADE_WITH, check_account, config, ids, near, row, text, write


def test_random(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [row(n) for n in range(100)])
    prepared = prepare(config(file, split={"validation": 10, "test": 0.05}))
    check_account(prepared)
    assert {name: len(rows) for name, rows in prepared.splits.items()} == {
        "train": 85,
        "validation": 10,
        "test": 5,
    }
    again = prepare(config(file, split={"validation": 10, "test": 0.05}))
    for name, rows in prepared.splits.items():
        assert [one.to_json() for one in again.splits[name]] == [one.to_json() for one in rows]
    assert ids(prepare(config(file, split={"validation": 10, "test": 0.05}, seed=1))) != ids(prepared)
    assert [one.id for one in prepared.splits["train"]] != sorted(one.id for one in prepared.splits["train"])


def test_planted_copies_stay_together(tmp_path: Path) -> None:
    rows = [row(n) for n in range(60)]
    rows += [{**row(n), "id": f"exact{n}", "document": text(n).upper()} for n in range(10)]
    rows += [{**row(n), "id": f"near{n}", "document": near(n)} for n in range(5, 15)]
    prepared = prepare(config(write(tmp_path / "a.jsonl", rows), split={"validation": 0.2, "test": 0.2}))
    check_account(prepared)
    assert len(prepared.duplicates.exact) == 10
    assert len(prepared.duplicates.near) == 10
    assert prepared.leaks == []
    of = {one.id: name for name, members in prepared.splits.items() for one in members}
    assert {name: len(members) for name, members in prepared.splits.items()}.keys() == {
        "train",
        "validation",
        "test",
    }
    for n in range(15):
        assert len({of[key] for key in (f"r{n}", f"exact{n}", f"near{n}") if key in of}) == 1


def test_planted_copies_are_found_across_splits(tmp_path: Path) -> None:
    """200 training rows; of 100 test rows 20 are exact copies of some, 20 have one word changed."""
    train = [row(n) for n in range(200)]
    test = [row(n) for n in range(200, 260)]
    test += [{**row(n), "id": f"exact{n}", "document": text(n).upper().replace(" ", "\n")} for n in range(20)]
    test += [{**row(n), "id": f"near{n}", "document": near(n)} for n in range(20, 40)]
    files = [write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test)]
    with pytest.raises(UserError, match=r"^40 of 300 rows leak .*\(20 exact: r0 of train and exact0 of test"):
        prepare(config(*files, split={"by": "source"}))
    allowed = prepare(config(*files, split={"by": "source"}, leakage="allow"))
    found = {
        (leak.kind, allowed.rows[leak.row].id, allowed.rows[leak.held_out].id, round(leak.similarity, 9))
        for leak in allowed.leaks
    }
    planted = {("exact", f"r{n}", f"exact{n}", 1.0) for n in range(20)}
    planted |= {("near", f"r{n}", f"near{n}", round(35 / 41, 9)) for n in range(20, 40)}
    assert found == planted
    left = prepare(config(*files, split={"by": "source"}, leakage="drop"))
    assert ids(left) == {"train": {f"r{n}" for n in range(40, 200)}, "test": ids(allowed)["test"]}


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["ann", "bob", "cy", "dee", "eve", None]), min_size=8, max_size=30), st.data()
)
def test_groups_stay_together(tmp_path: Path, groups: list[str | None], data: st.DataObject) -> None:
    groups = [*groups, *[None] * 5]  # enough rows in no group to fill the test split
    rows = [row(n, author=group) for n, group in enumerate(groups)]
    test_rows = data.draw(st.integers(1, 5))
    options = config(
        write(tmp_path / "a.jsonl", rows),
        group_column="author",
        split={"validation": 0, "test": test_rows},
        seed=data.draw(st.integers(0, 1000)),
    )
    prepared = prepare(options)
    check_account(prepared)
    assert len(prepared.splits["test"]) == test_rows
    of = {one.id: name for name, members in prepared.splits.items() for one in members}
    for group in set(groups) - {None}:
        assert len({of[f"r{n}"] for n, own in enumerate(groups) if own == group}) == 1


def test_by_time(tmp_path: Path) -> None:
    rows = [row(n, day=f"2024-01-{1 + n * 7 % 30:02}") for n in range(30)]
    rows += [row(30, day="soon"), row(31, day=None), row(32)]
    file = write(tmp_path / "a.jsonl", rows)
    prepared = prepare(config(file, date_column="day", split={"validation": 3, "test": 6}))
    check_account(prepared)
    assert prepared.dropped == {"no readable date": ["r30", "r31", "r32"]}
    days = {name: [one.kept["day"] for one in members] for name, members in prepared.splits.items()}
    assert days["train"] == [f"2024-01-{day:02}" for day in range(1, 22)]
    assert days["validation"] == ["2024-01-22", "2024-01-23", "2024-01-24"]
    assert days["test"] == [f"2024-01-{day:02}" for day in range(25, 31)]
    # Randomly split, undated rows are as good as any.
    assert prepare(config(file, date_column="day", split={"by": "random"})).dropped == {}


def test_too_many_rows_that_cannot_be_used(tmp_path: Path) -> None:
    rows = [row(n, day=2000 + n) for n in range(30)] + [row(30, day="soon"), {**row(31), "summary": ""}]
    file = write(tmp_path / "a.jsonl", rows)
    share = PrepareConfig.model_fields["max_unusable_share"].default
    assert 1 / 32 < share < 2 / 32
    with pytest.raises(UserError) as error:
        prepare(config(file, date_column="day", max_unusable_share=share))
    assert str(error.value) == (
        "2 of 32 records cannot be used (6.2%; max_unusable_share is 5.0%): 1 x empty summary (a.jsonl:32), "
        "1 x no readable date (r30); mend or remove them, or raise --max_unusable_share"
    )
    # What a filter leaves out was asked for.
    filtered = prepare(config(file, max_unusable_share=share, filters={"max_document": 40}))
    assert filtered.dropped == {"empty summary": ["a.jsonl:32"]}
    short = [{**row(n), "document": text(n, 10)} for n in range(30, 60)]
    both = write(tmp_path / "b.jsonl", [*rows[:30], *short])
    assert len(prepare(config(both, max_unusable_share=0, filters={"min_document": 20})).rows) == 30


@pytest.mark.parametrize("kind", ["exact", "near", "group"])
def test_leaks_through_time(tmp_path: Path, kind: str) -> None:
    rows = [row(n, day=2000 + n, author=f"a{n}") for n in range(20)]
    if kind == "group":
        rows[19]["author"] = "a0"
    else:
        rows[19]["document"] = near(0) if kind == "near" else f" {text(0)} "
    file = write(tmp_path / "a.jsonl", rows)

    def made(leakage: str) -> Prepared:
        return prepare(
            config(
                file,
                date_column="day",
                group_column="author",
                split={"validation": 2, "test": 2},
                leakage=leakage,
            )
        )

    with pytest.raises(UserError) as error:
        made("error")
    said = {"exact": "1 exact", "near": "1 near", "group": "1 by group"}[kind]
    similarity = " at 0.85" if kind == "near" else ""
    assert "1 of 20 rows leak" in str(error.value)
    assert f"({said}: r0 of train and r19 of test{similarity})" in str(error.value)
    left_out = made("drop")
    check_account(left_out)
    assert left_out.dropped == {f"leaks from train ({kind})": ["r0"]}
    assert "r0" not in ids(left_out)["train"]
    allowed = made("allow")
    assert "r0" in ids(allowed)["train"]
    card = make_card(allowed, config(file, leakage="allow"), None, MADE_WITH)
    assert card["leakage"]["rows_by_kind"] == {"exact": 0, "near": 0, "group": 0, kind: 1}
    assert "1 rows leak into a split that is held out more" in card_page(card, "a")


def test_the_source_s_own_splits(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "train.jsonl", [row(n) for n in range(10)]),
        write(tmp_path / "dev.jsonl", [row(n) for n in range(10, 13)]),
        write(tmp_path / "test.jsonl", [row(n) for n in range(13, 15)]),
    ]
    prepared = prepare(config(*files, split={"by": "source"}))
    assert ids(prepared) == {
        "train": {f"r{n}" for n in range(10)},
        "validation": {"r10", "r11", "r12"},
        "test": {"r13", "r14"},
    }
    assert [one.id for one in prepared.splits["train"]] == [f"r{n}" for n in range(10)]
    write(tmp_path / "test.jsonl", [row(13), {**row(1), "id": "copy"}])
    with pytest.raises(UserError, match="1 exact: r1 of train and copy of test"):
        prepare(config(*files, split={"by": "source"}))
    assert ids(prepare(config(*files, split={"by": "source"}, duplicates={"drop": "exact"})))["test"] == {
        "r13",
        "copy",
    }
    with pytest.raises(UserError, match=r"10 of 10 rows have no split of their own \(the first is r0\)"):
        prepare(config(write(tmp_path / "a.jsonl", [row(n) for n in range(10)]), split={"by": "source"}))
    with pytest.raises(UserError, match="train has no row: no file or split is named so"):
        prepare(config(files[2], split={"by": "source"}))


@pytest.mark.parametrize(("drop", "left"), [("none", 8), ("exact", 7), ("near", 6)])
def test_duplicates_that_are_left_out(tmp_path: Path, drop: str, left: int) -> None:
    rows = [
        *(row(n) for n in range(6)),
        {**row(0), "id": "exact"},
        {**row(0), "id": "near", "document": near(0)},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    prepared = prepare(config(file, duplicates={"drop": drop}, split={"validation": 0, "test": 1}))
    check_account(prepared)
    assert len(prepared.rows) == left
    assert (
        prepared.dropped
        == {
            "none": {},
            "exact": {"exact duplicate": ["exact"]},
            "near": {"exact duplicate": ["exact"], "near duplicate": ["near"]},
        }[drop]
    )
    assert len(prepared.duplicates.links()) == {"none": 2, "exact": 1, "near": 0}[drop]


@pytest.mark.parametrize(
    ("split", "said"),
    [({"test": 100}, "leave none of 9 rows"), ({"by": "source"}, "have no split of their own")],
)
def test_what_cannot_be_split_is_known_before_rows_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: dict[str, Any], said: str
) -> None:
    def compare(*_: object) -> None:
        raise AssertionError("minutes later")

    monkeypatch.setattr(prepared_module, "find_duplicates", compare)
    with pytest.raises(UserError, match=said):
        prepare(config(write(tmp_path / "a.jsonl", [row(n) for n in range(9)]), split=split))


def test_ids_become_unique(tmp_path: Path) -> None:
    rows = [{**row(n), "id": "same" if n < 3 else f"r{n}"} for n in range(8)] + [{**row(8), "id": "same#2"}]
    prepared = prepare(config(write(tmp_path / "a.jsonl", rows), split={"validation": 0, "test": 1}))
    check_account(prepared)
    assert prepared.renamed == 2
    assert {one.document: one.id for one in prepared.rows}[text(1)] == "same#3"
    assert {one.document: one.id for one in prepared.rows}[text(8)] == "same#2"


def test_chats_and_documents_do_not_mix(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]}
    files = [write(tmp_path / "a.jsonl", [row(0)]), write(tmp_path / "b.jsonl", [chat])]
    with pytest.raises(UserError, match=r"b\.jsonl holds chats and .*a\.jsonl documents"):
        prepare(config(*files))
