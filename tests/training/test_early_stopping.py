"""Patience, by hand and as a property of any losses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.config import EarlyStoppingConfig
from mlx_sumrl.training.early_stopping import Verdict, verdict


def judged(*losses: float, patience: int | None = 2, min_delta: float = 0.0) -> Verdict:
    return verdict(losses, EarlyStoppingConfig(patience=patience, min_delta=min_delta))


def test_by_hand() -> None:
    assert judged() == Verdict(None, 0, False)
    assert judged(3.0) == Verdict(0, 0, False)
    assert judged(3.0, 2.0) == Verdict(1, 0, False)
    assert judged(3.0, 2.0, 2.5) == Verdict(1, 1, False)
    assert judged(3.0, 2.0, 2.5, 2.2) == Verdict(1, 2, True)
    assert judged(3.0, 2.0, 2.5, 1.9) == Verdict(3, 0, False)
    assert judged(3.0, 2.0, 2.0) == Verdict(
        1, 1, False
    )  # the same is no improvement, and the first of equals stays


def test_without_patience_it_never_ends() -> None:
    assert judged(1.0, *range(2, 50), patience=None) == Verdict(0, 48, False)


def test_small_steps_are_no_improvement_until_they_add_up_to_one() -> None:
    assert judged(3.0, 2.95, 2.91, min_delta=0.1) == Verdict(
        2, 2, True
    )  # the lowest is the lowest all the same
    assert judged(3.0, 2.95, 2.85, min_delta=0.1) == Verdict(2, 0, False)
    assert judged(3.0, 2.9, min_delta=0.1 + 1e-9).waited == 1


def test_a_loss_that_is_not_finite_is_none() -> None:
    assert judged(math.nan) == Verdict(None, 1, False)
    assert judged(math.nan, math.inf) == Verdict(None, 2, True)
    assert judged(math.nan, 2.0, math.nan) == Verdict(1, 1, False)


@given(
    st.lists(st.floats(0, 10) | st.just(math.nan), max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5]),
)
def test_any_losses(losses: list[float], patience: int, min_delta: float) -> None:
    options = EarlyStoppingConfig(patience=patience, min_delta=min_delta)
    found = verdict(losses, options)
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert (found.best is None) == (not finite)
    if found.best is not None:
        assert losses[found.best] == min(finite)
        assert min(finite) not in losses[: found.best]
    assert found.waited <= len(losses)
    assert found.stop == (found.waited >= patience)
    # One more that is far better than all makes it go on.
    assert verdict([*losses, -10.0], options) == Verdict(len(losses), 0, False)
    # One more that is worse than all counts.
    assert verdict([*losses, math.nan], options).waited == found.waited + 1


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_of_nothing_is_refused(patience: int) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        EarlyStoppingConfig(patience=patience)
