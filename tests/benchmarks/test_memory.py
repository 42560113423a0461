"""The memory benchmark: shapes as published, phases that are all there, and a peak that is the largest of them."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, shapes
from benchmarks.measured_step import Load, grpo_options, measured_step
from benchmarks.memory import configurations
from benchmarks.shapes import SHAPES, make_shape
from mlx_sumrl.reporting.model_shape import ModelShape
from tests.benchmarks.programs import check_spread, run, text_of

TINY = Load(prompts=1, group_size=3, prompt_tokens=9, new_tokens=5)
"""One prompt: one micro-batch, whose gradients stay in the type of the weights."""
HYBRID = SHAPES["lfm2-350m"] | {
    "hidden_size": 64,
    "block_dim": 64,
    "block_ff_dim": 128,
    "block_multiple_of": 32,
    "num_hidden_layers": 3,
    "full_attn_idxs": [1],
    "layer_types": ["conv", "full_attention", "conv"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
}


def asked(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--toy", action="store_true")
    memory.options(parser)
    return parser.parse_args(arguments)


def test_the_program() -> None:
    report = run("memory", "--all", "--reference", "none", "--prompt-tokens", "12", "--repeats", "1")
    assert report["load"] == {"prompts": 2, "group_size": 2, "prompt_tokens": 12, "new_tokens": 4}
    kinds = [(one["shape"], one["tuning"], one["moments"]) for one in report["configurations"]]
    assert kinds == [
        ("toy", "full", "bfloat16"),
        ("toy", "full", "blocks8"),
        ("toy", "lora", "bfloat16"),
    ]
    shown_text = text_of(memory.table(report))
    for one in report["configurations"]:
        assert list(one["phases"]) == ["rollout", "gradient", "update"]
        for phase in one["phases"].values():
            check_spread(phase["seconds"], n=1)
            check_spread(phase["peak"], n=1)
        assert one["peak"]["highest"] == max(phase["peak"]["highest"] for phase in one["phases"].values())
        resident = one["resident"]
        assert one["peak"]["highest"] >= resident["before"] >= resident["weights"] + resident["moments"]
        assert f"{one['tuning']}, {one['moments']}" in shown_text
        assert f"weights {resident['weights'] / 1e9:.3f}" in shown_text


@pytest.mark.usefixtures("exact_buffers")
@pytest.mark.parametrize("moments", ["bfloat16", "blocks8"])
def test_what_lies_in_memory_is_counted_by_hand(moments: Any, tmp_path: Path) -> None:
    import mlx.core as mx

    folder = make_shape(tmp_path / "toy", "toy")
    gc.collect()
    mx.synchronize()
    start = mx.get_active_memory()  # what other tests have left
    result = measured_step(str(folder), TINY, "full", moments, "none")
    # An embedding; in each of two layers q and o, k and v, three matrices, biases of q, k and v, two norms; one norm.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + (64 + 2 * 32) + 2 * 64
    parameters = 512 * 64 + 2 * layer + 64
    assert result["parameters"] == parameters
    assert result["weights"] == result["trained"] == result["gradients"] == 2 * parameters
    if moments == "bfloat16":
        assert result["moments"] == 4 * parameters
    else:
        assert 2 * parameters < result["moments"] < 2.5 * parameters
    assert result["tokens"] == 3 * 5
    assert result["grad_norm"] > 0
    assert [phase["name"] for phase in result["phases"]] == ["rollout", "gradient", "update"]
    assert result["peak"] == max(phase["peak"] for phase in result["phases"])
    assert result["before"] - start == pytest.approx(result["weights"] + result["moments"], rel=0.01)
    for phase in result["phases"]:
        assert phase["peak"] >= phase["kept"]
        assert phase["peak"] >= result["before"]


def test_the_trainer_s_own_step_has_the_same_peak(tmp_path: Path) -> None:
    """In a process of their own, where nothing that other tests left behind is freed meanwhile."""
    folder = make_shape(tmp_path / "toy", "toy")
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.own_peak", str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    measured, own = json.loads(done.stdout.splitlines()[-1])
    assert measured == pytest.approx(own, rel=0.05)


def test_adapters_leave_the_weights_alone(tmp_path: Path) -> None:
    folder = make_shape(tmp_path / "toy", "toy")
    result = measured_step(str(folder), TINY, "lora", "bfloat16", "none")
    assert result["trained"] == result["gradients"] < result["weights"]
    assert result["moments"] < 2 * result["trained"]


def test_a_hybrid_of_convolutions_and_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SHAPES, "hybrid", HYBRID)
    result = measured_step(str(make_shape(tmp_path / "hybrid", "hybrid")), TINY, "full", "bfloat16", "none")
    assert result["grad_norm"] > 0
    assert result["parameters"] == ModelShape.from_config(HYBRID).parameters


@pytest.mark.parametrize(("shape", "parameters"), [("qwen2.5-0.5b", 494_032_768), ("lfm2-350m", 354_483_968)])
def test_shapes_have_the_published_number_of_parameters(shape: str, parameters: int) -> None:
    """Counted from the config, and from the model's own arrays, none of which is computed."""
    import mlx.core as mx

    from mlx_sumrl.policy import mlx_internals

    assert ModelShape.from_config(SHAPES[shape]).parameters == parameters
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    names = mlx_internals.named_arrays(mlx_internals.new_model(SHAPES[shape]).parameters())
    assert sum(array.size for array in names.values()) == parameters
    assert mx.get_peak_memory() - before < 50e6


def test_weights_are_written_in_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mlx.core as mx

    monkeypatch.setattr(shapes, "SHARD", 50_000)
    folder = make_shape(tmp_path / "toy", "toy")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    weights: dict[str, mx.array] = {}
    for file in files:
        part = mx.load(str(file))
        assert isinstance(part, dict)
        weights |= part
    assert {array.dtype for array in weights.values()} == {mx.bfloat16}
    spread = mx.std(weights["model.embed_tokens.weight"].astype(mx.float32))
    assert float(spread.item()) == pytest.approx(0.02, rel=0.05)  # type: ignore[arg-type]
    assert bool((weights["model.norm.weight"] == 1).all().item())


def test_all_is_every_value_of_what_is_left_open() -> None:
    load = Load()
    assert [one.title for one in configurations(asked(), load)] == [
        "qwen2.5-0.5b, full, moments bfloat16, reference none"
    ]
    every = configurations(asked("--all", "--shape", "qwen2.5-0.5b"), load)
    assert [(one.tuning, one.moments, one.reference) for one in every] == [
        ("full", "bfloat16", "none"),
        ("full", "bfloat16", "4bit"),
        ("full", "blocks8", "none"),
        ("full", "blocks8", "4bit"),
        ("lora", "bfloat16", "none"),
    ]


def test_a_reference_in_few_bits_is_measured(tmp_path: Path) -> None:
    folder = str(make_shape(tmp_path / "toy", "toy"))
    assert grpo_options(Load(), "4bit").beta > 0
    without, beside = (measured_step(folder, TINY, "full", "bfloat16", kind) for kind in ("none", "4bit"))
    # 4.5 bits where the matrices have 16, norms and biases as they are.
    more = beside["before"] - without["before"]
    assert 0.25 * without["weights"] < more < 0.45 * without["weights"]


def test_a_group_of_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--toy", "--group-size", "1"]) == 2
    assert "--group-size 1" in capsys.readouterr().err
