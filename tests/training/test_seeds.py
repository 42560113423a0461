"""Derived seeds repeat, and differ with everything they are derived from."""

from __future__ import annotations

from mlx_sumrl.training.seeds import derived_seed


def test_every_argument_counts() -> None:
    arguments = [
        (0, "rollouts", 0),
        (1, "rollouts", 0),
        (0, "rollouts", 1),
        (0, "dropout", 0),
        (0, "rollouts", 1, 2),
        (0, "rollouts", 2, 1),
    ]
    assert len({derived_seed(*some) for some in arguments}) == len(arguments)


def test_the_same_arguments_give_the_same_seed() -> None:
    assert derived_seed(3, "rollouts", 5) == derived_seed(3, "rollouts", 5)


def test_many_steps_stay_apart_and_in_range() -> None:
    seeds = [derived_seed(0, "rollouts", step) for step in range(2000)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == len(seeds)  # by chance two of 2,000 meet in one of 1,000 runs; not in this one
