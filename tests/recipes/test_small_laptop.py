"""`recipes.small_laptop` from a tiny phi3 to an interval, stopped and gone on with, and what it says to mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.training.supervised_trainer import SupervisedTrainer
from tests.families import TEXTS, full_logits, write_model

from .programs import Ended, Program, write_options


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Six steps on a random phi3, measured on four rows."""
    write_model(tmp_path / "phi3", "phi3", max_position_embeddings=256)
    rows = [
        {"id": str(n), "document": f"{TEXTS[n % 3]} {n}", "summary": "The train leaves."} for n in range(12)
    ]
    for name, part in (("train", rows[:8]), ("held", rows[8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        "name": "lap",
        "policy": {"model": "phi3", "dtype": "float32", "lora": {"layers": 2, "rank": 4}},
        "quantize": {"group_size": 32},
        "data": {"train": "train.jsonl", "evaluation": "held.jsonl", "instruction": "Sum up: {document}"},
        "sft": {"steps": 6, "batch_size": 4},
        "optimizer": {"learning_rate": 3e-2},
        "evaluation": {"every": 3, "samples": 0},
        "comparison": {"max_tokens": 12, "resamples": 500},
    }


def run(program: Program, options: dict[str, Any], folder: Path, *argv: str) -> Ended:
    ended = program("small_laptop", "--config", write_options(folder, options), *argv)
    assert (ended.code, ended.err) == (0, ""), ended
    return ended


def test_a_phi3_from_quantising_to_the_interval(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    ended = run(program, options, tmp_path)
    folder = tmp_path / "runs" / "lap"
    said = json.loads((folder / "base" / "config.json").read_text())
    assert said["quantization"]["bits"] == 4
    # Adapters on the last two of three blocks, and checkpointing, which is this recipe's default.
    written = json.loads((folder / "config.json").read_text())["options"]
    assert written["policy"]["gradient_checkpointing"] is True
    peft = json.loads((folder / "export" / "peft" / "adapter_config.json").read_text())
    assert peft["layers_to_transform"] == [1, 2]
    # The fused model is the base in 4 bits with the adapter on it, unpacked.
    fused = load_policy(PolicyConfig(model=str(folder / "export" / "model"), dtype="float32", tuning="full"))
    assert not fused.is_quantized
    adapter = str(folder / "export" / "adapter")
    parts = load_policy(PolicyConfig(model=str(folder / "base"), dtype="float32"), adapter=adapter)
    row = [9, 8, 7, 100, 200]
    np.testing.assert_allclose(full_logits(fused, row), full_logits(parts, row), atol=2e-3)
    # What was measured before is the base's, and what came after is the fused model's; differences by hand.
    before, after = (
        json.loads((folder / "evaluation" / f"{name}.json").read_text()) for name in ("before", "after")
    )
    assert [one["id"] for one in before["rows"]] == [one["id"] for one in after["rows"]]
    found = json.loads((folder / "evaluation" / "difference.json").read_text())
    for name in ("rouge1", "rougeL", "within"):
        gains = [
            b["metrics"][name] - a["metrics"][name]
            for a, b in zip(before["rows"], after["rows"], strict=True)
        ]
        assert found[name]["difference"] == pytest.approx(np.mean(gains))
        assert min(gains) <= found[name]["low"] <= found[name]["high"] <= max(gains)
    assert found["rouge1"]["difference"] > 0.3, "four words were learned by heart"
    assert re.search(r"rouge1( \*)? .*\+\d", ended.out)
    peaks = re.search(r"memory at most, GB: quantising \S+, before \S+, after \S+, training \S+", ended.out)
    assert peaks, ended.out
    card = ModelCard((folder / "export" / "model" / "README.md").read_text())
    assert "made from phi3 by supervised fine-tuning of LoRA adapters" in card.text
    assert "trained on the base in 4 bits, groups of 32 weights" in card.text
    assert "| rouge1 | +" in card.text


def test_what_is_on_disk_is_not_done_again(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(program, options, tmp_path, "--name", "whole")
    step = SupervisedTrainer._step

    def interrupted(self: SupervisedTrainer) -> dict[str, Any]:
        if self.state.step == 4:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "_step", interrupted)
        config = write_options(tmp_path, options | {"checkpoint": {"every": 2}})
        ended = program("small_laptop", "--config", config)
    assert ended.code == 130
    assert "go on with: python -m recipes.small_laptop --resume runs/lap" in ended.err
    folder = tmp_path / "runs" / "lap"
    kept = {
        name: (folder / name).stat().st_mtime_ns
        for name in ("base/model.safetensors", "evaluation/before.json")
    }
    assert not (folder / "evaluation" / "after.json").exists()
    again = program("small_laptop", "--resume", "runs/lap")
    assert again.code == 0, again
    assert "going on after step 4" in again.out
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert "quantised:" in whole.out
    assert "quantised:" not in again.out
    for name in ("evaluation/difference.json", "export/model/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "runs" / "whole" / name).read_bytes(), name
    # Once more: all is there, and says the same.
    model = folder / "export" / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    once_more = program("small_laptop", "--resume", "runs/lap")
    assert once_more.code == 0
    assert model.stat().st_mtime_ns == written
    assert once_more.out.split("memory at most")[1] == again.out.split("memory at most")[1]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--policy.tuning", "full"], ["policy.tuning full", "recipes.sft"]),
        (["--data.evaluation", "null"], ["data.evaluation is missing"]),
        (["--export.fused", "false"], ["export.fused false"]),
        (["--policy.model", "models/none"], ["models/none"]),
        (["--quantize.bits", "3"], ["quantize.bits", "4 or 8"]),
        (["--quantize.group_size", "128"], ["128 divides", "smaller"]),
        (["--export.gguf"], ["its family is phi3", "convert_hf_to_gguf.py"]),
    ],
)
def test_mistakes(
    argv: list[str], words: list[str], program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    ended = program("small_laptop", "--config", write_options(tmp_path, options), *argv)
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1
    for word in words:
        assert word in ended.err, ended.err
    assert not (tmp_path / "runs" / "lap" / "metrics.jsonl").exists()


def test_a_declared_source_is_read_from_its_place(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hub is reachable: what the datasets library is asked for, with rows from here in its place."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(name: str, **place: Any) -> list[dict[str, Any]]:
        asked.append((name, place))
        file = "held.jsonl" if "validation" in place["split"] else "train.jsonl"
        return [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    options["data"] |= {"train": "xsum", "evaluation": "xsum", "train_rows": 8, "evaluation_rows": 4}
    run(program, options, tmp_path, "--sft.steps", "1")
    place = {"revision": "refs/convert/parquet", "data_dir": "default"}
    splits = [("EdinburghNLP/xsum", {"split": split, **place}) for split in ("train[:8]", "validation[:4]")]
    assert [one for one in splits if one not in asked] == []
    page = (tmp_path / "runs" / "lap" / "export" / "peft" / "README.md").read_text()
    assert (
        "| training | xsum (EdinburghNLP/xsum on the hub) | 8 | unknown; the articles belong to the BBC |"
        in page
    )
