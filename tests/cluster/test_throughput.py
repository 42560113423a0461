"""Speeds and shares against what is counted by hand or by trying every assignment."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.throughput import HALF_LIFE_S, Throughput, shares, speeds_of


def test_a_speed_is_tokens_over_busy_time() -> None:
    one = Throughput()
    assert one.measured is None
    one.asked(100.0, 50, speed=1.0)
    one.answered(100.1, 50, 60, speed=1.0)
    assert one.measured == pytest.approx(600)
    # Idle from 100.1 to 200: not held against it.
    one.asked(200.0, 50, speed=1.0)
    one.asked(200.0, 50, speed=1.0)
    one.answered(200.1, 50, 60, speed=1.0)
    one.answered(200.2, 50, 60, speed=1.0)
    assert one.measured == pytest.approx(600, rel=1e-2)
    assert one.in_flight == 0


def test_old_measurements_fade() -> None:
    one = Throughput()
    one.asked(0.0, 1, speed=1.0)
    one.answered(HALF_LIFE_S, 1, 100 * HALF_LIFE_S, speed=1.0)
    assert one.measured == pytest.approx(100)
    one.asked(1000.0, 1, speed=1.0)
    one.answered(1000.0 + HALF_LIFE_S, 1, 400 * HALF_LIFE_S, speed=1.0)
    # A half life later, the first half minute counts half: (0.5 * 100 + 400) / 1.5 a second.
    assert one.measured == pytest.approx((0.5 * 100 + 400) / 1.5)


def test_failures_are_time_without_tokens_and_withdrawals_are_nothing() -> None:
    one = Throughput()
    one.asked(0.0, 10, speed=1.0)
    one.answered(1.0, 10, 10, speed=1.0)
    one.asked(5.0, 10, speed=1.0)
    one.withdrawn(9.0, 10, speed=1.0)
    assert one.measured == pytest.approx(10)
    one.asked(10.0, 10, speed=1.0)
    one.answered(11.0, 10, 0.0, speed=1.0)
    assert one.measured == pytest.approx(5, rel=2e-2)


def test_who_is_not_measured_is_taken_for_the_average() -> None:
    fast, slow, new = Throughput(), Throughput(), Throughput()
    for one, tokens in ((fast, 300), (slow, 100)):
        one.asked(0.0, 1, speed=1.0)
        one.answered(1.0, 1, tokens, speed=1.0)
    assert speeds_of([fast, new, slow]) == pytest.approx([300, 200, 100])
    assert speeds_of([new, new], guess=7.0) == [7.0, 7.0]


def test_when_it_is_done_with_more() -> None:
    one = Throughput()
    assert one.finish_at(50.0, 100, speed=10.0) == 60.0
    assert one.asked(50.0, 100, speed=10.0) == 60.0
    assert one.finish_at(55.0, 20, speed=10.0) == 62.0
    assert one.finish_at(70.0, 20, speed=10.0) == 72.0  # late: nothing is known but that it is not done


speeds = st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=1, max_size=3)


@given(
    speeds=speeds,
    pieces=st.integers(1, 7),
    busy=st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=3, max_size=3),
)
def test_shares_end_as_early_as_any_assignment(speeds: list[float], pieces: int, busy: list[float]) -> None:
    """Equal pieces: handing each to who ends first is optimal; here against all assignments there are."""
    start = busy[: len(speeds)]

    def end(chosen: tuple[int, ...] | list[int]) -> float:
        ends = [start[one] + chosen.count(one) * 1.0 / speeds[one] for one in set(chosen)]
        return max(ends)

    best = min(end(chosen) for chosen in itertools.product(range(len(speeds)), repeat=pieces))
    assert end(shares(start, speeds, [1.0] * pieces)) == pytest.approx(best)


def test_unequal_speeds_share_in_proportion() -> None:
    chosen = shares([0.0, 0.0, 0.0], [4.0, 4.0, 1.0], [1.0] * 90)
    assert [chosen.count(one) for one in range(3)] == [40, 40, 10]
