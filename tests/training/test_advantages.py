"""Advantages by hand, and what holds for any rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlx_sumrl.config import GrpoConfig
from mlx_sumrl.training.advantages import FloatArray, group_advantages

SUM = GrpoConfig(loss="grpo")
UNSCALED = GrpoConfig(loss="grpo", scale_advantages="none")
EACH = GrpoConfig(loss="grpo", normalize_rewards="each")
ALL = (SUM, UNSCALED, EACH, GrpoConfig(loss="dr_grpo"), GrpoConfig(loss="dr_grpo", normalize_rewards="each"))


def advantages(rewards_PG: object, options: GrpoConfig) -> FloatArray:
    """Of one reward with weight 1."""
    return group_advantages(np.array(rewards_PG, np.float64)[..., None], np.ones(1), options).values_PG


def test_by_hand() -> None:
    # Mean 2, deviations -1, -1, 2: squares 1 + 1 + 4, the population's deviation is the root of 6 / 3.
    root = math.sqrt(2)
    np.testing.assert_allclose(advantages([[1, 1, 4]], SUM), [[-1 / root, -1 / root, 2 / root]], rtol=1e-12)
    np.testing.assert_allclose(advantages([[1, 1, 4]], UNSCALED), [[-1, -1, 2]], rtol=1e-12)


@pytest.mark.parametrize("each", ["sum", "each"])
def test_dr_grpo_is_never_divided(each: str) -> None:
    options = GrpoConfig(loss="dr_grpo", scale_advantages="group", normalize_rewards=each)
    np.testing.assert_allclose(advantages([[1, 1, 4]], options), [[-1, -1, 2]], rtol=1e-12)


def test_groups_are_compared_with_themselves_only() -> None:
    both = advantages([[0, 1], [100, 300]], SUM)
    np.testing.assert_allclose(both, [[-1, 1], [-1, 1]], rtol=1e-12)


def test_a_group_without_spread_gives_nothing_and_is_counted() -> None:
    result = group_advantages(np.array([[[1.0], [2.0]], [[5.0], [5.0]], [[0.1], [0.1]]]), np.ones(1), SUM)
    np.testing.assert_allclose(result.values_PG, [[-1, 1], [0, 0], [0, 0]])
    assert result.zero_spread == 2


def test_rewards_are_summed_before_or_after() -> None:
    # Two rewards, weights 1 and 3 already in: the second is the larger, in the sum it decides alone.
    contributions = np.array([[[0.0, 30.0], [1.0, 0.0]]])
    weights = np.array([1.0, 3.0])
    summed = group_advantages(contributions, weights, SUM).values_PG
    np.testing.assert_allclose(summed, [[1, -1]])
    # One by one each is worth its weight, whatever its spread: -1 + 3 and 1 - 3.
    each = group_advantages(contributions, weights, EACH).values_PG
    np.testing.assert_allclose(each, [[2, -2]])


def test_a_negative_weight_turns_a_reward_around() -> None:
    weights = np.array([-2.0])
    contributions = np.array([[1.0, 3.0]])[..., None] * weights
    np.testing.assert_allclose(group_advantages(contributions, weights, EACH).values_PG, [[2, -2]])
    np.testing.assert_allclose(group_advantages(contributions, weights, SUM).values_PG, [[1, -1]])


def test_a_weight_of_zero_teaches_nothing() -> None:
    contributions = np.array([[[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    for options in (SUM, EACH):
        with_it = group_advantages(contributions, np.array([1.0, 0.0]), options).values_PG
        without = group_advantages(contributions[..., :1], np.ones(1), options).values_PG
        np.testing.assert_allclose(with_it, without)


def test_rewards_that_cancel_teach_nothing() -> None:
    # What rounding leaves of -1.2247 + 1.2247 is no difference between completions.
    contributions = np.array([[[0.0, 0.2], [0.1, 0.1], [0.2, 0.0]]])
    for options in ALL:
        result = group_advantages(contributions, np.ones(2), options)
        assert not result.values_PG.any()
        assert result.zero_spread == 1


def test_a_reward_that_says_nothing_adds_nothing() -> None:
    nan = math.nan
    # One by one: 1 and 3 are compared with each other, mean 2, deviation 1; the third completion has no say.
    contributions = np.array([[[1.0], [3.0], [nan]]])
    np.testing.assert_allclose(group_advantages(contributions, np.ones(1), EACH).values_PG, [[-1, 1, 0]])
    # In the sum, a missing reward is worth 0.
    contributions = np.array([[[1.0, 2.0], [3.0, nan]]])
    np.testing.assert_allclose(group_advantages(contributions, np.ones(2), UNSCALED).values_PG, [[0, 0]])
    silent = np.full((1, 3, 2), nan)
    for options in ALL:
        assert group_advantages(silent, np.ones(2), options).zero_spread == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_infinite_rewards_are_refused(bad: float) -> None:
    for options in ALL:
        with pytest.raises(ValueError, match="finite"):
            group_advantages(np.array([[[1.0], [bad]]]), np.ones(1), options)


# Multiples of 1 / 64 add without rounding, so that a constant really leaves the differences as they were.
exact = st.integers(-6400, 6400).map(lambda n: n / 64)
some_options = st.sampled_from(ALL)


@st.composite
def rewards(draw: st.DrawFn, elements: st.SearchStrategy[float] = exact) -> FloatArray:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 9), st.integers(1, 3)))
    return draw(arrays(np.float64, shape, elements=elements))


@given(rewards(st.floats(-1e6, 1e6)), some_options)
def test_a_group_sums_to_zero(contributions: FloatArray, options: GrpoConfig) -> None:
    values = group_advantages(contributions, np.ones(contributions.shape[-1]), options).values_PG
    size = max(1.0, np.abs(values).max()) + (0 if options is SUM else np.abs(contributions).max())
    assert np.abs(values.sum(axis=-1)).max() <= 1e-9 * size * values.shape[1]


@given(rewards(), st.integers(-500, 500), some_options)
def test_a_constant_changes_nothing(contributions: FloatArray, constant: int, options: GrpoConfig) -> None:
    weights = np.ones(contributions.shape[-1])
    before = group_advantages(contributions, weights, options)
    after = group_advantages(contributions + constant, weights, options)
    np.testing.assert_allclose(after.values_PG, before.values_PG, rtol=1e-6, atol=1e-9)
    assert after.zero_spread == before.zero_spread


@given(rewards(), st.floats(1e-2, 1e3))
def test_a_scaled_advantage_has_no_unit(contributions: FloatArray, factor: float) -> None:
    weights = np.ones(contributions.shape[-1])
    for options, scaled in ((SUM, weights), (EACH, weights)):
        before = group_advantages(contributions, scaled, options).values_PG
        after = group_advantages(contributions * factor, scaled, options).values_PG
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-9)


@given(rewards(), st.randoms(use_true_random=False), some_options)
def test_the_order_of_completions_does_not_matter(
    contributions: FloatArray, random: object, options: GrpoConfig
) -> None:
    order = list(range(contributions.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    weights = np.ones(contributions.shape[-1])
    values = group_advantages(contributions, weights, options).values_PG
    shuffled = group_advantages(contributions[:, order], weights, options).values_PG
    np.testing.assert_allclose(shuffled, values[:, order], rtol=1e-9, atol=1e-12)


@given(
    st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=1, max_size=6),
    st.integers(2, 9),
    some_options,
)
def test_groups_without_spread_are_counted(
    constants: list[float | None], size: int, options: GrpoConfig
) -> None:
    # A number: every completion of the group earned it. None: they differ.
    spread = np.arange(size, dtype=np.float64)
    groups = [spread if constant is None else np.full(size, constant) for constant in constants]
    result = group_advantages(np.stack(groups)[..., None], np.ones(1), options)
    assert result.zero_spread == sum(constant is not None for constant in constants)
    for constant, values in zip(constants, result.values_PG, strict=True):
        assert values.any() == (constant is None)


@given(rewards())
def test_scaled_groups_have_deviation_one_or_none(contributions: FloatArray) -> None:
    values = group_advantages(contributions, np.ones(contributions.shape[-1]), SUM).values_PG
    for deviation in values.std(axis=-1):
        assert deviation == 0 or deviation == pytest.approx(1, abs=1e-9)
