"""The reference in few bits: what MLX's own quantised model computes, and a policy that never notices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from safetensors.numpy import save_file

from mlx_sumrl.config import GrpoConfig, OptimizerConfig, PolicyConfig, SamplingConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import head, mlx_internals, reference
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.packing import pack
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.policy.reference import GROUP_SIZE, QuantizedReference, restored_reference
from mlx_sumrl.training.checkpoints import TrainState, load_checkpoint, save_checkpoint
from mlx_sumrl.training.grpo import grpo_gradient
from mlx_sumrl.training.optimizer import Optimizer
from tests.families import (
    FAMILIES,
    family_config,
    full_logits,
    random_weights,
    randomize_adapters,
    tokenizer,
    write_config,
)
from tests.training.models import flat, random_rows

Folder = Callable[[str], Path]
ROW = [9, 8, 7, 100, 200, 30]
PROMPT, COMPLETIONS = [9, 8, 7, 100], [[200, 30, 2], [5, 6, 7, 8, 2], [11]]
GROUP = pack([(PROMPT, completion) for completion in COMPLETIONS], share_prompt=True)
WHOLE_GROUPS, BROKEN_GROUPS = 64, 96
"""Hidden size, and the MLP's: the matrices that come out of it have rows of one and a half groups."""


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Tiny models as elsewhere, but wide enough to be quantised."""
    base = tmp_path_factory.mktemp("wide")

    def folder(name: str) -> Path:
        path = base / name
        if not path.is_dir():
            path.mkdir()
            config = family_config(name) | {"hidden_size": WHOLE_GROUPS}
            if name == "lfm2":
                config |= {"block_dim": WHOLE_GROUPS, "block_ff_dim": BROKEN_GROUPS}
            else:
                config |= {"intermediate_size": BROKEN_GROUPS}
            save_file(random_weights(config), path / "model.safetensors", metadata={"format": "pt"})
            write_config(path, config)
            (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
            tokenizer().save_pretrained(path)
        return path

    return folder


def load(folder: Path, dtype: str = "float32", tuning: str = "full") -> Policy:
    return load_policy(PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype))


def quantizable(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) and module.weight.shape[-1] % 64 == 0


def logprobs(model: nn.Module) -> list[np.ndarray]:
    """Both ways, the plain one and with the prompt shared."""
    plain = token_batch([PROMPT] * len(COMPLETIONS), COMPLETIONS)
    return [
        np.array(completion_logprobs(model, plain)),
        np.array(packed_logprobs(model, GROUP, HeadOptions(1_000_000))),
    ]


def bits_of(arrays: dict[str, mx.array]) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each array."""
    same_size = {mx.bfloat16: mx.uint16}
    return {
        name: (str(array.dtype), np.array(array.view(same_size.get(array.dtype, array.dtype))).tobytes())
        for name, array in arrays.items()
    }


def rounded_weights(policy: Policy, bits: int) -> Weights:
    """The policy's weights with matrices of whole groups rounded, as plain numbers."""
    weights = policy.weights()
    for path, module in policy.model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and quantizable(path, module):
            packed = mx.quantize(module.weight, group_size=64, bits=bits)
            weights[f"{path}.weight"] = mx.dequantize(*packed, group_size=64, bits=bits)
    return weights


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_mlx_quantises_the_same_weights_to(
    family: str, dtype: str, kind: Any, family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arrays, and what is computed with them in MLX's own way, to the bit."""
    truth = load(family_folder(family), dtype).model
    nn.quantize(truth, group_size=64, bits=int(kind[0]), class_predicate=quantizable)
    truth.eval()
    kinds = {type(module) for _, module in truth.named_modules()}
    assert {nn.QuantizedLinear, nn.QuantizedEmbedding, nn.Linear} <= kinds  # some are left as they were
    policy = load(family_folder(family), dtype)
    policy.take_reference(kind)
    randomize_adapters(policy)  # whatever the policy becomes
    assert isinstance(policy.reference, QuantizedReference)
    assert bits_of(policy.reference.arrays()) == bits_of(dict(tree_flatten(truth.parameters())))
    expected = logprobs(truth)
    with policy.as_reference():
        if dtype == "float32":  # in bfloat16 the CPU's packed products add up in bfloat16
            for found, one in zip(logprobs(policy.model), expected, strict=True):
                np.testing.assert_allclose(found, one, atol=1e-4)
        monkeypatch.setattr(reference, "multiplies_packed", lambda: True)  # as on Metal
        for found, one in zip(logprobs(policy.model), expected, strict=True):
            np.testing.assert_array_equal(found, one)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_a_policy_of_the_rounded_weights_does(
    family: str, dtype: str, kind: Any, family_folder: Folder
) -> None:
    """On the CPU to the bit; and the policy itself does not notice."""
    policy, rounded = load(family_folder(family), dtype), load(family_folder(family), dtype)
    rounded.set_weights(rounded_weights(policy, int(kind[0])))
    rounded.model.eval()
    expected = logprobs(rounded.model)
    policy.take_reference(kind)
    randomize_adapters(policy)
    own, weights = logprobs(policy.model), bits_of(policy.weights())
    modules = dict(policy.model.named_modules())
    policy.model.train()
    with policy.as_reference():
        assert not policy.model.training
        for found, one in zip(logprobs(policy.model), expected, strict=True):
            np.testing.assert_array_equal(found, one)
    assert policy.model.training
    assert list(bits_of(policy.weights()).items()) == list(weights.items())  # the same order, too
    assert all(module is modules[path] for path, module in policy.model.named_modules())
    for found, one in zip(logprobs(policy.model), own, strict=True):
        np.testing.assert_array_equal(found, one)
    assert np.abs(own[0] - expected[0]).max() > 0.1


def test_each_group_has_16_levels(family_folder: Folder) -> None:
    """What 4 bits are: half a level, a fifteenth of the way from its least to its largest weight, is lost at most.

    The affine grid keeps 0 on it, which moves its ends: hence a whole level here.
    """
    policy, name = load(family_folder("qwen2")), "model.embed_tokens.weight"
    groups = np.array(policy.weights()[name]).reshape(-1, 64)
    levels = np.array(rounded_weights(policy, 4)[name]).reshape(-1, 64)
    assert max(len(np.unique(group)) for group in levels) <= 16
    widths = groups.max(axis=1) - groups.min(axis=1)
    assert (np.abs(groups - levels).max(axis=1) <= widths / 15).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "qwen2-untied"])
@pytest.mark.parametrize("packed", [False, True])
def test_its_head_multiplies_in_float32(
    family: str, dtype: str, packed: bool, family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied or not, whatever type the scales are of: against the rounded matrix in float64."""
    monkeypatch.setattr(reference, "multiplies_packed", lambda: packed)
    policy = load(family_folder(family), dtype)
    policy.take_reference("4bit")
    hidden = mx.random.normal((5, WHOLE_GROUPS), key=mx.random.key(1))
    with policy.as_reference():
        logits = mlx_internals.head(policy.model, hidden)
        layer = policy.model.model.embed_tokens if family == "qwen2" else policy.model.lm_head
        assert layer.scales.dtype == getattr(mx, dtype)
        kept = mx.float32 if packed else layer.scales.dtype  # in which scale x level + bias is rounded
        parts = [part.astype(kept) for part in (layer.scales, layer.biases)]
        matrix = mx.dequantize(layer.weight, *parts, group_size=64, bits=4).astype(mx.float32)
    assert logits.dtype == mx.float32
    truth = np.array(hidden, np.float64) @ np.array(matrix, np.float64).T
    np.testing.assert_allclose(logits, truth, atol=1e-5)


def test_the_policy_comes_back_after_an_error(family_folder: Folder) -> None:
    policy = load(family_folder("lfm2"))
    policy.take_reference("4bit")
    randomize_adapters(policy)
    weights, modules = bits_of(policy.weights()), dict(policy.model.named_modules())
    policy.model.train()
    with pytest.raises(KeyError, match="inside"), policy.as_reference():
        raise KeyError("inside")
    assert policy.model.training
    assert bits_of(policy.weights()) == weights
    assert all(module is modules[path] for path, module in policy.model.named_modules())


def test_steps_of_the_policy_do_not_reach_it(family_folder: Folder) -> None:
    """In place, as an optimiser might, or by new arrays: biases and norms, which are not quantised, too."""
    policy = load(family_folder("qwen2"))
    policy.take_reference("4bit")
    assert isinstance(policy.reference, QuantizedReference)
    before = bits_of(policy.reference.arrays())
    for array in policy.weights().values():
        array += 1.0
    assert bits_of(policy.reference.arrays()) == before
    randomize_adapters(policy)
    assert bits_of(policy.reference.arrays()) == before


@pytest.mark.parametrize("tuning", ["lora", "dora"])
@pytest.mark.parametrize("quantized_base", [False, True])
def test_adapters_are_kept_exactly(tuning: str, quantized_base: bool, family_folder: Folder) -> None:
    """Off, or as they were: on a base that is quantised itself, too."""
    policy = load(family_folder("llama"), tuning=tuning)
    if quantized_base:
        nn.quantize(policy.model, group_size=64, bits=4, class_predicate=quantizable)
    with policy.as_reference():
        base = full_logits(policy, ROW)
    randomize_adapters(policy)
    with policy.as_reference():
        np.testing.assert_array_equal(full_logits(policy, ROW), base)
    start = full_logits(policy, ROW)
    policy.take_reference("4bit")
    assert bits_of(policy.reference) == bits_of(policy.weights())  # type: ignore[arg-type]
    randomize_adapters(policy, seed=1)
    with policy.as_reference():
        np.testing.assert_array_equal(full_logits(policy, ROW), start)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("share_prompt", [False, True])
def test_the_gradient_is_that_of_the_rounded_weights_as_reference(
    share_prompt: bool, checkpointing: bool, family_folder: Folder
) -> None:
    """In several micro-batches, between which the policy and the reference change places."""
    policy = load(family_folder("qwen2"))
    policy.options = policy.options.model_copy(update={"gradient_checkpointing": checkpointing})
    rows = random_rows(policy, staleness=0.1)
    options = GrpoConfig(beta=1.0, kl="k3", micro_batch_tokens=20, share_prompt=share_prompt)
    policy.reference = rounded_weights(policy, 4)
    truth = grpo_gradient(policy, rows, options, SamplingConfig())
    policy.take_reference("4bit")
    before = bits_of(policy.weights())
    found = grpo_gradient(policy, rows, options, SamplingConfig())
    assert truth.sums["kl"] > 0.1  # over all tokens: the policy is not its own reference
    assert found.sums["kl"] == pytest.approx(truth.sums["kl"], rel=1e-4)
    assert found.loss == pytest.approx(truth.loss, rel=1e-4)
    difference = flat(found.gradients) - flat(truth.gradients)
    assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(flat(truth.gradients))
    assert bits_of(policy.weights()) == before


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize(("family", "dtype"), [("lfm2", "bfloat16"), ("qwen2-untied", "float32")])
def test_a_checkpoint_brings_it_back(
    family: str, dtype: str, kind: Any, family_folder: Folder, tmp_path: Path
) -> None:
    policy, optimizer = load(family_folder(family), dtype), Optimizer(OptimizerConfig(), seed=0)
    policy.take_reference(kind)
    assert isinstance(policy.reference, QuantizedReference)
    randomize_adapters(policy)
    with policy.as_reference():
        expected = logprobs(policy.model)
    checkpoint = save_checkpoint(tmp_path, TrainState(step=3), policy, optimizer, keep=1)
    restored = load(family_folder(family), dtype)
    load_checkpoint(checkpoint, restored, Optimizer(OptimizerConfig(), seed=0))
    assert isinstance(restored.reference, QuantizedReference)
    assert bits_of(restored.reference.arrays()) == bits_of(policy.reference.arrays())
    assert bits_of(restored.weights()) == bits_of(policy.weights())
    with restored.as_reference():
        for found, one in zip(logprobs(restored.model), expected, strict=True):
            np.testing.assert_array_equal(found, one)
    assert bits_of(restored.weights()) == bits_of(policy.weights())


def test_one_of_another_model_is_refused(family_folder: Folder, tmp_path: Path) -> None:
    policy = load(family_folder("qwen2"))
    policy.take_reference("4bit")
    assert isinstance(policy.reference, QuantizedReference)
    arrays = policy.reference.arrays()
    norm, matrix = "model.norm.weight", "model.layers.0.self_attn.q_proj"
    for odd, match in (
        ({name: array for name, array in arrays.items() if name != norm}, rf"1 names differ.*{norm}"),
        (arrays | {norm: mx.zeros((3,))}, rf"{norm} is \(3,\), not \(64,\)"),
        (arrays | {f"{matrix}.scales": mx.zeros((3, 1))}, rf"{matrix}.scales is \(3, 1\)"),
        (
            {name: array for name, array in arrays.items() if name != f"{matrix}.bias"},
            rf"weights in {matrix}",
        ),
        (arrays | {"model.nothing": mx.zeros((1,))}, r"1 names differ.*model.nothing"),
    ):
        with pytest.raises(ValueError, match=match):
            restored_reference(policy.model, odd)

    other = load(family_folder("lfm2"))
    other.reference, before = policy.reference, bits_of(other.weights())
    checkpoint = save_checkpoint(
        tmp_path, TrainState(step=1), other, Optimizer(OptimizerConfig(), seed=0), keep=1
    )
    other.reference = None
    with pytest.raises(UserError, match="does not fit the policy") as caught:
        load_checkpoint(checkpoint, other, Optimizer(OptimizerConfig(), seed=0))
    assert str(checkpoint) in str(caught.value)
    assert other.reference is None
    assert bits_of(other.weights()) == before


@pytest.mark.usefixtures("exact_buffers")
@pytest.mark.parametrize(("kind", "share"), [("4bit", 4.5 / 16), ("8bit", 8.5 / 16)])
def test_what_it_takes_and_what_making_it_takes(
    kind: Any, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16: 4 bits and, for each 64 weights, 2 x 16. Made with no more than one layer's temporaries."""
    config = family_config("qwen2") | {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "vocab_size": 4096,
        "num_hidden_layers": 12,
    }
    model = mlx_internals.new_model(config)
    model.update(tree_map(lambda array: array.astype(mx.bfloat16), model.parameters()))
    mx.eval(model.parameters())
    policy = Policy(
        model=model,
        tokenizer=None,
        config=config,
        folder=Path(),
        options=PolicyConfig(model="none", tuning="full"),
        stop_ids=frozenset({2}),
        stop_id=2,
    )
    sizes = [array.nbytes for array in policy.weights().values()]
    assert max(sizes) == 4096 * 256 * 2
    without = mx.get_active_memory()
    for _ in range(2):  # anew, as a stage with a fresh reference does: the one before is gone by then
        mx.reset_peak_memory()
        policy.take_reference(kind)
        taken, peak = mx.get_active_memory() - without, mx.get_peak_memory() - without
        assert taken == pytest.approx(share * sum(sizes), rel=0.02)
        assert peak <= taken + 2 * max(sizes)  # one matrix as float32
    assert isinstance(policy.reference, QuantizedReference)
    assert all(module.group_size == GROUP_SIZE for module in policy.reference.modules.values())
    assert sum(array.nbytes for array in policy.reference.arrays().values()) <= taken

    # Used as on Metal, it never becomes a model of full size again.
    monkeypatch.setattr(reference, "multiplies_packed", lambda: True)
    monkeypatch.setattr(head, "NARROWEST", 64)  # or half of this small vocabulary would be a tile
    without = mx.get_active_memory()
    mx.reset_peak_memory()
    with policy.as_reference():
        mx.eval(packed_logprobs(policy.model, GROUP, HeadOptions(100_000), differentiable=False))
    assert mx.get_peak_memory() - without < max(sizes) < 0.1 * sum(sizes)
