"""One batch has one gradient: however it is split, padded, shared or recomputed.

The truth: the whole model on one unpadded row at a time, its token gradients weighted with the derivatives of the
float64 oracle with respect to each log-probability. Tolerance: 1e-5 of the gradient's length, in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import GrpoConfig, SamplingConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.types import Group
from mlx_sumrl.training.advantages import Advantages
from mlx_sumrl.training.grpo import TrainingRow, grpo_gradient, training_rows

from . import oracle
from .models import STOP, completion, flat, logprobs_of, moved, random_rows, tiny_policy, weighted_gradient
from .oracle import LossSpec, Ragged, relative_error
from .tables import options_of

TOLERANCE = 1e-5
MAX_TOKENS = 7
WHOLE = 4096
"""Token positions of all rows together, and more; the smaller sizes below cut them into 2 to 12 parts."""
MakePolicy = Callable[..., Policy]
KINDS = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo")


def found(
    policy: Policy, rows: Sequence[TrainingRow], spec: LossSpec, **more: object
) -> tuple[float, np.ndarray]:
    options = GrpoConfig(**options_of(spec).model_dump() | more)
    gradient = grpo_gradient(policy, rows, options, SamplingConfig(max_tokens=MAX_TOKENS))
    return gradient.loss, flat(gradient.gradients)


def truth(
    policy: Policy, rows: Sequence[TrainingRow], spec: LossSpec, temperature: float = 1.0
) -> tuple[float, np.ndarray]:
    """Loss and gradient: d loss / d log p from the oracle, times d log p / d weights, row by row."""
    now = logprobs_of(policy, rows, temperature)
    reference = logprobs_of(reference_of(policy), rows, temperature)
    sampler = [list(row.completion.logprobs) for row in rows]
    lengths = [len(row) for row in now]

    def loss(numbers: oracle.Floats) -> float:
        bounds = np.cumsum([0, *lengths])
        ragged: Ragged = [numbers[a:b].tolist() for a, b in itertools.pairwise(bounds)]
        advantages = [row.advantage for row in rows]
        return oracle.loss(ragged, now, sampler, reference, advantages, spec, MAX_TOKENS)

    numbers = np.concatenate(now)
    slopes = oracle.finite_differences(loss, numbers)
    weights = [part.tolist() for part in np.split(slopes, np.cumsum(lengths)[:-1])]
    return loss(numbers), flat(weighted_gradient(policy, rows, weights, temperature))


def reference_of(policy: Policy) -> Policy:
    """A model of its own with the reference's weights; below adapters, the base that the same seed gives."""
    other = tiny_policy()
    if policy.reference is not None:
        other.set_weights(policy.reference)
    return other


def trained_policy(make_policy: MakePolicy, tuning: str, checkpointing: bool = False) -> Policy:
    """A policy with a reference of its own: a moved copy for full training, its base for adapters."""
    policy = make_policy(tuning=tuning, checkpointing=checkpointing)
    if tuning == "full":
        policy.reference = moved(policy.weights(), 0.05, seed=9)
    return policy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_is_that_of_rows_one_by_one(
    make_policy: MakePolicy, kind: str, tuning: str, beta: float
) -> None:
    policy = trained_policy(make_policy, tuning)
    rows = random_rows(policy, staleness=0.5)
    spec = LossSpec(kind, beta=beta)
    loss, gradient = truth(policy, rows, spec)
    for share_prompt in (False, True):
        value, split = found(policy, rows, spec, share_prompt=share_prompt, micro_batch_tokens=50)
        assert value == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert relative_error(split, gradient) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_any_split_gives_the_same_gradient(make_policy: MakePolicy, kind: str, tuning: str) -> None:
    spec = LossSpec(kind, beta=0.3)
    policies = [trained_policy(make_policy, tuning, checkpointing) for checkpointing in (False, True)]
    rows = random_rows(policies[0], staleness=0.5)
    loss, gradient = found(policies[0], rows, spec, share_prompt=False, micro_batch_tokens=WHOLE)
    settings = [
        (1, 1, True),
        (0, 1, True),
        (1, 20, False),
        (0, 25, True),
        (1, 25, True),
        (0, 50, False),
        (1, WHOLE, False),
    ]
    for checkpointing, size, share_prompt in settings:
        value, split = found(
            policies[checkpointing], rows, spec, share_prompt=share_prompt, micro_batch_tokens=size
        )
        assert value == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert relative_error(split, gradient) < TOLERANCE, (checkpointing, size, share_prompt)


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("share_prompt", [False, True])
def test_every_size_checkpointed_or_not(
    make_policy: MakePolicy, tuning: str, checkpointing: bool, share_prompt: bool
) -> None:
    policy = trained_policy(make_policy, tuning, checkpointing)
    rows = random_rows(policy, staleness=0.5)
    spec = LossSpec("dapo", "truncate")
    loss, gradient = truth(policy, rows, spec)
    for size in (1, 14, 25, 50, WHOLE):
        value, split = found(policy, rows, spec, share_prompt=share_prompt, micro_batch_tokens=size)
        assert value == pytest.approx(loss, rel=1e-5, abs=1e-6)
        assert relative_error(split, gradient) < TOLERANCE, size


def test_the_order_of_rows_does_not_matter(make_policy: MakePolicy) -> None:
    policy = trained_policy(make_policy, "full")
    rows = random_rows(policy, staleness=0.5)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    spec = LossSpec("grpo", "mask", beta=0.1)
    for share_prompt in (False, True):
        _, gradient = found(policy, rows, spec, share_prompt=share_prompt, micro_batch_tokens=40)
        _, other = found(policy, shuffled, spec, share_prompt=share_prompt, micro_batch_tokens=40)
        assert relative_error(other, gradient) < TOLERANCE


def test_temperature_is_part_of_the_policy(make_policy: MakePolicy) -> None:
    policy = make_policy()
    rows = random_rows(policy, staleness=0.5)
    loss, gradient = truth(policy, rows, LossSpec("dapo"), temperature=0.7)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, temperature=0.7)
    for share_prompt in (False, True):
        options = GrpoConfig(loss="dapo", share_prompt=share_prompt, micro_batch_tokens=40)
        result = grpo_gradient(policy, rows, options, sampling)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert relative_error(flat(result.gradients), gradient) < TOLERANCE


def test_rows_without_an_advantage_still_count_in_the_mean(make_policy: MakePolicy) -> None:
    policy = make_policy()
    rows = random_rows(policy, staleness=0.0)
    active = [row for row in rows if row.advantage != 0]
    assert 0 < len(active) < len(rows)
    for kind in KINDS:
        _, everything = found(policy, rows, LossSpec(kind))
        _, alone = found(policy, active, LossSpec(kind))
        tokens = [sum(len(row.completion.token_ids) for row in part) for part in (active, rows)]
        share = tokens[0] / tokens[1] if kind in ("bnpo", "dapo") else len(active) / len(rows)
        assert relative_error(everything, alone * share) < TOLERANCE


def test_no_advantage_at_all_asks_for_nothing(make_policy: MakePolicy) -> None:
    policy = make_policy()
    rows = [TrainingRow(row.prompt_ids, row.completion, 0.0) for row in random_rows(policy, staleness=0.0)]
    result = grpo_gradient(policy, rows, GrpoConfig(), SamplingConfig())
    assert (result.loss, result.gradients) == (0.0, {})


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
def test_no_kl_gradient_where_policy_and_reference_are_one(make_policy: MakePolicy, tuning: str) -> None:
    policy = make_policy(tuning=tuning)
    policy.reference = policy.snapshot()
    rows = [TrainingRow(row.prompt_ids, row.completion, 0.0) for row in random_rows(policy, staleness=0.0)]
    for kl in ("k2", "k3", "k3_weighted"):
        value, gradient = found(policy, rows, LossSpec("bnpo", beta=1.0, kl=kl), micro_batch_tokens=20)
        assert abs(value) < 1e-6
        assert np.linalg.norm(gradient) < 1e-4  # of terms of size 1 that cancel


@pytest.mark.parametrize("share_prompt", [False, True])
def test_the_stop_token_is_trained(make_policy: MakePolicy, share_prompt: bool) -> None:
    """Every other token is masked out by its ratio: what is left is the gradient of log p(stop) alone."""
    policy = make_policy()
    prompt, ids = (5, 6, 7, 8), (9, 10, 11, STOP)
    now = logprobs_of(policy, [TrainingRow(prompt, completion(ids, [0.0] * 4), 1.0)])[0]
    sampler = [p - 5.0 for p in now[:-1]] + [now[-1]]
    row = TrainingRow(prompt, completion(ids, sampler), 1.5)
    _, gradient = found(policy, [row], LossSpec("dr_grpo", "mask"), share_prompt=share_prompt)
    stop_alone = flat(weighted_gradient(policy, [row], [[0.0, 0.0, 0.0, 1.0]]))
    assert np.linalg.norm(stop_alone) > 1e-3
    assert relative_error(gradient, -1.5 / MAX_TOKENS * stop_alone) < TOLERANCE


def test_a_completion_that_stops_at_once(make_policy: MakePolicy) -> None:
    # One token: nothing is ever read after the prompt, with a shared prompt and without.
    for checkpointing in (False, True):
        policy = make_policy(checkpointing=checkpointing)
        rows = [TrainingRow((5, 6, 7), completion([STOP], [-3.0]), advantage) for advantage in (1.0, -0.5)]
        spec = LossSpec("grpo", "none")
        loss, gradient = truth(policy, rows, spec)
        for share_prompt in (False, True):
            value, split = found(policy, rows, spec, share_prompt=share_prompt)
            assert value == pytest.approx(loss, rel=1e-5)
            assert relative_error(split, gradient) < TOLERANCE


def test_sums_for_the_metrics_do_not_depend_on_the_split(make_policy: MakePolicy) -> None:
    policy = trained_policy(make_policy, "full")
    rows = random_rows(policy, staleness=0.5)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS)
    whole = grpo_gradient(
        policy, rows, GrpoConfig(beta=0.1, micro_batch_tokens=WHOLE, share_prompt=False), sampling
    ).sums
    assert whole["tokens"] == sum(len(row.completion.token_ids) for row in rows)
    for size, share_prompt in ((1, False), (20, True), (50, False)):
        options = GrpoConfig(beta=0.1, micro_batch_tokens=size, share_prompt=share_prompt)
        assert grpo_gradient(policy, rows, options, sampling).sums == pytest.approx(whole, rel=1e-5)


def test_rows_keep_groups_and_advantages_together(make_policy: MakePolicy) -> None:
    rows = random_rows(make_policy(), staleness=0.0)
    prompts = list(dict.fromkeys(row.prompt_ids for row in rows))
    groups = []
    for prompt in prompts:
        own = tuple(row.completion for row in rows if row.prompt_ids == prompt)
        groups.append(Group(Example("row", prompt, "", "", ""), own))
    advantages = np.array([row.advantage for row in rows]).reshape(4, 3)
    assert training_rows(groups, Advantages(advantages, 0)) == rows
    apart = training_rows(groups, Advantages(advantages, 0, 10 * advantages))
    assert apart == [replace(row, stop_advantage=10 * row.advantage) for row in rows]
    for wrong in (advantages[:3], advantages[:, :2]):
        with pytest.raises(ValueError, match="zip"):
            training_rows(groups, Advantages(wrong, 0))


@pytest.mark.parametrize("size", [1, WHOLE])
def test_bfloat16_weights_add_their_gradients_in_float32(make_policy: MakePolicy, size: int) -> None:
    policy = make_policy(dtype=mx.bfloat16)
    rows = random_rows(policy, staleness=0.0)
    options = GrpoConfig(micro_batch_tokens=size, share_prompt=False)
    result = grpo_gradient(policy, rows, options, SamplingConfig(max_tokens=MAX_TOKENS))
    assert {array.dtype for array in result.gradients.values()} == {mx.float32 if size == 1 else mx.bfloat16}
    assert {array.dtype for array in policy.weights().values()} == {mx.bfloat16}
    reference = make_policy()
    reference.set_weights({name: array.astype(mx.float32) for name, array in policy.weights().items()})
    _, gradient = found(reference, rows, LossSpec("dapo", epsilon_high=None))
    # bfloat16 keeps 8 bits: a few rounding errors of 0.4 % each, through two blocks.
    assert relative_error(flat(result.gradients), gradient) < 0.05
