"""What one split knows of another: by hand, and nothing is left of it once leaking rows are out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.data.declared_sources import SplitName
from mlx_sumrl.data.duplicates import Duplicates, NearPair
from mlx_sumrl.data.leakage import Leak, find_leaks, refuse
from mlx_sumrl.data.prepared_row import PreparedRow
from mlx_sumrl.errors import UserError

SPLIT: tuple[SplitName, ...] = ("train", "validation", "test")


def test_by_hand() -> None:
    splits: list[SplitName] = ["train", "train", "validation", "test", "train", "test"]
    duplicates = Duplicates(exact=[[0, 2]], near=[NearPair(0, 3, 0.8), NearPair(1, 4, 0.9)])
    found = find_leaks(splits, duplicates, [None, "x", None, None, None, "x"])
    assert found == [
        Leak("exact", 0, 2),
        Leak("near", 0, 3, 0.8),
        Leak("near", 2, 3, 0.8),  # the copy of row 0 is as near to row 3
        Leak("group", 1, 5),
    ]


def test_within_one_split_nothing_leaks() -> None:
    assert find_leaks(["test"] * 3, Duplicates([[0, 1]], [NearPair(0, 2, 0.9)]), ["a", "a", "a"]) == []


@given(st.data())
def test_nothing_leaks_without_the_leaking_rows(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 14))
    rows = st.integers(0, count - 1)
    splits = data.draw(st.lists(st.sampled_from(SPLIT), min_size=count, max_size=count))
    texts = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    groups = data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=count, max_size=count))
    same = [[row for row in range(count) if texts[row] == text] for text in range(6)]
    firsts = [rows_of[0] for rows_of in same if rows_of]
    near = {
        (a, b)
        for a, b in data.draw(st.lists(st.tuples(rows, rows), max_size=8))
        if a < b and a in firsts and b in firsts
    }
    duplicates = Duplicates([s for s in same if len(s) > 1], [NearPair(a, b, 0.8) for a, b in sorted(near)])
    leaks = find_leaks(splits, duplicates, groups)
    kept = [row for row in range(count) if row not in {leak.row for leak in leaks}]
    alike = {(texts[a], texts[b]) for a, b in near} | {(texts[b], texts[a]) for a, b in near}
    for a in kept:
        for b in kept:
            if splits[a] != splits[b]:
                assert texts[a] != texts[b]
                assert (texts[a], texts[b]) not in alike
                assert groups[a] is None or groups[a] != groups[b]
    # What is held out most never goes.
    assert all(splits[leak.row] != "test" for leak in leaks)


def test_the_sentence() -> None:
    rows = [PreparedRow(id, "", "", "s") for id in ("a", "b", "c")]
    splits: list[SplitName] = ["train", "test", "validation"]
    refuse([], rows, splits)
    with pytest.raises(UserError) as error:
        refuse([Leak("exact", 0, 1), Leak("near", 2, 1, 0.789)], rows, splits)
    assert str(error.value) == (
        "2 of 3 rows leak into a split that is held out from them (1 exact: a of train and b of test; "
        "1 near: c of validation and b of test at 0.79): --leakage drop leaves them out, --leakage allow only "
        "writes them into the card"
    )
