"""The order of examples, by enumeration of small cases."""

from __future__ import annotations

from collections import Counter
from itertools import chain, product

import pytest

from mlx_sumrl.data.order import batch_indices, epoch_order

CASES = [(n, b) for n, b in product(range(1, 14), range(1, 14)) if b <= n]


@pytest.mark.parametrize(("examples", "batch"), CASES)
def test_epochs_are_permutations_and_batches_have_no_repeats(examples: int, batch: int) -> None:
    steps = [batch_indices(3, examples, batch, step) for step in range(5 * examples)]
    for indices in steps:
        assert len(indices) == batch == len(set(indices))
    stream = list(chain.from_iterable(steps))
    for epoch in range(5 * batch):
        assert sorted(stream[epoch * examples : (epoch + 1) * examples]) == list(range(examples))
        assert stream[epoch * examples : (epoch + 1) * examples] == list(
            epoch_order(3, examples, batch, epoch)
        )


@pytest.mark.parametrize(("examples", "batch"), [(1, 4), (3, 7), (5, 6)])
def test_few_examples_are_repeated_evenly(examples: int, batch: int) -> None:
    for step in range(20):
        counts = Counter(batch_indices(0, examples, batch, step))
        assert sum(counts.values()) == batch
        assert set(counts) == set(range(examples))
        assert max(counts.values()) - min(counts.values()) <= 1
    # Nor is one left behind in the long run: the remainders go through whole epochs too.
    together = Counter(chain.from_iterable(batch_indices(0, examples, batch, s) for s in range(examples)))
    assert set(together.values()) == {batch}


def test_a_step_needs_no_other_step() -> None:
    forward = [batch_indices(1, 10, 4, step) for step in range(30)]
    assert [batch_indices(1, 10, 4, step) for step in reversed(range(30))] == forward[::-1]


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(epoch_order(seed, 20, 4, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_example_comes_first_about_as_often() -> None:
    # 3,000 epochs of 5 with batches that reach across: 600 expected, standard deviation 22.
    first = Counter(int(epoch_order(0, 5, 2, epoch)[0]) for epoch in range(3000))
    assert all(abs(first[i] - 600) < 110 for i in range(5))


@pytest.mark.parametrize("wrong", [(0, 0, 1, 0), (0, 1, 0, 0), (0, 1, 1, -1), (-1, 1, 1, 0)])
def test_wrong_arguments(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no batch"):
        batch_indices(*wrong)
