"""Packed rows against the plain path: the same log-probabilities, for every family and any layout."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.policy import attention, head, packing
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import ALIVE, HeadOptions
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.mlx_internals import ATTENTION
from mlx_sumrl.policy.packing import Row, pack
from mlx_sumrl.policy.policy import Policy
from tests.families import FAMILIES, completion_truth, randomize_adapters, write_model

from .row_strategies import grouped_rows

BUDGETS = (ALIVE * 4 * 64 * 5, 10**8)
WHOLE = HeadOptions(10**8)


@cache
def policy_of(family: str, tuning: str = "full", dtype: str = "float32") -> Policy:
    with TemporaryDirectory() as folder:
        path = write_model(Path(folder) / family, family)
        policy = load_policy(PolicyConfig(model=str(path), tuning=tuning, dtype=dtype))
        mx.eval(policy.model.parameters())  # before the files go
    if tuning != "full":
        randomize_adapters(policy)
    return policy


def plain(policy: Policy, rows: list[Row], **filters: float) -> np.ndarray:
    batch = token_batch([prompt for prompt, _ in rows], [completion for _, completion in rows])
    return np.array(completion_logprobs(policy.model, batch, **filters))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(
    rows=grouped_rows(),
    share_prompt=st.booleans(),
    differentiable=st.booleans(),
    budget=st.sampled_from(BUDGETS),
    scores=st.sampled_from([1, 500, 1 << 18]),
    positions=st.sampled_from([1, 2, 5, 192]),
    temperature=st.sampled_from([1.0, 0.7]),
)
def test_values_are_those_of_the_plain_path(
    family: str,
    rows: list[Row],
    share_prompt: bool,
    differentiable: bool,
    budget: int,
    scores: int,
    positions: int,
    temperature: float,
) -> None:
    policy = policy_of(family)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "POSITIONS", positions)
        packed = pack(rows, share_prompt, in_pieces=True)
        patch.setattr(head, "NARROWEST", 64)
        patch.setattr(attention, "SCORES", scores)
        found = packed_logprobs(policy.model, packed, HeadOptions(budget, temperature), differentiable)
        mx.eval(found)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(found, plain(policy, rows, temperature=temperature), atol=2e-5)
    assert not np.array(found)[np.array(packed.mask_BT) == 0].any()


ROWS: list[Row] = [
    ((5, 6, 7), (20, 21, 22, 2)),
    ((9, 8), (2,)),
    ((5, 6, 7), (30, 2)),
    ((9, 8), (31, 32, 33, 34, 35, 36, 37, 2)),
    ((11,), (40, 41, 2)),
    ((5, 6, 7), (20, 21, 2)),
]


@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("filters", [{"top_k": 20}, {"temperature": 0.8, "top_p": 0.9, "top_k": 50}])
@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_each_row_by_itself(
    family: str, tuning: str, filters: dict[str, float], share_prompt: bool
) -> None:
    """Filters and all, against numpy's float64."""
    policy = policy_of(family, tuning)
    arguments = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | filters
    for budget in BUDGETS:
        found = np.array(
            packed_logprobs(policy.model, pack(ROWS, share_prompt), HeadOptions(budget, **filters))
        )
        for row, (prompt, completion) in zip(found, ROWS, strict=True):
            truth = completion_truth(policy, prompt, completion, **arguments)
            truth = np.where(np.isfinite(truth), truth, row[: len(completion)])  # filtered out: see the next
            np.testing.assert_allclose(row[: len(completion)], truth, atol=3e-5)
        np.testing.assert_allclose(found, plain(policy, ROWS, **filters), atol=3e-5)


@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_give_float32_values(family: str, share_prompt: bool) -> None:
    packed = pack(ROWS, share_prompt)
    found = packed_logprobs(policy_of(family, dtype="bfloat16").model, packed, WHOLE)
    assert found.dtype == mx.float32
    values = np.array(found)[np.array(packed.mask_BT) > 0]
    rounded = np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32))
    assert (values != rounded).mean() > 0.9  # really 24 bits, not 8 in a wider type
    np.testing.assert_allclose(found, plain(policy_of(family), ROWS), atol=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_of_a_group_do_not_see_each_other(family: str) -> None:
    """Others in the group, their number, their order and their padding change nothing."""
    policy = policy_of(family)
    prompt, own = (5, 6, 7), (20, 21, 22, 2)
    alone = np.array(packed_logprobs(policy.model, pack([(prompt, own)], True), WHOLE))[0]
    for others in ([(90, 91, 2)], [(90, 91, 92, 93, 94, 2), (3,)], [own, own]):
        rows = [(prompt, own), *((prompt, other) for other in others)]
        for order in (rows, rows[::-1]):
            found = np.array(packed_logprobs(policy.model, pack(order, True), WHOLE))
            np.testing.assert_allclose(found[order.index((prompt, own))][:4], alone, atol=1e-5)


def test_attention_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("lfm2")
    module = sys.modules[type(policy.model.layers[0]).__module__]
    before = dict(vars(module))
    packed_logprobs(policy.model, pack(ROWS, True), WHOLE)
    assert all(vars(module)[name] is value for name, value in before.items())

    def fail(*arrays: mx.array) -> mx.array:
        assert vars(module)[ATTENTION] is not before[ATTENTION]
        raise ZeroDivisionError

    monkeypatch.setattr("mlx_sumrl.policy.blocks.causal_attention", fail)
    with pytest.raises(ZeroDivisionError):
        packed_logprobs(policy.model, pack(ROWS, True), WHOLE)
    assert all(vars(module)[name] is value for name, value in before.items())
