"""`recipes.sft`, `recipes.quantize` and `recipes.learning_rate` as a user runs them, and what they say to mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import TinyModelConfig
from mlx_sumrl.policy.tiny import make_tiny_model

from .programs import Ended, Program, write_options


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, posts: list[dict[str, str]]) -> Path:
    """A model folder that reads a whole post and its summary; not to be changed."""
    options = TinyModelConfig(vocabulary=320, hidden_size=32, layers=1, heads=2, context=256)
    folder = tmp_path_factory.mktemp("models") / "small"
    return make_tiny_model(folder, options, [post["document"] for post in posts], 0)


@pytest.fixture
def options(small_model: Path, posts_file: Path) -> dict[str, Any]:
    """Four steps of LoRA, measured after two and after four."""
    rows = {"train": str(posts_file), "evaluation": str(posts_file), "evaluation_rows": 3}
    return {
        "name": "try",
        "policy": {"model": str(small_model), "dtype": "float32", "lora": {"rank": 2}},
        "data": {**rows, "instruction": "Summarize.\n\n{document}", "max_prompt_tokens": 48},
        "sft": {"steps": 4, "batch_size": 4, "max_tokens": 256},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"every": 2, "samples": 1, "sample_tokens": 8},
    }


def sentence_of(ended: Ended) -> str:
    assert ended.code == 2, ended
    assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
    return ended.err.removeprefix("error: ").rstrip()


def test_a_run_from_its_options_to_what_others_load(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    ended = program("sft", "--config", write_options(tmp_path, options))
    assert (ended.code, ended.err) == (0, "")
    run = tmp_path / "runs" / "try"
    assert {path.name for path in (run / "export").iterdir()} == {"adapter", "peft", "model"}
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
        f"step-{step:06d}.json" for step in (0, 2, 4)
    ]
    assert "4 steps of 4 rows are 1.33 epochs" in ended.out
    assert "3 of 3 held-out prompts are learned too" in ended.out
    losses = re.findall(r"step (\d): held-out loss (\d\.\d+), on training rows (\d\.\d+)", ended.out)
    assert [step for step, _, _ in losses] == ["0", "2", "4"]
    assert float(losses[2][1]) < float(losses[0][1])
    assert "export/model (step 4, the lowest held-out loss)" in ended.out
    # Asked again as in training, by the file that lies beside it.
    asked = program(
        "summarize", "--model", str(run / "export" / "model"), "--max_tokens", "8", "A post of mine."
    )
    assert asked.code == 0, asked
    again = program("sft", "--resume", "runs/try")
    assert again.code == 0
    assert "going on after step 4" in again.out
    assert "runs/try already holds a run" in sentence_of(program("sft", "--config", "job.yaml"))


def test_qlora_end_to_end(program: Program, options: dict[str, Any], tmp_path: Path) -> None:
    model = options["policy"]["model"]
    made = program("quantize", "--model", model, "--out", "few", "--group_size", "32", "--bits", "8")
    assert (made.code, made.err) == (0, "")
    assert re.search(
        r"weights of \d+\.\d\d MB; few: \d+\.\d\d MB, [1-4]\.\d\d times smaller \(\d+ matrices in 8 bits\)",
        made.out,
    )
    config = write_options(tmp_path, options)
    ended = program("sft", "--config", config, "--policy.model", "few")
    assert (ended.code, ended.err) == (0, "")
    saved = json.loads((tmp_path / "runs" / "try" / "export" / "model" / "config.json").read_text())
    assert "quantization" not in saved
    packed = program(
        "sft", "--config", config, "--policy.model", "few", "--name", "packed", "--export.dequantize", "false"
    )
    assert packed.code == 0
    saved = json.loads((tmp_path / "runs" / "packed" / "export" / "model" / "config.json").read_text())
    assert saved["quantization"]["bits"] == 8
    sentence = sentence_of(
        program("sft", "--config", config, "--policy.model", "few", "--name", "f", "--policy.tuning", "full")
    )
    assert "quantised" in sentence
    assert "policy.tuning lora" in sentence


def test_a_rate_is_suggested_and_nothing_written(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    config = write_options(tmp_path, options)
    before = {path.name for path in tmp_path.iterdir()}
    ended = program("learning_rate", "--config", config, "--range.steps", "30", "--range.highest", "10")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"suggested: --optimizer.learning_rate \d\.\de-0\d", ended.out), ended.out
    assert "falls fastest" in ended.out
    assert {path.name for path in tmp_path.iterdir()} == before
    sentence = sentence_of(program("learning_rate", "--config", config, "--range.lowest", "1"))
    assert "range.highest" in sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--sft.epochs", "2"], ["exactly one of sft.epochs and sft.steps", "2 epochs and 4 steps"]),
        (["--sft.steps", "null"], ["exactly one of sft.epochs and sft.steps", "neither"]),
        (["--data.train", "post.jsonl"], ["post.jsonl", "there is no file"]),
        (["--data.reference_column", "sumary"], ["'sumary'", "did you mean 'summary'"]),
        (["--sft.max_tokens", "60"], ["60 tokens", "sft.max_tokens", "too_long: drop"]),
        (
            ["--data.evaluation", "null", "--early_stopping.patience", "3"],
            ["early_stopping.patience 3", "data.evaluation"],
        ),
        (["--sft.label_smoothing", "1"], ["sft.label_smoothing", "less than 1"]),
        (["--optimizer.warmup_ratio", "0.1", "--optimizer.warmup_steps", "2"], ["warmup_ratio 0.1"]),
        (["--policy.model", "models/none"], ["models/none", "policy.model"]),
        (["--sft.batchsize", "2"], ["--sft.batchsize", "batch_size"]),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    changes: list[str], words: list[str], program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    sentence = sentence_of(program("sft", "--config", write_options(tmp_path, options), *changes))
    for word in words:
        assert word in sentence
    run = tmp_path / "runs" / "try"
    assert {path.name for path in run.iterdir()} <= {"config.json", ".lock"} if run.exists() else True


def test_an_empty_file(program: Program, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    config = write_options(tmp_path, options)
    assert "empty.jsonl has no rows" in sentence_of(
        program("sft", "--config", config, "--data.train", "empty.jsonl")
    )


@pytest.mark.parametrize("recipe", ["sft", "quantize", "learning_rate"])
def test_help_shows_every_option_with_a_sentence(recipe: str, program: Program) -> None:
    ended = program(recipe, "--help")
    assert ended.code == 0
    for option in {
        "sft": ("--sft.label_smoothing", "--early_stopping.patience"),
        "quantize": ("--bits",),
        "learning_rate": ("--range.steps",),
    }[recipe]:
        assert option in ended.out


def test_quantize_refuses_what_is_there(program: Program, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    sentence = sentence_of(program("quantize", "--model", options["policy"]["model"], "--out", "few"))
    assert "few is there already" in sentence
    assert "4 or 8" in sentence_of(program("quantize", "--model", "m", "--out", "x", "--bits", "3"))
