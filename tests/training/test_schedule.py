"""The learning rate by hand, and its bounds for any options."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.training.schedule import learning_rate


def rates(total: int, peak: float = 1.0, **options: object) -> list[float]:
    config = OptimizerConfig(**options)
    return [learning_rate(config, step, total, peak) for step in range(total)]


def test_constant() -> None:
    assert rates(4) == [1, 1, 1, 1]


def test_warm_up_rises_in_a_line() -> None:
    # Four steps of a fifth each, and the peak at step 4.
    assert rates(7, warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_linear_ends_at_its_share() -> None:
    assert rates(5, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert rates(5, schedule="linear", final_share=0.2) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    # After a warm-up of 1, the line has 4 steps left: from step 1 to step 4.
    assert rates(5, schedule="linear", warmup_steps=1) == pytest.approx([0.5, 1, 2 / 3, 1 / 3, 0])


def test_cosine_by_hand() -> None:
    # Half a turn in 4 steps: cos 0, 45, 90, 135 and 180 degrees, from [-1, 1] to [0, 1].
    root = math.sqrt(0.5)
    assert rates(5, schedule="cosine") == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2, 0])
    assert rates(5, schedule="cosine", final_share=0.5)[2] == pytest.approx(0.75)


def test_inverse_sqrt_by_hand() -> None:
    # Warm-up of 3 and the peak at the fourth step; at the sixteenth half of it is left.
    assert rates(17, schedule="inverse_sqrt", warmup_steps=3)[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rates(17, schedule="inverse_sqrt", warmup_steps=3)[15] == pytest.approx(0.5)
    assert rates(4, schedule="inverse_sqrt") == pytest.approx([1, math.sqrt(1 / 2), math.sqrt(1 / 3), 0.5])
    assert rates(4, schedule="inverse_sqrt", final_share=0.6)[2:] == pytest.approx([0.6, 0.6])


def test_stable_decay_by_hand() -> None:
    # Two fifths of ten steps: the last four fall, from the sixth at the peak to nothing at the tenth.
    found = rates(10, schedule="stable_decay", decay_share=0.4)
    assert found == pytest.approx([1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    found = rates(10, schedule="stable_decay", decay_share=0.4, warmup_steps=2, final_share=0.5)
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5])
    assert rates(5, schedule="stable_decay", decay_share=1.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    # However small its share is, the last step has the rate of the end.
    assert rates(5, schedule="stable_decay", decay_share=0.01) == [1, 1, 1, 1, 0]


def test_a_warm_up_by_its_share() -> None:
    assert rates(10, warmup_ratio=0.3) == rates(10, warmup_steps=3)
    assert rates(10, warmup_ratio=0.25) == rates(10, warmup_steps=3)  # rounded up
    assert rates(30, warmup_ratio=0.1) == rates(30, warmup_steps=3)  # though 0.1 * 30 is a little more than 3
    with pytest.raises(ValueError, match=r"warmup_steps 3 and warmup_ratio 0\.1"):
        OptimizerConfig(warmup_steps=3, warmup_ratio=0.1)


def test_another_peak_scales_all_of_it() -> None:
    options = {"schedule": "cosine", "warmup_steps": 3, "final_share": 0.1}
    assert rates(9, peak=3e-6, **options) == pytest.approx([3e-6 * rate for rate in rates(9, **options)])


def test_a_warm_up_longer_than_the_run_never_peaks() -> None:
    assert rates(3, warmup_steps=10) == pytest.approx([0.25, 0.5, 0.75])


schedules = st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt", "stable_decay"])


@given(
    schedules,
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(1e-8, 1),
    st.integers(1, 200),
    st.integers(0, 300),
)
def test_bounds(schedule: str, warmup: int, share: float, peak: float, total: int, step: int) -> None:
    options = OptimizerConfig(schedule=schedule, warmup_steps=warmup, final_share=share)
    rate = learning_rate(options, step, total, peak)
    # Positive while it warms up, never above the peak, never below its last share afterwards.
    assert 0 <= rate <= peak * (1 + 1e-12)
    assert rate > 0 if step < min(warmup, total) else rate >= peak * share * (1 - 1e-12)


@given(schedules, st.integers(0, 20), st.floats(0, 1), st.integers(3, 60))
def test_up_once_and_then_down(schedule: str, warmup: int, share: float, total: int) -> None:
    found = rates(total, schedule=schedule, warmup_steps=warmup, final_share=share)
    top = min(warmup, total)
    rising, falling = found[: top + 1], found[top:]
    assert rising == sorted(rising)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    if top < total:
        assert found[top] == pytest.approx(1)
    if top < total - 1 and schedule not in ("constant", "inverse_sqrt"):
        assert found[-1] == pytest.approx(share, abs=1e-12)
