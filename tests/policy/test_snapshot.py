"""What is published: bit for bit the policy, as an adapter or whole, without a second copy of it in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from safetensors import safe_open

from benchmarks.shapes import SHAPES, make_shape
from cluster.weight_check import check_names
from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.export import export_model
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.snapshot import take_weights, text_logprobs, write_safetensors, write_snapshot
from tests.families import FAMILIES, full_logits, log_softmax, randomize_adapters, write_model

Folder = Callable[[str], Path]
ROW = [9, 8, 7, 100, 200, 30, 31, 32]


def loaded(folder: Path, tuning: str, dtype: str = "float32", **lora: Any) -> Policy:
    options = LoraConfig(**({"rank": 4, "alpha": 6.0} | lora))
    policy = load_policy(PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype, lora=options))
    if tuning != "full":
        randomize_adapters(policy)
    return policy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_weights_are_those_of_the_policy(
    family: str, dtype: str, family_folder: Folder, tmp_path: Path
) -> None:
    policy = loaded(family_folder(family), "full", dtype)
    policy.set_weights({name: array * 1.25 for name, array in policy.weights().items()})
    assert write_snapshot(policy, tmp_path / "full") == "full"
    export_model(policy, tmp_path / "exported")
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert {path.name for path in (tmp_path / "full").iterdir()} == names
    for name in names - {"model.safetensors"}:
        ours, theirs = tmp_path / "full" / name, tmp_path / "exported" / name
        assert ours.read_bytes() == theirs.read_bytes()
    files = (tmp_path / folder / "model.safetensors" for folder in ("full", "exported"))
    written, exported = (mx.load(str(file)) for file in files)
    assert written.keys() == exported.keys()
    for name, array in written.items():
        assert array.dtype == exported[name].dtype == getattr(mx, dtype)
        assert mx.array_equal(array, exported[name]), name
    # Hugging Face's own reader takes the header, and mlx-lm the folder.
    with safe_open(tmp_path / "full" / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == written.keys()
        assert file.metadata() == {"format": "pt"}
    model, _ = load(str(tmp_path / "full"))
    np.testing.assert_array_equal(
        np.array(model(mx.array([ROW]))[0].astype(mx.float32)), full_logits(policy, ROW).astype(np.float32)
    )
    # And back into another policy, whatever it was before.
    other = loaded(family_folder(family), "lora", dtype)
    take_weights(other, tmp_path / "full")
    np.testing.assert_array_equal(full_logits(other, ROW), full_logits(policy, ROW))


def test_what_is_an_adapter_and_what_is_whole(family_folder: Folder, tmp_path: Path) -> None:
    folder = family_folder("llama-untied")
    assert write_snapshot(loaded(folder, "lora"), tmp_path / "a") == "adapter"
    assert write_snapshot(loaded(folder, "full"), tmp_path / "b") == "full"
    for number, policy in enumerate(
        [loaded(folder, "dora"), loaded(folder, "lora", keys=("lm_head", "mlp.up_proj"))]
    ):
        target = tmp_path / f"fused-{number}"
        assert write_snapshot(policy, target) == "full"
        model, _ = load(str(target))
        logits = np.array(model(mx.array([ROW]))[0].astype(mx.float32))
        np.testing.assert_allclose(logits, full_logits(policy, ROW), atol=1e-4)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_snapshot_takes_its_name_when_it_is_whole(
    family_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = loaded(family_folder("qwen2"), "full")

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_sumrl.policy.snapshot.write_beside_weights", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_snapshot(policy, tmp_path / "full")
    assert list(tmp_path.iterdir()) == []


def test_a_fused_quantised_model_is_refused(family_folder: Folder, tmp_path: Path) -> None:
    policy = loaded(family_folder("llama-untied"), "dora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlx_internals, "is_quantized", lambda model: True)
        with pytest.raises(UserError, match="dora on the quantised model"):
            write_snapshot(policy, tmp_path / "full")


@pytest.mark.parametrize("tuning", ["full", "dora"])
def test_no_second_copy_of_the_weights(tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory of writing and of taking in, against the largest tensor in float32, in which DoRA fuses."""
    deep = SHAPES["toy"] | {"num_hidden_layers": 12, "vocab_size": 304}
    monkeypatch.setitem(SHAPES, "deep", deep)
    policy = loaded(make_shape(tmp_path / "model", "deep"), tuning, "bfloat16")
    mx.eval(policy.model.parameters())
    arrays = mlx_internals.named_arrays(policy.model.parameters())
    total = sum(array.nbytes for array in arrays.values())
    largest = max(array.nbytes for array in arrays.values())
    room = 4 * 2 * largest + 2**14
    assert total > 3 * room
    del arrays
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    write_snapshot(policy, tmp_path / "full")
    assert mx.get_peak_memory() - before < room
    mx.reset_peak_memory()
    if tuning == "full":
        take_weights(policy, tmp_path / "full")
        assert mx.get_peak_memory() - before < room


def test_arrays_of_every_shape_and_type(tmp_path: Path) -> None:
    arrays = {
        "scalar": mx.array(3.5),
        "empty": mx.zeros((0, 4), mx.bfloat16),
        "row": mx.arange(5).astype(mx.float16),
        "turned": mx.arange(12).astype(mx.bfloat16).reshape(3, 4).T,
        "odd": mx.array([float("nan"), float("inf"), -float("inf"), -0.0]).astype(mx.bfloat16),
    }
    file = tmp_path / "model.safetensors"
    write_safetensors(file, dict(arrays))
    back = mx.load(str(file))
    assert list(back) == list(arrays) or back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype)
        assert mx.array_equal(back[name], array, equal_nan=True)
    with pytest.raises(ValueError, match="int32"):
        write_safetensors(file, {"ids": mx.array([1, 2])})


def test_text_logprobs(family_folder: Folder) -> None:
    generator = np.random.default_rng(0)
    for family in ("qwen2", "lfm2"):
        policy = loaded(family_folder(family), "lora", dropout=0.5)
        policy.model.train()
        for length in (2, 3, 128):
            text = generator.integers(0, policy.vocabulary, size=length).tolist()
            scores = text_logprobs(policy, text)
            assert policy.model.training
            truth = log_softmax(full_logits(policy, text))[np.arange(length - 1), text[1:]]
            np.testing.assert_allclose(scores, truth, atol=2e-5)
            policy.model.train()
        with pytest.raises(ValueError, match="two tokens"):
            text_logprobs(policy, [3])


def test_whole_weights_that_do_not_fit(family_folder: Folder, tmp_path: Path) -> None:
    policy = loaded(family_folder("qwen2"), "lora")
    before = full_logits(policy, ROW)
    for name in ("llama", "lfm2"):
        with pytest.raises(UserError, match="not the weights of"):
            take_weights(policy, family_folder(name))
    weights = mx.load(str(family_folder("qwen2") / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"][:5]
    (tmp_path / "other").mkdir()
    write_safetensors(tmp_path / "other" / "model.safetensors", weights)
    with pytest.raises(UserError, match=r"model\.norm\.weight as \(5,\)"):
        take_weights(policy, tmp_path / "other")
    np.testing.assert_array_equal(full_logits(policy, ROW), before)


def test_no_file_that_workers_refuse(tmp_path: Path) -> None:
    """sentencepiece's table goes with an exported model, and not to workers, which have their own."""
    model = write_model(tmp_path / "model", "llama")
    (model / "tokenizer.model").write_bytes(b"a table")
    policy = load_policy(PolicyConfig(model=str(model), tuning="full", dtype="float32"))
    assert write_snapshot(policy, tmp_path / "sent") == "full"
    check_names("full", [path.name for path in (tmp_path / "sent").iterdir()])
    assert (tmp_path / "sent" / "tokenizer.json").is_file()
