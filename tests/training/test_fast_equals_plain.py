"""Every fast path equals the plain path: loss and gradients within 1e-5, relative, in float32.

Plain: each row with its own prompt, padded, as one graph through the model as mlx-lm has it, a log-softmax of all
logits, differentiated by MLX. Fast: packed, prompts shared or not, cut into micro-batches, layers computed again or
not, attention in parts, the head in tiles. The gradient is one vector of all weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_unflatten

from mlx_sumrl.config import GrpoConfig, SamplingConfig
from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.example import Example
from mlx_sumrl.policy import attention, head, packing
from mlx_sumrl.policy.head import ALIVE, HeadOptions
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.packing import Row, micro_batches, pack
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.rollouts.types import Completion
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.grpo import TrainingRow, grpo_gradient
from mlx_sumrl.training.loss import LossInputs, Normalizer, StopInputs, grpo_loss
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch
from mlx_sumrl.training.sft import sft_gradient, sft_loss
from tests.families import FAMILIES
from tests.policy.row_strategies import grouped_rows
from tests.policy.test_packed_logprobs import policy_of

from .models import flat, moved, plain_logprobs

TOLERANCE = 1e-5
BUDGET = 32_000_000
MAX_TOKENS = 14
families = pytest.mark.parametrize("family", FAMILIES)
fast_paths = st.fixed_dictionaries(
    {
        "checkpointing": st.booleans(),
        "tokens": st.sampled_from([1, 25, 60, 4096]),  # of a micro-batch
        "tile": st.sampled_from([64 * 5, 64 * 32, 10**6]),  # numbers in a tile of the head
        "scores": st.sampled_from([1, 500, 1 << 18]),
        "positions": st.sampled_from([1, 4, 192]),  # of a segment in pieces
        "pieces": st.booleans(),  # for a graph too, which goes without
    }
)


@contextmanager
def small_parts(policy: Policy, path: dict[str, Any]) -> Iterator[None]:
    """Tiles and parts of attention so small that these rows need several."""
    options = policy.options
    policy.options = options.model_copy(update={"gradient_checkpointing": path["checkpointing"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "NARROWEST", 64)
        patch.setattr(head, "ALIVE", max(BUDGET // 4 // path["tile"], ALIVE))
        patch.setattr(attention, "SCORES", path["scores"])
        patch.setattr(packing, "POSITIONS", path["positions"])
        try:
            yield
        finally:
            policy.options = options


def plain_gradient(policy: Policy, forward: Any) -> tuple[float, np.ndarray]:
    """Value and gradient of ``forward()``, a graph that uses the policy's model."""
    own = policy.weights()

    def by_weights(weights: Weights) -> mx.array:
        policy.model.update(tree_unflatten(list(weights.items())))
        value: mx.array = forward()
        return value

    value, gradient = mx.value_and_grad(by_weights)(dict(own))
    mx.eval(value, gradient)
    policy.set_weights(own)
    return value.item(), flat(gradient)


def batch_of(rows: Sequence[Row]) -> Any:
    return token_batch([prompt for prompt, _ in rows], [completion for _, completion in rows])


def check(
    result: BatchGradient, loss: float, gradient: np.ndarray, size: float = 0.0, slope: float = 0.0
) -> None:
    """``size`` and ``slope``: of what loss and gradient are a difference of, and no more exact than."""
    found = flat(result.gradients) if result.gradients else np.zeros_like(gradient)
    length, error = np.linalg.norm(gradient), np.linalg.norm(found - gradient)
    of_loss = abs(result.loss - loss) / max(abs(loss), size)
    assert of_loss <= TOLERANCE
    assert error <= TOLERANCE * max(length, slope) + 1e-8, error / length


@families
@settings(max_examples=25, deadline=None)
@given(
    rows=grouped_rows(),
    path=fast_paths,
    tuning=st.sampled_from(["full", "lora"]),
    share_prompt=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7]),
)
def test_any_function_of_log_probabilities(
    family: str, rows: list[Row], path: dict[str, Any], tuning: str, share_prompt: bool, temperature: float
) -> None:
    """A weighted sum with random weights, which is any gradient at all."""
    policy = policy_of(family, tuning)
    rng = np.random.default_rng(len(rows))
    weights_BT = mx.array(rng.normal(size=(len(rows), MAX_TOKENS)).astype(np.float32))

    def forward() -> mx.array:
        logprobs = completion_logprobs(policy.model, batch_of(rows), temperature=temperature)
        return (logprobs * weights_BT[:, : logprobs.shape[1]]).sum()

    logprobs = np.array(completion_logprobs(policy.model, batch_of(rows), temperature=temperature))
    size = float(np.abs(logprobs * np.array(weights_BT)[:, : logprobs.shape[1]]).sum())

    def micro_batch(part: list[int]) -> MicroBatch:
        packed = pack([rows[i] for i in part], share_prompt, path["pieces"])
        own = weights_BT[mx.array(part)]
        return MicroBatch(packed, lambda logprobs: ((logprobs * own[:, : logprobs.shape[1]]).sum(), {}))

    loss, gradient = plain_gradient(policy, forward)
    with small_parts(policy, path):
        parts = [micro_batch(part) for part in micro_batches(rows, share_prompt, path["tokens"])]
        check(batch_gradient(policy, parts, HeadOptions(BUDGET, temperature)), loss, gradient, size)


FAR = (-1.0, -0.45, -0.1, 0.0, 0.07, 0.33, 0.9)
"""log p(policy) - log p(sampler), none of them near where a correction sets in."""


def training_rows(
    policy: Policy, rows: Sequence[Row], temperature: float, apart: bool = False
) -> list[TrainingRow]:
    """With advantages, one of them 0, and what a stale sampler would have written down.

    ``apart``: stopping has advantages of its own, and every other row a stop token.
    """
    rng = np.random.default_rng(len(rows))
    if apart:
        stop = max(policy.stop_ids)
        rows = [(prompt, (*ids[:-1], stop) if i % 2 else ids) for i, (prompt, ids) in enumerate(rows)]
    logprobs = np.array(completion_logprobs(policy.model, batch_of(rows), temperature=temperature))
    found = []
    for i, (prompt, ids) in enumerate(rows):
        sampled = logprobs[i, : len(ids)] - rng.choice(FAR, len(ids))
        advantage = 0.0 if i == 3 else float(rng.normal())
        completion = Completion(tuple(ids), tuple(sampled), "length", 0, "")
        stop_advantage = float(rng.normal()) if apart else None
        found.append(TrainingRow(tuple(prompt), completion, advantage, stop_advantage))
    return found


def plain_loss(
    policy: Policy, rows: Sequence[TrainingRow], options: GrpoConfig, sampling: SamplingConfig
) -> Any:
    """The loss of all rows in one batch, as a graph to differentiate."""
    batch = batch_of([(row.prompt_ids, row.completion.token_ids) for row in rows])
    filters = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    sampled = np.zeros(batch.mask_BT.shape, np.float32)
    for i, row in enumerate(rows):
        sampled[i, : len(row.completion.logprobs)] = row.completion.logprobs
    reference = None
    if options.beta:
        with policy.as_reference():
            reference = completion_logprobs(policy.model, batch, **filters)
            mx.eval(reference)
    lengths = [len(row.completion.token_ids) for row in rows]

    stop_ids = sorted(policy.stop_ids)
    stopped = np.isin(np.array(batch.targets_BT), stop_ids) * np.array(batch.mask_BT)
    stopped[:, :-1] *= (
        1 - np.array(batch.mask_BT)[:, 1:]
    )  # a stop token before the last is a token as any other

    def stops() -> StopInputs | None:
        if rows[0].stop_advantage is None:
            return None
        each = [
            completion_logprobs(
                policy.model, replace(batch, targets_BT=mx.full(batch.targets_BT.shape, i)), **filters
            )
            for i in stop_ids
        ]
        of_rows = mx.array([row.stop_advantage or 0.0 for row in rows])
        return StopInputs(mx.logsumexp(mx.stack(each), axis=0), mx.array(stopped.astype(np.float32)), of_rows)

    def forward() -> mx.array:
        inputs = LossInputs(
            logprobs_BT=completion_logprobs(policy.model, batch, **filters),
            stops=stops(),
            sampler_logprobs_BT=mx.array(sampled),
            advantages_B=mx.array([row.advantage for row in rows], dtype=mx.float32),
            mask_BT=batch.mask_BT,
            reference_logprobs_BT=reference,
        )
        return grpo_loss(inputs, options, Normalizer(len(rows), sum(lengths), sampling.max_tokens))[0]

    return forward


def size_of_terms(
    policy: Policy, rows: Sequence[TrainingRow], options: GrpoConfig, sampling: SamplingConfig
) -> tuple[float, float]:
    """The loss if no advantage were negative: nothing in it cancels then. And what a KL term's gradient would be
    where policy and reference differ by 1 in every log p: it is no more exact where they hardly differ."""
    positive = [_with_advantages(row, abs(row.advantage), abs(row.stop_advantage or 0)) for row in rows]
    value: float = plain_loss(policy, positive, options, sampling)().item()
    ones = [_with_advantages(row, 1.0, 1.0) for row in rows]
    unclipped = options.model_copy(update={"correction": "none", "beta": 0.0})
    _, gradient = plain_gradient(policy, plain_loss(policy, ones, unclipped, sampling))
    return abs(value), options.beta * float(np.linalg.norm(gradient))


def _with_advantages(row: TrainingRow, advantage: float, stop: float) -> TrainingRow:
    return replace(row, advantage=advantage, stop_advantage=None if row.stop_advantage is None else stop)


@cache
def with_reference(family: str, tuning: str) -> Policy:
    """A policy about as far from chance and from its reference as training takes it: log p differs by 1.

    Ratio and KL term have exp of log p, whose own error in float32 is 1e-5 where logits are 30, on the plain path
    as on the fast one: the tiny models' last norm and adapters are made smaller, and with them their logits.
    """
    policy = policy_of.__wrapped__(family, tuning)  # one of its own
    inner = policy.model.model
    norm = inner.norm if "norm" in inner else inner.embedding_norm
    norm.weight = 0.4 * norm.weight
    weights = policy.weights()
    if tuning == "full":
        policy.reference = moved(weights, 0.01, seed=9)
    else:
        policy.set_weights({n: 0.4 * a if n.endswith("lora_b") else a for n, a in weights.items()})
        policy.reference = {n: 0.2 * a if n.endswith("lora_b") else a for n, a in weights.items()}
    mx.eval(policy.reference, policy.model.parameters())
    return policy


@families
@settings(max_examples=25, deadline=None)
@given(
    rows=grouped_rows(),
    path=fast_paths,
    tuning=st.sampled_from(["full", "lora"]),
    temperature=st.sampled_from([1.0, 0.7]),
    loss=st.fixed_dictionaries(
        {
            "loss": st.sampled_from(["grpo", "bnpo", "dr_grpo", "dapo", "gspo"]),
            "correction": st.sampled_from(["clip", "truncate", "mask", "none"]),
            "beta": st.sampled_from([0.0, 0.3]),
            "kl": st.sampled_from(["k2", "k3", "k3_weighted"]),
            "share_prompt": st.booleans(),
        }
    ),
    apart=st.booleans(),
)
def test_grpo(
    family: str,
    rows: list[Row],
    path: dict[str, Any],
    tuning: str,
    temperature: float,
    loss: dict[str, Any],
    apart: bool,
) -> None:
    policy = with_reference(family, tuning)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, temperature=temperature)
    options = GrpoConfig(micro_batch_tokens=path["tokens"], **loss)
    taught = training_rows(policy, rows, temperature, apart)
    value, gradient = plain_gradient(policy, plain_loss(policy, taught, options, sampling))
    size = size_of_terms(policy, taught, options, sampling)
    with small_parts(policy, path):
        check(grpo_gradient(policy, taught, options, sampling), value, gradient, *size)


@families
@pytest.mark.parametrize("filters", [{"top_k": 20}, {"temperature": 0.8, "top_p": 0.9, "top_k": 50}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_filters(family: str, filters: dict[str, Any], checkpointing: bool) -> None:
    """The same rows each time: a token right at a filter's edge may fall to either side of it."""
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(3, 290, n).tolist()) for n in (5, 2, 9)]
    rows = [(prompts[i % 3], tuple(rng.integers(0, 290, n).tolist())) for i, n in enumerate((4, 9, 1, 7, 3))]
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, **filters)
    for tuning in ("full", "lora"):
        policy = with_reference(family, tuning)
        taught = training_rows(policy, rows, sampling.temperature)
        for tile in (64 * 5, 10**6):
            options = GrpoConfig(micro_batch_tokens=25, beta=0.1)
            value, gradient = plain_gradient(policy, plain_loss(policy, taught, options, sampling))
            size = size_of_terms(policy, taught, options, sampling)
            with small_parts(
                policy, {"checkpointing": checkpointing, "tile": tile, "scores": 500, "positions": 5}
            ):
                check(grpo_gradient(policy, taught, options, sampling), value, gradient, *size)


WORDS = ("meeting", "starts", "at", "nine", "and", "the", "train", "leaves", "coming", "yes", "eight")


@families
@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 289), min_size=1, max_size=12), min_size=1, max_size=6),
    words=st.lists(st.lists(st.sampled_from(WORDS), max_size=6), min_size=6, max_size=6),
    path=fast_paths,
    tuning=st.sampled_from(["full", "lora"]),
)
def test_supervised(
    family: str, prompts: list[list[int]], words: list[list[str]], path: dict[str, Any], tuning: str
) -> None:
    """Against a loop over rows, each by itself and unpadded."""
    policy = policy_of(family, tuning)
    examples = [
        Example(str(i), tuple(prompt), "", "", " ".join(own))
        for i, (prompt, own) in enumerate(zip(prompts, words, strict=False))
    ]
    rows = [(e.prompt_ids, answer_ids(policy.tokenizer, e.reference, policy.stop_id)) for e in examples]
    tokens = sum(len(answer) for _, answer in rows)

    def forward() -> mx.array:
        total = mx.array(0.0)
        for prompt, answer in rows:
            total = total - plain_logprobs(policy.model, prompt, answer).sum()
        return total / tokens

    loss, gradient = plain_gradient(policy, forward)
    with small_parts(policy, path):
        result = sft_gradient(policy, examples, path["tokens"])
        check(result, loss, gradient)
        assert result.sums["tokens"] == tokens
        assert sft_loss(policy, examples, path["tokens"]) == pytest.approx(loss, rel=TOLERANCE)
