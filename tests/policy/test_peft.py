"""PEFT folders taken in again: bit for bit what was exported, and nothing that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.export import export_peft
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.peft import load_peft, remove_adapters
from mlx_sumrl.policy.policy import Policy
from tests.families import FAMILIES, full_logits, randomize_adapters

Folder = Callable[[str], Path]
ROW = [9, 8, 7, 100, 200, 30, 31, 32]


def trained(folder: Path, seed: int = 0, **lora: Any) -> Policy:
    options = LoraConfig(**({"rank": 4, "alpha": 6.0} | lora))
    policy = load_policy(PolicyConfig(model=str(folder), tuning="lora", dtype="float32", lora=options))
    randomize_adapters(policy, seed)
    return policy


def bits(policy: Policy) -> dict[str, bytes]:
    return {name: np.array(array).tobytes() for name, array in policy.weights().items()}


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"rank": 3, "alpha": 1.0, "layers": 2},
        {"layers": 1, "keys": ("mlp.down_proj",)},
        {"rank": 7, "alpha": 11.0, "dropout": 0.25},
    ],
)
@pytest.mark.parametrize("family", ["qwen2", "llama-untied"])
def test_there_and_back(family: str, lora: dict[str, Any], family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder(family), **lora)
    export_peft(policy, tmp_path / "peft")
    other = trained(family_folder(family), seed=5, rank=2, keys=("self_attn.o_proj",))
    load_peft(other, tmp_path / "peft")
    assert bits(other) == bits(policy)
    np.testing.assert_array_equal(full_logits(other, ROW), full_logits(policy, ROW))
    export_peft(other, tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "peft" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_there_and_back(family: str, family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder(family))
    export_peft(policy, tmp_path / "peft")
    base = load_policy(PolicyConfig(model=str(family_folder(family)), tuning="full", dtype="float32"))
    plain = full_logits(base, ROW)
    load_peft(base, tmp_path / "peft")
    np.testing.assert_array_equal(full_logits(base, ROW), full_logits(policy, ROW))
    remove_adapters(base)
    np.testing.assert_array_equal(full_logits(base, ROW), plain)
    assert np.abs(full_logits(policy, ROW) - plain).max() > 0.5


def test_an_adapter_on_the_head(family_folder: Folder, tmp_path: Path) -> None:
    for keys in (("lm_head",), ("lm_head", "mlp.up_proj")):
        policy = trained(family_folder("llama-untied"), keys=keys)
        export_peft(policy, tmp_path / "peft")
        other = trained(family_folder("llama-untied"), seed=5)
        load_peft(other, tmp_path / "peft")
        np.testing.assert_array_equal(full_logits(other, ROW), full_logits(policy, ROW))


def test_the_types_of_an_adapter_stay(family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder("qwen2"))
    policy.set_weights({name: array.astype(mx.bfloat16) for name, array in policy.weights().items()})
    export_peft(policy, tmp_path / "peft")
    other = trained(family_folder("qwen2"), seed=5)
    load_peft(other, tmp_path / "peft")
    for name, array in policy.weights().items():
        assert other.weights()[name].dtype == mx.bfloat16
        assert mx.array_equal(other.weights()[name], array)


def test_the_folder_may_go(family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder("qwen2"))
    export_peft(policy, tmp_path / "peft")
    other = trained(family_folder("qwen2"), seed=5)
    load_peft(other, tmp_path / "peft")
    (tmp_path / "peft" / "adapter_model.safetensors").write_bytes(b"")
    np.testing.assert_array_equal(full_logits(other, ROW), full_logits(policy, ROW))


Change = Callable[[Path], None]


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Change:
    def change(folder: Path) -> None:
        held = load_file(folder / "adapter_model.safetensors")
        edit(held)
        save_file(held, folder / "adapter_model.safetensors")

    return change


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "not a PEFT"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "not a PEFT"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle"), "not a whole"),
        (config(peft_type="LOHA"), "LORA"),
        (config(use_dora=True), "use_dora"),
        (config(use_rslora=True), "use_rslora"),
        (config(bias="all"), "bias"),
        (config(modules_to_save=["lm_head"]), "modules_to_save"),
        (config(r=5), "rank 5"),
        (config(r="4"), "r '4'"),
        (config(lora_alpha=-1), "alpha"),
        (config(lora_dropout=1.5), "dropout"),
        (tensors(lambda held: held.pop(Q.format("A"))), "only lora_B"),
        (tensors(lambda held: [held.pop(Q.format(half)) for half in "AB"]), "has nothing for"),
        (tensors(lambda held: held.update({"model.odd": np.zeros(3, np.float32)})), "model.odd"),
        (tensors(lambda held: held.update({Q.format("A"): np.zeros((4, 9), np.float32)})), "9 x 32"),
        (tensors(lambda held: held.update({Q.format("A"): np.zeros((4, 32), np.int32)})), "int32"),
        (
            tensors(
                lambda held: [held.update({Q.format(h).replace("q_", "z_"): held[Q.format(h)]}) for h in "AB"]
            ),
            "not there",
        ),
        (tensors(lambda held: held.clear()), "no adapter at all"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    change: Change, said: str, family_folder: Folder, tmp_path: Path
) -> None:
    export_peft(trained(family_folder("qwen2")), tmp_path / "peft")
    policy = trained(family_folder("qwen2"), seed=5, rank=2)
    before, options = full_logits(policy, ROW), policy.options
    change(tmp_path / "peft")
    with pytest.raises(UserError, match=said):
        load_peft(policy, tmp_path / "peft")
    np.testing.assert_array_equal(full_logits(policy, ROW), before)
    assert policy.options == options
