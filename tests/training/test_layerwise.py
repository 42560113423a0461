"""Block by block: the same gradient as of one graph, in the memory of one block, rounded once.

That it equals the plain path for every family and layout is in test_fast_equals_plain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.packing import pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training import layerwise
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch

from .models import flat
from .oracle import relative_error

HEAD = HeadOptions(10**8)
BLOCKS = "model.layers."
MakePolicy = Callable[..., Policy]


def micro_batch(seed: int, lengths: tuple[int, ...], prompt: int = 6) -> MicroBatch:
    """A weighted sum of the log-probabilities of completions of these lengths after one prompt."""
    rng = np.random.default_rng(seed)
    ids = [tuple(rng.integers(3, 48, n).tolist()) for n in (prompt, *lengths)]
    weights = mx.array(rng.normal(size=(len(lengths), max(lengths))).astype(np.float32))
    rows = pack([(ids[0], completion) for completion in ids[1:]], share_prompt=True)
    return MicroBatch(rows, lambda logprobs: ((logprobs * weights).sum(), {"tokens": rows.mask_BT.sum()}))


def gradient_of(policy: Policy, batches: list[MicroBatch], checkpointing: bool) -> BatchGradient:
    policy.options = policy.options.model_copy(update={"gradient_checkpointing": checkpointing})
    return batch_gradient(policy, batches, HEAD)


class TestMemory:
    """One micro-batch of 8 completions; what is counted is above weights and inputs, gradients taken off."""

    def peak(self, make_policy: MakePolicy, layers: int, checkpointing: bool) -> int:
        policy = make_policy(layers=layers)
        gradients = sum(array.nbytes for array in policy.weights().values())
        batch = micro_batch(0, (50,) * 8, prompt=50)
        gradient_of(policy, [batch], checkpointing)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        found = gradient_of(policy, [batch], checkpointing)
        peak = mx.get_peak_memory() - before
        assert found.gradients
        return peak - gradients

    def test_it_hardly_grows_with_the_layers(self, make_policy: MakePolicy) -> None:
        """A block more costs what it reads, 442 states of 32 float32; one graph keeps all that it computed.

        Measured: 4.7 MB with 2 blocks and 5.0 with 12; as one graph 6.0 and 24.8.
        """
        short, deep = (self.peak(make_policy, layers, True) for layers in (2, 12))
        short_graph, deep_graph = (self.peak(make_policy, layers, False) for layers in (2, 12))
        state = 442 * 32 * 4
        assert deep - short < 10 * state * 1.2
        assert deep_graph - short_graph > 5 * (deep - short)
        assert deep < 0.35 * deep_graph


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_it_is_the_gradient_of_one_graph(make_policy: MakePolicy, tuning: str, dtype: mx.Dtype) -> None:
    policy = make_policy(tuning=tuning, dtype=dtype, layers=3)
    batches = [micro_batch(0, (4, 7, 1)), micro_batch(1, (5,)), micro_batch(2, (1, 1))]
    graph, found = (gradient_of(policy, batches, checkpointing) for checkpointing in (False, True))
    assert found.loss == pytest.approx(graph.loss, rel=1e-5 if dtype == mx.float32 else 1e-2)
    assert found.sums == graph.sums == {"tokens": 19.0}
    assert list(found.gradients) == list(policy.weights())
    assert {n: a.dtype for n, a in found.gradients.items()} == {
        n: a.dtype for n, a in policy.weights().items()
    }
    tolerance = 1e-5 if dtype == mx.float32 else 0.03
    assert relative_error(flat(found.gradients), flat(graph.gradients)) < tolerance


def test_bfloat16_gradients_are_added_in_float32_and_rounded_once(make_policy: MakePolicy) -> None:
    """40 micro-batches of a row each: their gradients are in bfloat16, their sum is not until the end."""
    policy = make_policy(dtype=mx.bfloat16)
    batches = [micro_batch(seed, (5,)) for seed in range(40)]
    found = gradient_of(policy, batches, True).gradients
    alone = [gradient_of(policy, [batch], True).gradients for batch in batches]
    same = []
    for name in [name for name in found if name.startswith(BLOCKS)]:
        assert found[name].dtype == alone[0][name].dtype == mx.bfloat16
        exact = sum(np.array(one[name].astype(mx.float32), np.float64) for one in alone)
        once = np.array(mx.array(exact.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32))
        numbers = np.array(found[name].astype(mx.float32))
        size = sum(np.abs(np.array(one[name].astype(mx.float32))) for one in alone)
        # A cotangent of the head may round the other way in a larger product.
        assert (np.abs(numbers - once) <= 2.0**-7 * np.abs(once) + 1e-3 * size).all(), name
        same.append((numbers == once).mean())
        rounded = alone[0][name]
        for one in alone[1:]:
            rounded = rounded + one[name]
        errors = [np.linalg.norm(x - exact) for x in (numbers, np.array(rounded.astype(mx.float32)))]
        assert errors[0] < 0.5 * errors[1], name  # rounded 40 times instead
    assert np.mean(same) > 0.9


def test_blocks_below_the_last_adapter_are_not_run_backward(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    backward = layerwise._Block.backward

    def counting(self: Any, *arguments: Any) -> Any:
        ran.append(self.index)
        return backward(self, *arguments)

    monkeypatch.setattr(layerwise._Block, "backward", counting)
    batches = [micro_batch(0, (4, 7)), micro_batch(1, (5, 2))]
    for adapted, expected in ((2, [4, 3]), (1, [4]), (-1, [4, 3, 2, 1, 0])):
        policy = make_policy(tuning="lora", layers=5, adapted=adapted)
        ran.clear()
        found = gradient_of(policy, batches, True)
        assert ran == expected
        graph = gradient_of(policy, batches, False)
        assert found.gradients.keys() == graph.gradients.keys() == policy.weights().keys()
        assert relative_error(flat(found.gradients), flat(graph.gradients)) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_the_same_both_times(make_policy: MakePolicy, checkpointing: bool) -> None:
    """The gradient against central differences of its own loss, each with the same random numbers."""
    policy = make_policy(tuning="lora", dropout=0.5, layers=3)
    batches = [micro_batch(0, (4, 7, 3)), micro_batch(1, (5, 2))]
    start = policy.snapshot()
    rng = np.random.default_rng(0)
    direction = {n: mx.array(rng.normal(size=a.shape).astype(np.float32)) for n, a in start.items()}

    def at(step: float, seed: int = 3) -> BatchGradient:
        policy.set_weights({name: array + step * direction[name] for name, array in start.items()})
        mx.random.seed(seed)
        return gradient_of(policy, batches, checkpointing)

    here = at(0.0)
    assert at(0.0).loss == here.loss
    assert abs(at(0.0, seed=4).loss - here.loss) > 1e-3 * abs(here.loss)  # there is dropout
    slope = sum((here.gradients[name] * direction[name]).sum().item() for name in start)
    h = 2e-3
    measured = (8 * (at(h).loss - at(-h).loss) - (at(2 * h).loss - at(-2 * h).loss)) / (12 * h)
    assert slope == pytest.approx(measured, rel=1e-2)
