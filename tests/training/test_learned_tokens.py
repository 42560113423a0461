"""Tokens that are not learned, and smoothed targets: the loss and its gradient against numpy and rows one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.policy.packing import learning, pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.grpo import TrainingRow
from mlx_sumrl.training.sft import learned_tokens, supervised_gradient, supervised_loss
from tests.families import full_logits, log_softmax

from .models import completion, flat, moved, tiny_policy, weighted_gradient
from .oracle import relative_error

MakePolicy = Callable[..., Policy]
MASKS = ("1", "0001", "1101", "10010110", "0100", "111111")
"""Of six rows; one ends in tokens that are not learned, as a conversation cut in its user's turn does."""


def make_rows(vocabulary: int = 48) -> list[SupervisedExample]:
    rng = np.random.default_rng(0)
    return [
        SupervisedExample(
            f"row {i}",
            tuple(int(x) for x in rng.integers(3, vocabulary, 2 + 3 * i % 7)),
            tuple(int(x) for x in rng.integers(3, vocabulary, len(mask))),
            tuple(mark == "1" for mark in mask),
        )
        for i, mask in enumerate(MASKS)
    ]


def by_hand(policy: Policy, rows: Sequence[SupervisedExample], smoothing: float) -> float:
    """Of each learned token the cross-entropy to its smoothed target, in float64 and a row at a time."""
    nats = []
    for row in rows:
        table = log_softmax(full_logits(policy, [*row.prompt_ids, *row.answer_ids]))
        for t, (token, learned) in enumerate(zip(row.answer_ids, row.trained, strict=True)):
            if learned:
                target = np.full(table.shape[1], smoothing / table.shape[1])
                target[token] += 1 - smoothing
                nats.append(-(target * table[len(row.prompt_ids) - 1 + t]).sum())
    return float(np.mean(nats))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_gradient_of_the_learned_tokens_alone(
    make_policy: MakePolicy, tuning: str, checkpointing: bool
) -> None:
    policy = make_policy(tuning=tuning, checkpointing=checkpointing)
    rows = make_rows()
    tokens = sum(mask.count("1") for mask in MASKS)
    assert learned_tokens(rows) == tokens
    plain = [TrainingRow(row.prompt_ids, completion(row.answer_ids, []), 1.0) for row in rows]
    weights = [[-learned / tokens for learned in row.trained] for row in rows]
    truth = flat(weighted_gradient(policy, plain, weights))
    for size in (1, 20, 4096):
        found = supervised_gradient(policy, rows, size)
        assert found.loss == pytest.approx(by_hand(policy, rows, 0.0), rel=1e-5)
        assert found.sums["tokens"] == tokens
        assert relative_error(flat(found.gradients), truth) < 1e-5, size
        assert supervised_loss(policy, rows, size) == pytest.approx(found.loss, rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_smoothed_loss_and_its_slope(make_policy: MakePolicy, tuning: str, checkpointing: bool) -> None:
    """Its gradient along a direction is what the loss, by hand, changes along it."""
    policy = make_policy(tuning=tuning, checkpointing=checkpointing)
    rows = make_rows()
    found = {size: supervised_gradient(policy, rows, size, 0.2) for size in (20, 4096)}
    for one in found.values():
        assert one.loss == pytest.approx(by_hand(policy, rows, 0.2), rel=1e-5)
    assert by_hand(policy, rows, 0.2) != pytest.approx(by_hand(policy, rows, 0.0), rel=1e-2)
    assert relative_error(flat(found[20].gradients), flat(found[4096].gradients)) < 1e-5
    assert supervised_loss(policy, rows, 20, 0.2) == pytest.approx(found[20].loss, rel=1e-5)

    own, step = policy.weights(), 1e-3
    ahead = moved(own, step, seed=7)
    behind = {name: 2 * own[name] - ahead[name] for name in own}
    direction = (flat(ahead) - flat(own)) / step
    losses = []
    for weights in (ahead, behind):
        policy.set_weights(weights)
        losses.append(by_hand(policy, rows, 0.2))
    measured = (losses[0] - losses[1]) / (2 * step)
    assert flat(found[4096].gradients) @ direction == pytest.approx(measured, rel=2e-3)


def test_what_is_not_learned_teaches_nothing(make_policy: MakePolicy) -> None:
    """Other tokens after the last learned one change nothing; those before are read, so they do."""
    policy = make_policy()
    [row] = [row for row in make_rows() if row.trained == (False, True, False, False)]
    after = SupervisedExample(row.id, row.prompt_ids, (*row.answer_ids[:2], 9, 11), row.trained)
    before = SupervisedExample(row.id, row.prompt_ids, (40, *row.answer_ids[1:]), row.trained)
    loss = supervised_gradient(policy, [row], 4096).loss
    assert supervised_gradient(policy, [after], 4096).loss == loss
    assert supervised_gradient(policy, [before], 4096).loss != pytest.approx(loss, rel=1e-3)


def test_dropout_is_off_where_a_loss_is_measured() -> None:
    """A policy that has only been made is in training mode; its loss is not random all the same."""
    policy = tiny_policy(tuning="lora", dropout=0.5)
    policy.model.train()
    assert supervised_loss(policy, make_rows(), 4096) == supervised_loss(policy, make_rows(), 4096)
    assert policy.model.training
    assert supervised_loss(policy, make_rows(), 4096) == pytest.approx(
        by_hand(policy, make_rows(), 0), rel=1e-5
    )


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=9).filter(any), min_size=1, max_size=6),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_places_of_learned_tokens(learned: list[list[bool]], in_pieces: bool) -> None:
    """Each learned token is where it was, with its own target and hidden state; the others are 0."""
    rows = [
        (tuple(range(1, 3 + i)), tuple(range(100 * i, 100 * i + len(row)))) for i, row in enumerate(learned)
    ]
    whole = pack(rows, False, in_pieces)
    found = learning(whole, learned)
    width = max(map(len, learned))
    mask = np.array([[*row, *[False] * (width - len(row))] for row in learned])
    np.testing.assert_array_equal(np.array(found.mask_BT), mask)
    for name in ("targets_N", "positions_N"):
        before, after = getattr(whole, name), getattr(found, name)
        assert after.size == mask.sum()
        expected = np.where(mask, np.array(whole.by_row(before + 1)), 0)
        np.testing.assert_array_equal(np.array(found.by_row(after + 1)), expected)
