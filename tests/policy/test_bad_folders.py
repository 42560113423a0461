"""What cannot be loaded is refused in one sentence that names the thing, before any training time is spent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_sumrl.config import LoraConfig, PolicyConfig, TinyModelConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.export import export_adapter
from mlx_sumrl.policy.loading import load_policy
from tests.families import family_config, write_config, write_model

Folder = Callable[[str], Path]


@pytest.fixture
def folder(family_folder: Folder, tmp_path: Path) -> Path:
    """A tiny qwen2 that a test may break."""
    return Path(shutil.copytree(family_folder("qwen2"), tmp_path / "broken"))


@pytest.fixture
def adapter(family_folder: Folder, tmp_path: Path) -> Path:
    """An adapter for it."""
    options = PolicyConfig(model=str(family_folder("qwen2")), dtype="float32", lora=LoraConfig(rank=4))
    return export_adapter(load_policy(options), tmp_path / "adapter")


def refusal(model: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_policy(PolicyConfig(model=str(model), dtype="float32", **options))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    return sentence


def cut(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"there is no model folder {tmp_path / 'absent'}" in refusal(tmp_path / "absent")
    assert "there is no model folder ./absent" in refusal("./absent")
    assert "there is no model folder absent" in refusal("absent")


def test_a_file_is_not_a_model_folder(folder: Path) -> None:
    assert str(folder / "config.json") in refusal(folder / "config.json")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert f"{folder} has no config.json" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[1, 2]", "\xff"])
def test_a_config_that_is_no_json_object(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content, encoding="latin-1")
    assert str(folder / name) in refusal(folder)


def test_a_config_without_a_family(folder: Path) -> None:
    write_config(folder, family_config("qwen2"), model_type=None)
    sentence = refusal(folder)
    assert str(folder) in sentence
    assert "model_type" in sentence


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    sentence = refusal(folder)
    assert f"{folder} has no model*.safetensors" in sentence
    assert "mlx_lm.convert" in sentence


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.5, 0.999])
def test_truncated_weights(share: float, folder: Path) -> None:
    cut(folder / "model.safetensors", share)
    assert str(folder) in refusal(folder)


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 50)
    assert str(folder / "model.safetensors") in refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    write_config(folder, family_config("qwen2"), hidden_size=64)
    assert str(folder) in refusal(folder)


def test_a_missing_layer_is_noticed(folder: Path) -> None:
    write_config(folder, family_config("qwen2"), num_hidden_layers=4)
    assert str(folder) in refusal(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    sentence = refusal(folder)
    assert str(folder) in sentence
    assert "tokenizer" in sentence


def test_a_broken_tokenizer(folder: Path) -> None:
    cut(folder / "tokenizer.json", 0.5)
    assert f"{folder} has no tokenizer that can be loaded" in refusal(folder)


def test_no_stop_token(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "stop token" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("self_attn.qproj", "self_attn.q_proj"), ("q_proj", "self_attn.q_proj"), ("mlp.gate", "mlp.gate_proj")],
)
def test_a_lora_key_that_matches_nothing(key: str, meant: str, folder: Path) -> None:
    sentence = refusal(folder, lora=LoraConfig(keys=("mlp.up_proj", key)))
    assert repr(key) in sentence
    assert f"did you mean {meant!r}" in sentence
    assert "mlp.down_proj" in sentence  # all there are


def test_no_lora_keys_at_all(folder: Path) -> None:
    assert "policy.lora.keys" in refusal(folder, lora=LoraConfig(keys=()))


@pytest.mark.parametrize("layers", [4, 100])
def test_more_layers_than_there_are_means_all(layers: int, folder: Path) -> None:
    policy = load_policy(PolicyConfig(model=str(folder), lora=LoraConfig(layers=layers, rank=2)))
    assert {name.split(".")[2] for name in policy.weights()} == {"0", "1", "2"}


def test_an_adapter_and_full_training_do_not_go_together(folder: Path, adapter: Path) -> None:
    assert "policy.tuning full" in refusal(folder, tuning="full", adapter=str(adapter))


def test_no_adapter_there(folder: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(folder, adapter=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        '{"fine_tune_type": "full"}',
        '{"lora_parameters": {"rank": 8}}',
        '{"lora_parameters": {"rank": 0, "scale": 2.0}}',
        '{"lora_parameters": {"rank": "eight", "scale": 2.0}}',
    ],
)
def test_an_adapter_config_that_says_too_little(config: str, folder: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(config)
    assert str(adapter) in refusal(folder, adapter=str(adapter))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.7])
def test_truncated_adapter_weights(share: float, folder: Path, adapter: Path) -> None:
    cut(adapter / "adapters.safetensors", share)
    assert str(adapter) in refusal(folder, adapter=str(adapter))


def test_an_adapter_of_another_rank_than_it_says(folder: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_parameters"]["rank"] = 8
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    sentence = refusal(folder, adapter=str(adapter))
    assert f"the adapter in {adapter} does not fit {folder}" in sentence
    assert "lora_a" in sentence


def test_an_adapter_with_a_tensor_missing(folder: Path, adapter: Path) -> None:
    weights = mx.load(str(adapter / "adapters.safetensors"))
    mx.eval(weights)
    weights.pop("model.layers.1.mlp.up_proj.lora_a")
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)
    assert "model.layers.1.mlp.up_proj.lora_a" in refusal(folder, adapter=str(adapter))


def test_an_adapter_of_another_family(family_folder: Folder, adapter: Path) -> None:
    assert str(family_folder("lfm2")) in refusal(family_folder("lfm2"), adapter=str(adapter))


def test_an_adapter_of_a_wider_model(adapter: Path, tmp_path: Path) -> None:
    from mlx_sumrl.policy.tiny import make_tiny_model

    wider = make_tiny_model(
        tmp_path / "wider", TinyModelConfig(vocabulary=300, hidden_size=64, context=64), ["a b c"], seed=0
    )
    assert f"the adapter in {adapter} does not fit {wider}" in refusal(wider, adapter=str(adapter))


def test_a_hub_id_that_is_not_to_be_had() -> None:
    """In a process of its own: the hub client reads HF_HUB_OFFLINE once."""
    script = (
        "from mlx_sumrl.errors import UserError\n"
        "from mlx_sumrl.policy.loading import load_policy\n"
        "try:\n"
        "    load_policy('nobody/no-such-model')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    [sentence] = result.stdout.strip().splitlines()
    assert (
        "policy.model 'nobody/no-such-model' is neither a local folder nor to be had from the hub" in sentence
    )
    assert "give its folder" in sentence


def test_custom_code_is_not_run_unasked(folder: Path) -> None:
    (folder / "own_model.py").write_text("raise SystemExit('ran code of the model folder')\n")
    write_config(folder, family_config("qwen2"), model_file="own_model.py")
    sentence = refusal(folder)
    assert str(folder) in sentence
    assert "own_model.py" in sentence


def test_a_good_folder_is_still_good(folder: Path, adapter: Path) -> None:
    """What the tests above break loads before they break it."""
    policy = load_policy(PolicyConfig(model=str(folder), dtype="float32"), adapter=str(adapter))
    assert policy.options.lora.rank == 4
    assert len(policy.weights()) == 3 * 7 * 2


def test_a_flipped_byte_in_the_weights_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8] ^= 0xFF  # the brace that opens the header
    file.write_bytes(bytes(content))
    assert str(file) in refusal(folder)
