"""Splits: nothing is in two, groups stay together, time only goes forward, one seed is one split."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.config.prepare import SplitConfig
from mlx_sumrl.data.duplicates import clusters as clusters_of
from mlx_sumrl.data.splits import Sizes, random_split, time_split
from mlx_sumrl.errors import UserError

START = datetime(2024, 1, 1, tzinfo=UTC)


def days(*numbers: int) -> list[datetime]:
    return [START + timedelta(days=number) for number in numbers]


@pytest.mark.parametrize(
    ("rows", "validation", "test", "expected"),
    [
        (1000, 0.05, 0.1, Sizes(50, 100)),
        (1000, 20, 0.1, Sizes(20, 100)),
        (10, 0.01, 0, Sizes(1, 0)),  # a share above 0 is at least a row
        (3, 1, 1, Sizes(1, 1)),
    ],
)
def test_sizes(rows: int, validation: float, test: float, expected: Sizes) -> None:
    assert Sizes.of(rows, SplitConfig(validation=validation, test=test)) == expected


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(
        UserError, match=r"split\.validation \(1\) and split\.test \(1\) leave none of 2 rows"
    ):
        Sizes.of(2, SplitConfig())


def test_single_rows_meet_the_sizes_exactly() -> None:
    splits = random_split(range(100), Sizes(7, 13), seed=0)
    assert Counter(splits) == {"train": 80, "validation": 7, "test": 13}


def test_seeds() -> None:
    once = random_split(range(1000), Sizes(50, 50), seed=1)
    assert once == random_split(range(1000), Sizes(50, 50), seed=1)
    assert once != random_split(range(1000), Sizes(50, 50), seed=2)


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.integers(0, 15), min_size=3, max_size=60), st.integers(0, 2**31 - 1), st.data())
def test_clusters_stay_together(groups: list[int], seed: int, data: st.DataObject) -> None:
    validation = data.draw(st.integers(0, len(groups) // 3))
    test = data.draw(st.integers(0, len(groups) // 3))
    firsts: dict[int, int] = {}
    links = [(firsts.setdefault(group, row), row) for row, group in enumerate(groups)]
    splits = random_split(clusters_of(len(groups), links), Sizes(validation, test), seed)
    assert len(splits) == len(groups)
    for group in set(groups):
        assert len({split for split, own in zip(splits, groups, strict=True) if own == group}) == 1
    counts = Counter(splits)
    assert counts["validation"] <= validation
    assert counts["test"] <= test
    # Only a group that is larger than what is left stays out.
    for name, size in (("validation", validation), ("test", test)):
        in_train = Counter(group for group, split in zip(groups, splits, strict=True) if split == "train")
        assert all(members > size - counts[name] for members in in_train.values())


def test_time_by_hand() -> None:
    splits = time_split(days(5, 1, 4, 2, 3, 0), Sizes(1, 2))
    assert splits == ["test", "train", "test", "train", "validation", "train"]


def test_days_are_not_cut_through() -> None:
    splits = time_split(days(0, 1, 2, 2, 2, 3), Sizes(0, 2))
    # Two test rows would cut through day 2: one row is as near to it as two are, four are farther.
    assert splits == ["train"] * 5 + ["test"]


@given(
    st.lists(st.integers(0, 20), min_size=6, max_size=60).filter(lambda numbers: len(set(numbers)) >= 3),
    st.data(),
)
def test_time_goes_forward(numbers: list[int], data: st.DataObject) -> None:
    sizes = Sizes(data.draw(st.integers(0, len(numbers) // 3)), data.draw(st.integers(1, len(numbers) // 3)))
    dates = days(*numbers)
    splits = time_split(dates, sizes)
    of = {name: [d for d, split in zip(dates, splits, strict=True) if split == name] for name in set(splits)}
    order = [of[name] for name in ("train", "validation", "test") if name in of]
    assert len(order) == 2 + (sizes.validation > 0)
    for earlier, later in pairwise(order):
        assert max(earlier) < min(later)
    assert splits == time_split(dates, sizes)


def test_too_few_days() -> None:
    with pytest.raises(
        UserError, match=r"3 rows have only 1 different dates, too few for train, test, validation"
    ):
        time_split(days(1, 1, 1), Sizes(1, 1))
    with pytest.raises(UserError, match=r"2 different dates.*set --split\.validation 0, or"):
        time_split(days(1, 2, 2), Sizes(1, 1))
    assert time_split(days(1, 2, 2), Sizes(0, 1)) == ["train", "test", "test"]


def test_a_crowded_day_leaves_one_for_validation() -> None:
    # The cut nearest to six test rows is before the first 2, which would leave no date to validate on.
    assert time_split(days(1, 2, 2, 2, 2, 2, 3), Sizes(1, 6)) == ["train"] + ["validation"] * 5 + ["test"]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.99, 0.01)])
def test_shares_that_leave_nothing(validation: float, test: float) -> None:
    with pytest.raises(ValueError, match="leave no row to train on"):
        SplitConfig(validation=validation, test=test)


def test_half_rows() -> None:
    with pytest.raises(ValueError, match=r"split\.test is 1\.5: a share is below 1"):
        SplitConfig(test=1.5)
