"""The measuring programs run end to end at a toy size, and the table shows what the JSON says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks import fresh_process, grpo_step, peer, rollout_throughput
from benchmarks.command import closing_lines
from benchmarks.fresh_process import alternating, measured, shown, summary
from benchmarks.workload import Model, checksum, make_model, prompts
from mlx_sumrl.errors import UserError
from tests.benchmarks.programs import check_spread, run, text_of

needs_peer = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm_lora") is None,
    reason="mlx-lm-lora is not installed: pip install 'mlx_sumrl[bench]'",
)


@needs_peer
def test_grpo_step() -> None:
    report = run("grpo_step", "--tuning", "lora", "--steps", "2", "--repeats", "1")
    [case] = report["cases"]
    assert list(case["variants"]) == ["mlx_sumrl", "mlx-lm-lora", "mlx-lm-lora, wide"]
    shown_text = text_of(grpo_step.table(report))
    for variant, numbers in case["variants"].items():
        assert variant in shown_text
        for quantity in ("step", "rollout", "train", "peak"):
            check_spread(numbers[quantity], n=2)
        assert shown(numbers["step"], digits=3) in shown_text
        assert shown(numbers["peak"], 1e-6, 0) in shown_text
        parts = numbers["rollout"]["lowest"] + numbers["train"]["lowest"]
        assert parts <= numbers["step"]["highest"] * 1.01
    for variant, ratios in case["peer_over_ours"].items():
        for quantity, ratio in ratios.items():
            theirs, ours = (case["variants"][who][quantity]["median"] for who in (variant, "mlx_sumrl"))
            assert ratio == pytest.approx(theirs / ours)
            assert f"{ratio:.2f} x" in shown_text


def test_rollout_throughput() -> None:
    report = run("rollout_throughput", "--rounds", "1", "--repeats", "2")
    shown_text = text_of(rollout_throughput.table(report))
    assert len(report["variants"]) == 4
    for variant, numbers in report["variants"].items():
        check_spread(numbers["tokens_per_second"], n=2)
        check_spread(numbers["peak"], n=2)
        assert variant in shown_text
        assert shown(numbers["tokens_per_second"], digits=0) in shown_text
    for ratio in report["ours_over_peer"].values():
        assert f"{ratio:.2f} x" in shown_text


def test_the_parameters_are_those_of_the_model(tmp_path: Path) -> None:
    """Against the file that was written, biases and norms apart."""
    import mlx.core as mx

    model = Model(vocabulary=600, hidden=32, layers=2, heads=4, kv_heads=1)
    weights = mx.load(str(make_model(tmp_path / "model", model) / "model.safetensors"))
    assert isinstance(weights, dict)
    assert sum(array.size for array in weights.values() if array.ndim == 2) == model.parameters
    assert weights["model.embed_tokens.weight"].shape == (600, 32)


def test_prompts_and_rewards_are_the_same_for_all() -> None:
    assert prompts(2, 9, 512) == prompts(2, 9, 512)
    assert [len(row) for row in prompts(3, 9, 512)] == [9, 9, 9]
    rewards = checksum(["", ""], ["a b", "a c"])
    assert rewards == checksum(["", ""], ["a b", "a c"])
    assert rewards[0] != rewards[1]


def test_the_order_alternates() -> None:
    assert list(alternating(["a", "b", "c"], 3)) == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]


def test_a_summary_is_median_and_range() -> None:
    assert summary([4.0, 1.0, 9.0, 2.0]) == {"median": 3.0, "lowest": 1.0, "highest": 9.0, "n": 4}
    assert shown(summary([1.0, 2.0, 4.0]), digits=1) == "2.0 (1.0-4.0)"


def test_what_was_held_equal_stands_below_the_table() -> None:
    report = {"machine": fresh_process.machine(), "held_equal": ["the model"], "not_equal": ["the clock"]}
    _, first, kept, last = closing_lines(report)
    assert (first, last) == ("equal: the model", "not equal: the clock")
    assert kept.startswith("equal: memory that is freed is kept")


def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="measured nothing"):
        measured("benchmarks.scaling", {"folder": "nowhere", "size": {}, "steps": 1, "matrix": 8})


def test_a_count_is_a_whole_number_above_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        grpo_step.main(["--toy", "--steps", "0"])
    assert "0 is not above 0" in capsys.readouterr().err


def test_a_missing_peer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    assert grpo_step.main(["--toy"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip().splitlines() == [peer.MISSING]
    assert "pip install 'mlx_sumrl[bench]'" in peer.MISSING
