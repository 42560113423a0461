"""What is exported, loaded by others: mlx_lm and its fuse command, Hugging Face's tokenizer, PEFT's own formula."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import fuse, load
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.export import export_adapter, export_model, export_peft
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from tests.families import (
    FAMILIES,
    SHARED_MODELS,
    family_config,
    full_logits,
    linear_shapes,
    randomize_adapters,
)
from tests.families import write_model as write_family

Folder = Callable[[str], Path]
ROW = [9, 8, 7, 100, 200, 30, 31, 32]


def trained(folder: Path, tuning: str, dtype: str = "float32", **lora: Any) -> Policy:
    """A policy whose adapters have been moved far."""
    options = LoraConfig(**({"rank": 4, "alpha": 6.0} | lora))
    policy = load_policy(PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype, lora=options))
    randomize_adapters(policy)
    return policy


def logits_of(model: Any) -> np.ndarray:
    model.eval()
    return np.array(model(mx.array([ROW]))[0].astype(mx.float32))


def run_fuse(model: Path, adapter: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mlx_lm.fuse`` in this process: its own main with its own command line."""
    argv = ["mlx_lm.fuse", "--model", str(model), "--adapter-path", str(adapter), "--save-path", str(to)]
    monkeypatch.setattr(sys, "argv", argv)
    fuse.main()


@pytest.mark.parametrize("tuning", ["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mlx_lm_loads_and_fuses_the_adapter(
    family: str, tuning: str, family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = trained(family_folder(family), tuning)
    ours = full_logits(policy, ROW)
    base = full_logits(load_policy(PolicyConfig(model=str(family_folder(family)), dtype="float32")), ROW)
    assert np.abs(ours - base).max() > 0.5
    adapter = export_adapter(policy, tmp_path / "adapter")
    loaded, _ = load(str(family_folder(family)), adapter_path=str(adapter))
    np.testing.assert_allclose(logits_of(loaded), ours, atol=1e-4)
    run_fuse(family_folder(family), adapter, tmp_path / "fused", monkeypatch)
    fused, _ = load(str(tmp_path / "fused"))
    np.testing.assert_allclose(logits_of(fused), ours, atol=1e-4)


def test_the_fuse_command_itself(family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder("lfm2"), "dora")
    adapter = export_adapter(policy, tmp_path / "adapter")
    command = [sys.executable, "-m", "mlx_lm", "fuse", "--model", str(family_folder("lfm2"))]
    command += ["--adapter-path", str(adapter), "--save-path", str(tmp_path / "fused")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    fused, _ = load(str(tmp_path / "fused"))
    np.testing.assert_allclose(logits_of(fused), full_logits(policy, ROW), atol=1e-4)


@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_a_partial_adapter_keeps_to_its_layers(tuning: str, family_folder: Folder, tmp_path: Path) -> None:
    keys = ("self_attn.q_proj", "mlp.down_proj")
    policy = trained(family_folder("llama"), tuning, layers=2, keys=keys, rank=3, alpha=12.0)
    adapter = export_adapter(policy, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == tuning
    assert config["num_layers"] == 2
    assert config["lora_parameters"] == {"rank": 3, "scale": 4.0, "dropout": 0.0, "keys": list(keys)}
    loaded, _ = load(str(family_folder("llama")), adapter_path=str(adapter))
    np.testing.assert_allclose(logits_of(loaded), full_logits(policy, ROW), atol=1e-4)


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_is_whole(family: str, tuning: str, family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder(family), tuning) if tuning != "full" else full_moved(family_folder(family))
    before = policy.snapshot()
    ours = full_logits(policy, ROW)
    folder = export_model(policy, tmp_path / "model")
    loaded, _ = load(str(folder))
    np.testing.assert_allclose(logits_of(loaded), ours, atol=1e-4)
    # Names and shapes are those of the base model's file: Hugging Face's own layout.
    base, written = (
        load_file(family_folder(family) / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    assert {name: array.shape for name, array in written.items()} == {k: a.shape for k, a in base.items()}
    with safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    # And it is a policy again; the one that was exported is as it was.
    again = load_policy(PolicyConfig(model=str(folder), dtype="float32", tuning="full"))
    np.testing.assert_allclose(full_logits(again, ROW), ours, atol=1e-4)
    np.testing.assert_array_equal(full_logits(policy, ROW), ours)
    for name, array in policy.weights().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def full_moved(folder: Path) -> Policy:
    """Full training that has gone somewhere."""
    policy = load_policy(PolicyConfig(model=str(folder), tuning="full", dtype="float32"))
    generator = np.random.default_rng(3)
    policy.set_weights(
        {
            name: array + mx.array(0.05 * generator.standard_normal(array.shape).astype(np.float32))
            for name, array in policy.weights().items()
        }
    )
    return policy


def bfloat16_tensors(file: Path) -> dict[str, bool]:
    """Whether each tensor of a file is bfloat16, from the file's header alone."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return {name: entry["dtype"] == "BF16" for name, entry in header.items()}


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
def test_a_bfloat16_model_is_written_in_bfloat16(
    family: str, tuning: str, family_folder: Folder, tmp_path: Path
) -> None:
    base = write_family(tmp_path / "base", family, dtype="float32")  # transformers 5 writes `dtype`
    policy = load_policy(
        PolicyConfig(model=str(base), tuning=tuning, dtype="bfloat16", lora=LoraConfig(rank=4))
    )
    if tuning != "full":
        randomize_adapters(policy)
    folder = export_model(policy, tmp_path / "model")
    tensors = bfloat16_tensors(folder / "model.safetensors")
    assert all(tensors.values()), [name for name, small in tensors.items() if not small]
    config = json.loads((folder / "config.json").read_text())
    assert {config.get(key, "bfloat16") for key in ("dtype", "torch_dtype")} == {"bfloat16"}
    loaded, _ = load(str(folder))
    # Merged weights are rounded to 8 bits once more; logits have a spread of 2 here, and those of the base model
    # are off by 1 and more on average.
    assert np.abs(logits_of(loaded) - full_logits(policy, ROW)).mean() < 0.06


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_what_we_do(family: str, family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder(family), "lora", rank=4, alpha=6.0)
    adapter = export_peft(policy, tmp_path / "peft")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6.0)
    assert (config["use_dora"], config["use_rslora"], config["bias"]) == (False, False, "none")
    assert config["base_model_name_or_path"] == str(family_folder(family))
    tensors = load_file(adapter / "adapter_model.safetensors")
    base = load_file(family_folder(family) / "model.safetensors")
    for index, block in enumerate(linear_shapes(family_config(family))):
        for name, inputs, outputs in block:
            path = f"model.layers.{index}.{name}"
            a = tensors.pop(f"base_model.model.{path}.lora_A.weight")
            b = tensors.pop(f"base_model.model.{path}.lora_B.weight")
            assert a.shape == (4, inputs)
            assert b.shape == (outputs, 4)
            assert name.rsplit(".", 1)[-1] in config["target_modules"]
            # PEFT: W + (lora_alpha / r) B A
            base[f"{path}.weight"] = base[f"{path}.weight"] + (6.0 / 4) * (b @ a)
    assert not tensors
    merged = write_family(tmp_path / "merged", family)
    save_file(base, merged / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = load(str(merged))
    np.testing.assert_allclose(logits_of(loaded), full_logits(policy, ROW), atol=1e-4)


def test_a_partial_peft_adapter_names_its_layers(family_folder: Folder, tmp_path: Path) -> None:
    keys = ("self_attn.q_proj", "mlp.down_proj")
    policy = trained(family_folder("llama"), "lora", layers=2, keys=keys)
    config = json.loads((export_peft(policy, tmp_path / "peft") / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["layers_to_transform"] == [1, 2]
    whole = trained(family_folder("llama"), "lora")
    config = json.loads((export_peft(whole, tmp_path / "whole") / "adapter_config.json").read_text())
    assert config["layers_to_transform"] is None


@pytest.mark.parametrize("tuning", ["full", "dora"])
def test_what_cannot_be_exported(tuning: str, family_folder: Folder, tmp_path: Path) -> None:
    policy = load_policy(PolicyConfig(model=str(family_folder("qwen2")), tuning=tuning, dtype="float32"))
    with pytest.raises(UserError, match="lora"):
        export_peft(policy, tmp_path / "peft")
    if tuning == "full":
        with pytest.raises(UserError, match="full: export the model"):
            export_adapter(policy, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


MESSAGES = [{"role": "user", "content": "Are you coming at 9:30? It'S 1234."}]


def same_tokenizer(exported: Path, base: Path) -> None:
    ours, theirs = AutoTokenizer.from_pretrained(exported), AutoTokenizer.from_pretrained(base)
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.encode(MESSAGES[0]["content"]) == theirs.encode(MESSAGES[0]["content"])
    if theirs.chat_template:
        for prompt in (True, False):
            arguments: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompt}
            text = theirs.apply_chat_template(MESSAGES, **arguments)
            assert ours.apply_chat_template(MESSAGES, **arguments) == text
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (exported / name).is_file() == (base / name).is_file()
        if (base / name).is_file():
            assert (exported / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
def test_tokenizer_and_stop_tokens_go_along(family: str, family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder(family), "lora")
    same_tokenizer(export_model(policy, tmp_path / "model"), family_folder(family))
    assert load_policy(str(tmp_path / "model")).stop_ids == policy.stop_ids


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="no ../shared/models beside the checkout")
@pytest.mark.parametrize("name", ["summarizer-5m", "stories260K"])
def test_a_real_model_is_exported_whole(name: str, tmp_path: Path) -> None:
    policy = trained(SHARED_MODELS / name, "lora")
    folder = export_model(policy, tmp_path / "model")
    same_tokenizer(folder, SHARED_MODELS / name)
    loaded, tokenizer = load(str(folder))
    np.testing.assert_allclose(logits_of(loaded), full_logits(policy, ROW), atol=1e-4)
    assert policy.stop_ids <= set(tokenizer.eos_token_ids)


def test_a_reconciled_model_is_exported_as_mlx_lm_reads_it(tmp_path: Path) -> None:
    nested = {"rope_theta": 123.0, "rope_type": "default"}
    base = write_family(tmp_path / "base", "qwen2", rope_theta=None, rope_parameters=nested)
    policy = trained(base, "lora")
    assert policy.reconciled
    loaded, _ = load(str(export_model(policy, tmp_path / "model")))
    np.testing.assert_allclose(logits_of(loaded), full_logits(policy, ROW), atol=1e-4)
    misread, _ = load(str(base), adapter_path=str(export_adapter(policy, tmp_path / "adapter")))
    assert np.abs(logits_of(misread) - full_logits(policy, ROW)).max() > 0.01


def test_a_new_export_takes_the_place_of_the_old(family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder("qwen2"), "lora")
    folder = export_adapter(policy, tmp_path / "adapter")
    (folder / "stray.txt").write_text("of the old export")
    randomize_adapters(policy, seed=9)
    export_adapter(policy, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapters.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    for name, array in load_file(folder / "adapters.safetensors").items():
        np.testing.assert_array_equal(array, policy.weights()[name])


def test_a_failed_export_leaves_the_old_one(
    family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = trained(family_folder("qwen2"), "lora")
    folder = export_adapter(policy, tmp_path / "adapter")
    before = (folder / "adapters.safetensors").read_bytes()
    randomize_adapters(policy, seed=9)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_sumrl.policy.export._write_json", full_disk)
    with pytest.raises(OSError, match="No space"):
        export_adapter(policy, folder)
    assert (folder / "adapters.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
