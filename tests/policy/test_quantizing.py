"""A quantised copy is mlx-lm's own, its tokenizer the original's; what is trained on it is exported as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm import convert, load
from mlx_lm import fuse as mlx_lm_fuse

from mlx_sumrl.config import LoraConfig, OptimizerConfig, PolicyConfig
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.export import TOKENIZER_FILES, export_adapter, export_model, export_peft
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.quantizing import quantize
from mlx_sumrl.reporting.memory_estimate import estimate_peak
from mlx_sumrl.reporting.model_shape import ModelShape
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.sft import supervised_gradient, supervised_loss
from mlx_sumrl.training.update import Guard, apply_update
from tests.families import full_logits, randomize_adapters, write_model

ROW = [9, 8, 7, 100, 200, 30]
FAMILIES = ("qwen2", "llama-untied", "phi3", "lfm2")
"""A width of 48 in their MLP is what 32 does not divide."""


def adapted(folder: Path, tuning: str = "lora", dtype: str = "float32") -> Policy:
    return load_policy(PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype, lora=LoraConfig(rank=4)))


def arrays(folder: Path) -> dict[str, mx.array]:
    [file] = folder.glob("model*.safetensors")
    return dict(mx.load(str(file)))  # type: ignore[arg-type]


def logits_of(folder: Path, adapter: Path | None = None) -> np.ndarray:
    model, _ = load(str(folder), adapter_path=None if adapter is None else str(adapter))
    model.eval()
    return np.array(model(mx.array([ROW]))[0].astype(mx.float32), dtype=np.float64)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_copy_is_that_of_mlx_lm(family: str, bits: int, tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", family)
    (plain / "chat_template.jinja").write_text("{{ messages }}")
    made = quantize(str(plain), tmp_path / "ours", bits=bits, group_size=32)
    convert(str(plain), str(tmp_path / "theirs"), quantize=True, q_group_size=32, q_bits=bits)
    ours, theirs = arrays(made.folder), arrays(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert mx.array_equal(array, theirs[name]), name
    packed = {name.removesuffix(".scales") for name in ours if name.endswith(".scales")}
    assert made.packed == len(packed) > 0
    left = {
        name.removesuffix(".weight")
        for name, array in ours.items()
        if name.endswith(".weight") and array.ndim == 2 and name.removesuffix(".weight") not in packed
    }
    assert set(made.left) == left
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (bits, 32)
    # Kept to the byte, where mlx-lm saves a tokenizer anew.
    kept = [name for name in TOKENIZER_FILES if (plain / name).is_file()]
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {*kept}
    for name in kept:
        assert (made.folder / name).read_bytes() == (plain / name).read_bytes()
    assert made.bytes_before == (plain / "model.safetensors").stat().st_size
    assert (
        made.bytes_after
        == sum(f.stat().st_size for f in made.folder.glob("*.safetensors"))
        < made.bytes_before
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_counts_every_byte_of_a_packed_base(family: str, dtype: Any, tmp_path: Path) -> None:
    """Codes, scales in the type of the weights, and the matrices that were left as they are; and the adapters."""
    plain = write_model(tmp_path / "plain", family)
    policy = adapted(quantize(str(plain), tmp_path / "4bit", bits=4, group_size=32).folder, dtype=dtype)
    estimate = estimate_peak(
        ModelShape.from_config(policy.config),
        tuning="lora",
        dtype=dtype,
        lora_rank=4,
        prompt_tokens=8,
        completion_tokens=8,
        prompts_per_step=1,
    )
    held = mlx_internals.named_arrays(policy.model.parameters())
    assert estimate.weights == sum(array.nbytes for array in held.values())


def test_a_base_that_mlx_lm_would_misread_is_put_right(tmp_path: Path) -> None:
    """The rotary base inside ``rope_parameters`` alone: the copy has it where mlx-lm reads it."""
    plain = write_model(tmp_path / "plain", "qwen2", rope_theta=None, rope_parameters={"rope_theta": 500.0})
    made = quantize(str(plain), tmp_path / "8bit", bits=8, group_size=32)
    assert json.loads((made.folder / "config.json").read_text())["rope_theta"] == 500.0
    ours = full_logits(adapted(plain), ROW)
    assert np.abs(logits_of(made.folder) - ours).max() < 0.1 < np.abs(logits_of(plain) - ours).max()


def test_what_cannot_be_quantised_is_named(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", "qwen2")
    made = quantize(str(plain), tmp_path / "4bit", bits=4, group_size=32).folder
    with pytest.raises(UserError, match="is there already"):
        quantize(str(plain), made, bits=4, group_size=32)
    with pytest.raises(UserError, match=r"quantised already \(4 bits\)"):
        quantize(str(made), tmp_path / "again", bits=8, group_size=32)
    with pytest.raises(UserError, match=r"no matrix of .* that 128 divides"):
        quantize(str(plain), tmp_path / "wide", bits=4, group_size=128)
    with pytest.raises(UserError, match="no model folder"):
        quantize(str(tmp_path / "nothing"), tmp_path / "out", bits=4, group_size=32)
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "4bit"}, "nothing half is left"


def rows() -> list[SupervisedExample]:
    rng = np.random.default_rng(0)
    ids = [tuple(int(x) for x in rng.integers(3, 300, 12)) for _ in range(4)]
    return [SupervisedExample(str(i), row[:5], row[5:], (True,) * 7) for i, row in enumerate(ids)]


@pytest.mark.parametrize(("tuning", "bits"), [("lora", 4), ("dora", 8)])
def test_adapters_on_a_quantised_base_learn(tuning: str, bits: int, tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", "qwen2")
    policy = adapted(quantize(str(plain), tmp_path / "few", bits=bits, group_size=32).folder, tuning)
    assert policy.is_quantized
    assert all(name.endswith(("lora_a", "lora_b", ".m")) for name in policy.weights())
    frozen = {
        name: mx.array(array) for name, array in policy.model.parameters()["model"]["embed_tokens"].items()
    }
    optimizer, guard = Optimizer(OptimizerConfig(), 0), Guard(1)
    before = supervised_loss(policy, rows(), 4096)
    for _ in range(30):
        apply_update(policy, optimizer, guard, supervised_gradient(policy, rows(), 4096), 1e-2)
    assert supervised_loss(policy, rows(), 4096) < before - 2
    packed = policy.model.parameters()["model"]["embed_tokens"]
    assert all(mx.array_equal(array, packed[name]) for name, array in frozen.items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_exports_are_what_mlx_lm_fuse_makes(
    tuning: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked, the logits are the trained ones; packed again, they are off by no more than packing is."""
    plain = write_model(tmp_path / "plain", family)
    base = quantize(str(plain), tmp_path / "few", bits=8, group_size=32).folder
    policy = adapted(base, tuning)
    randomize_adapters(policy)
    wanted = full_logits(policy, ROW)
    assert np.abs(wanted - logits_of(base)).max() > 0.5, "the adapter does a lot"
    adapter = export_adapter(policy, tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(base, adapter), wanted, atol=1e-4)
    ours = {
        "packed": export_model(policy, tmp_path / "packed"),
        "unpacked": export_model(policy, tmp_path / "unpacked", dequantize=True),
    }
    errors = {name: np.abs(logits_of(folder) - wanted).max() for name, folder in ours.items()}
    assert errors["unpacked"] < 1e-4
    assert not any(
        isinstance(module, nn.QuantizedLinear) for module in load(str(ours["unpacked"]))[0].modules()
    )
    # Packed by mlx-lm after the fact, what was trained comes out as far off.
    again = quantize(str(ours["unpacked"]), tmp_path / "again", bits=8, group_size=32).folder
    assert 0 < errors["packed"] < 2 * np.abs(logits_of(again) - wanted).max()
    for name, options in (("packed", []), ("unpacked", ["--dequantize"])):
        out = tmp_path / f"theirs-{name}"
        argv = ["--model", str(base), "--adapter-path", str(adapter), "--save-path", str(out)]
        monkeypatch.setattr(sys, "argv", ["fuse", *argv, *options])
        mlx_lm_fuse.main()
        np.testing.assert_allclose(logits_of(out), logits_of(ours[name]), atol=1e-3)
    whole = load_policy(PolicyConfig(model=str(ours["unpacked"]), tuning="full", dtype="float32"))
    np.testing.assert_allclose(full_logits(whole, ROW), wanted, atol=1e-4)


def test_a_peft_adapter_of_a_quantised_base(tmp_path: Path) -> None:
    """A is [rank, in] for the width of the matrix, not for that of its codes."""
    plain = write_model(tmp_path / "plain", "qwen2")
    policy = adapted(quantize(str(plain), tmp_path / "few", bits=4, group_size=32).folder)
    randomize_adapters(policy)
    folder = export_peft(policy, tmp_path / "peft")
    halves = mx.load(str(folder / "adapter_model.safetensors"))
    name = "base_model.model.model.layers.0.mlp.gate_proj"
    assert halves[f"{name}.lora_A.weight"].shape == (4, 32)
    assert halves[f"{name}.lora_B.weight"].shape == (48, 4)
