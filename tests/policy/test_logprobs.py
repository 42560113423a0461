"""Log-probabilities of completions: batches by hand, values against one row at a time in numpy's float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.policy import head
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.packing import pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.filters import filtered_logits
from tests.families import FAMILIES, completion_truth, log_softmax, randomize_adapters

Folder = Callable[[str], Path]

PROMPTS = [[5], [6, 7, 8, 9, 10, 11, 12], [13, 14, 15]]
COMPLETIONS = [[20, 21, 22, 23, 24, 2], [25, 2], [26, 27, 28, 2]]


def load(folder: Path, tuning: str = "full", dtype: str = "float32") -> Policy:
    return load_policy(PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype))


def test_a_batch_by_hand() -> None:
    batch = token_batch([[1, 2, 3], [4]], [[5, 6], [7, 8, 9]])
    assert batch.tokens_BL.tolist() == [[1, 2, 3, 5, 6], [4, 7, 8, 9, 0]]
    # Token 5 is predicted at position 2, where 3 stands; token 7 at position 0, where 4 stands.
    assert [row[:n] for row, n in zip(batch.positions_BT.tolist(), (2, 3), strict=True)] == [
        [2, 3],
        [0, 1, 2],
    ]
    assert batch.targets_BT.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert batch.mask_BT.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.mask_BT.dtype == mx.float32
    assert batch.tokens == 10
    wider = token_batch([[1, 2, 3], [4]], [[5, 6], [7, 8, 9]], pad_to=4)
    assert wider.targets_BT.tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert wider.mask_BT.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert wider.tokens_BL.tolist() == batch.tokens_BL.tolist()
    assert token_batch([[1]], [[2, 3, 4]], pad_to=2).targets_BT.tolist() == [[2, 3, 4]]


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [([], []), ([[1]], [[]]), ([[]], [[1]]), ([[1], [2]], [[3]]), ([[1]], [[2], [3]])],
)
def test_a_batch_that_makes_no_sense(prompts: list[list[int]], completions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"needs at least one row|argument 2"):
        token_batch(prompts, completions)


@pytest.mark.parametrize("filters", [(1.0, 1.0, 0), (0.7, 1.0, 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_each_row_by_itself(
    family: str, filters: tuple[float, float, int], family_folder: Folder
) -> None:
    policy = load(family_folder(family))
    temperature, top_p, top_k = filters
    options = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    found = np.array(completion_logprobs(policy.model, token_batch(PROMPTS, COMPLETIONS), **options))
    assert found.dtype == np.float32
    for row, prompt, completion in zip(found, PROMPTS, COMPLETIONS, strict=True):
        truth = completion_truth(policy, prompt, completion, **options)
        np.testing.assert_allclose(row[: len(completion)], truth, atol=1e-5)
        assert not row[len(completion) :].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str, family_folder: Folder) -> None:
    model = load(family_folder(family)).model
    together = np.array(completion_logprobs(model, token_batch(PROMPTS, COMPLETIONS, pad_to=11)))
    assert together.shape == (3, 11)
    for row, prompt, completion in zip(together, PROMPTS, COMPLETIONS, strict=True):
        [alone] = np.array(completion_logprobs(model, token_batch([prompt], [completion])))
        np.testing.assert_allclose(row[: len(completion)], alone, atol=1e-5)


@pytest.mark.parametrize("filters", [{}, {"top_k": 20}])
@pytest.mark.parametrize("head_tokens", [1, 5, 18])
def test_chunks_of_the_head_change_nothing(
    head_tokens: int, filters: dict[str, int], family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(family_folder("qwen2-untied")).model
    whole = np.array(completion_logprobs(model, token_batch(PROMPTS, COMPLETIONS), **filters))
    monkeypatch.setattr(head, "NARROWEST", 64)
    rows = pack(list(zip(PROMPTS, COMPLETIONS, strict=True)), share_prompt=True)
    options = HeadOptions(head.ALIVE * head_tokens * model.lm_head.weight.shape[0] * 4, **filters)
    np.testing.assert_allclose(np.array(packed_logprobs(model, rows, options)), whole, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_give_float32_values(family: str, family_folder: Folder) -> None:
    policy = load(family_folder(family), dtype="bfloat16")
    found = completion_logprobs(policy.model, token_batch(PROMPTS, COMPLETIONS))
    assert found.dtype == mx.float32
    values = np.array(found)[np.array(token_batch(PROMPTS, COMPLETIONS).mask_BT) > 0]
    rounded = np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32))
    assert (values != rounded).mean() > 0.9  # really 24 bits, not 8 in a wider type
    exact = np.array(
        completion_logprobs(load(family_folder(family)).model, token_batch(PROMPTS, COMPLETIONS))
    )
    np.testing.assert_allclose(np.array(found), exact, atol=0.3)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        # Probabilities .4, .3, .2, .1 of tokens 2, 0, 3, 1.
        ({"top_k": 1}, [2]),
        ({"top_k": 2}, [2, 0]),
        ({"top_k": 4}, [2, 0, 3, 1]),
        ({"top_k": 9}, [2, 0, 3, 1]),
        ({"top_p": 0.39}, [2]),
        ({"top_p": 0.41}, [2, 0]),
        ({"top_p": 0.69}, [2, 0]),
        ({"top_p": 0.71}, [2, 0, 3]),
        ({"top_p": 1e-6}, [2]),
        ({"top_k": 3, "top_p": 0.76}, [2, 0]),  # of .9 that top-k leaves: .444, .777
        ({"top_k": 3, "top_p": 0.79}, [2, 0, 3]),
        ({"top_k": 2, "top_p": 0.99}, [2, 0]),
    ],
)
def test_filters_by_hand(options: dict[str, float], kept: list[int]) -> None:
    probabilities = np.array([0.3, 0.1, 0.4, 0.2])
    logits = mx.array(np.log(probabilities)[None], dtype=mx.float32)
    arguments = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | options
    found = np.array(filtered_logits(logits, **arguments))[0]
    assert set(np.flatnonzero(np.isfinite(found))) == set(kept)
    np.testing.assert_allclose(found[kept], np.log(probabilities)[kept], atol=1e-6)
    # The token that is named stays in: it, and what was kept without it.
    again = np.array(filtered_logits(logits, **arguments, keep=mx.array([1])))[0]
    assert set(np.flatnonzero(np.isfinite(again))) == {*kept, 1}


def test_temperature_comes_before_top_p() -> None:
    # At temperature 2 the probabilities .7, .2, .1 become .523, .280, .198: .6 needs two tokens, not one.
    logits = mx.log(mx.array([[0.7, 0.2, 0.1]]))
    found = np.array(filtered_logits(logits, temperature=2.0, top_p=0.6, top_k=0))[0]
    assert np.isfinite(found).tolist() == [True, True, False]
    np.testing.assert_allclose(found[:2], np.log([0.7, 0.2]) / 2, atol=1e-6)


def test_ties_go_to_the_lower_id() -> None:
    found = np.array(filtered_logits(mx.zeros((1, 5)), temperature=1.0, top_p=1.0, top_k=2))[0]
    assert np.isfinite(found).tolist() == [True, True, False, False, False]


def test_a_token_that_a_filter_takes_out_still_has_a_value(family_folder: Folder) -> None:
    """Its value is that of the kept tokens and itself, for a policy that has moved on since it was drawn."""
    policy = load(family_folder("qwen2"))
    prompt = [5, 6, 7]
    logits = np.array(policy.model(mx.array([prompt])), dtype=np.float64)[0, -1]
    order = np.argsort(-logits)
    unlikely, kept = order[-1], order[:5]
    [[found]] = completion_logprobs(policy.model, token_batch([prompt], [[int(unlikely)]]), top_k=5).tolist()
    among = np.append(logits[kept], logits[unlikely])
    assert found == pytest.approx(log_softmax(among)[-1], abs=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("filters", [{}, {"temperature": 0.7, "top_k": 20}])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_model(
    family: str,
    filters: dict[str, float],
    packed: bool,
    family_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All weights, the embeddings of a tied head on both of their ways in, against autodiff without any chunks."""
    monkeypatch.setattr(head, "NARROWEST", 64)
    policy = load(family_folder(family))
    model, batch = policy.model, token_batch(PROMPTS, COMPLETIONS)
    weights_BT = mx.array(np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32))

    rows = pack(list(zip(PROMPTS, COMPLETIONS, strict=True)), share_prompt=True)
    options = HeadOptions(head.ALIVE * 5 * policy.vocabulary * 4, **filters)

    def chunked(model: nn.Module) -> mx.array:
        if packed:
            return (packed_logprobs(model, rows, options) * weights_BT).sum()
        return (completion_logprobs(model, batch, **filters) * weights_BT).sum()

    def plain(model: nn.Module) -> mx.array:
        total = mx.array(0.0)
        for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            logits = model(mx.array([[*prompt, *completion]]))[0, len(prompt) - 1 : -1]
            logits = logits / filters.get("temperature", 1.0)
            rows = mx.arange(len(completion))
            if "top_k" in filters:
                lowest = mx.sort(mx.stop_gradient(logits), axis=-1)[:, -int(filters["top_k"])][:, None]
                own = mx.arange(logits.shape[-1])[None] == mx.array(completion)[:, None]
                logits = mx.where((logits >= lowest) | own, logits, -mx.inf)
            values = logits[rows, mx.array(completion)] - mx.logsumexp(logits, axis=-1)
            total = total + (values * weights_BT[i, : len(completion)]).sum()
        return total

    value, found = nn.value_and_grad(model, chunked)(model)
    expected_value, expected = nn.value_and_grad(model, plain)(model)
    assert value.item() == pytest.approx(expected_value.item(), abs=1e-4)
    truth = dict(tree_flatten(expected))
    gradients = dict(tree_flatten(found))
    assert gradients.keys() == truth.keys() == policy.weights().keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            np.array(gradient), np.array(truth[name]), atol=2e-4, rtol=1e-3, err_msg=name
        )
    # The model is left with plain arrays, not with tracers of a gradient that is over.
    np.testing.assert_allclose(chunked(model).item(), value.item(), atol=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_gradients_reach_every_adapter_and_nothing_else(tuning: str, family_folder: Folder) -> None:
    """The slope along a random direction of all adapter weights, by finite differences."""
    policy = load(family_folder("lfm2"), tuning)
    randomize_adapters(policy)
    batch = token_batch(PROMPTS, COMPLETIONS)
    _, gradients = nn.value_and_grad(policy.model, lambda model: completion_logprobs(model, batch).sum())(
        policy.model
    )
    flat = dict(tree_flatten(gradients))
    start = policy.snapshot()
    assert flat.keys() == start.keys()
    generator = np.random.default_rng(1)
    # DoRA takes the norm of its weights as a constant: only the magnitudes have their true slope there.
    moved = [name for name in start if tuning == "lora" or name.endswith(".m")]
    direction = {
        name: mx.array(generator.standard_normal(start[name].shape).astype(np.float32)) for name in moved
    }
    slope = sum((flat[name] * direction[name]).sum().item() for name in moved)

    def at(step: float) -> float:
        policy.set_weights(start | {name: start[name] + step * direction[name] for name in moved})
        return float(np.array(completion_logprobs(policy.model, batch), dtype=np.float64).sum())

    h = 2e-3
    measured = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert slope == pytest.approx(measured, rel=5e-3)
