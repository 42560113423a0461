"""The length benchmark: shares by hand, and real models' answers counted as the evaluation counts them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import mlx.core as mx
import pytest

from benchmarks import length_pass_rate
from benchmarks.length_shares import Answer, Tolerance, pass_rates
from mlx_sumrl.config import DataConfig, LengthConfig, PolicyConfig
from mlx_sumrl.data.examples import config_rows, load_examples
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation import evaluate
from mlx_sumrl.policy.export import export_adapter
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.rollouts import LocalSampler, Sampling
from tests.benchmarks.programs import run, text_of


def test_tolerances() -> None:
    assert [Tolerance.read(text).tokens(64) for text in ("0", "5", "8%", "12.5%")] == [0, 5, 5, 8]
    assert Tolerance.read("8%").said(16) == "8 % = 1"
    for wrong in ("five", "-1", "1.5", "100%", "nan%", "inf"):
        with pytest.raises(argparse.ArgumentTypeError):
            Tolerance.read(wrong)


def test_shares_by_hand() -> None:
    """Ten rows: two lengths right before, nine after; one that is cut at the target is not within."""
    before = [Answer(str(n), 16 if n < 2 else 30, True) for n in range(10)]
    after = [Answer(str(n), 16 if n < 4 else 18, n < 9) for n in range(10)]
    found = pass_rates({"a": {16: before}, "b": {16: after}}, [Tolerance(0), Tolerance(2)], 0.95)
    (target,) = found
    exact, two = target["tolerances"]
    shares = [{name: one["within"][name]["share"] for name in "ab"} for one in (exact, two)]
    assert shares == [{"a": 0.2, "b": 0.4}, {"a": 0.2, "b": 0.9}]
    assert target["lengths"]["a"]["mean"] == pytest.approx((2 * 16 + 8 * 30) / 10)
    assert target["lengths"]["b"]["unfinished"] == pytest.approx(0.1)
    # Wilson's centre and half width.
    z = NormalDist().inv_cdf(0.975)
    centre = (0.9 + z**2 / 20) / (1 + z**2 / 10)
    half = z / (1 + z**2 / 10) * (0.9 * 0.1 / 10 + z**2 / 400) ** 0.5
    wilson = two["within"]["b"]
    assert (wilson["low"], wilson["high"]) == pytest.approx((centre - half, centre + half))
    # Seven rows changed, all to the better: 2 of 128 throws. Two of them exactly: 2 of 4. Holm doubles the smaller.
    assert (exact["difference"]["p"], two["difference"]["p"]) == pytest.approx((0.5, 2 / 128))
    assert (exact["difference"]["p_holm"], two["difference"]["p_holm"]) == pytest.approx((0.5, 4 / 128))
    assert two["difference"]["share"] == pytest.approx(0.7)
    assert 0 < two["difference"]["low"] < 0.7 < two["difference"]["high"] < 1


def test_other_rows_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="not asked the same rows for 16"):
        pass_rates(
            {"a": {16: [Answer("1", 3, True)]}, "b": {16: [Answer("2", 3, True)]}}, [Tolerance(0)], 0.95
        )


def test_toy() -> None:
    """The same random model twice: no row differs."""
    report = run("length_pass_rate", "--tolerances", "1")
    assert list(report["models"]) == ["prompt-only", "trained"]
    assert [one["target"] for one in report["targets"]] == [4, 8]
    for target in report["targets"]:
        assert [one["tolerance"] for one in target["tolerances"]] == [0, 1], "exact is always there"
        for one in target["tolerances"]:
            assert one["within"]["prompt-only"] == one["within"]["trained"]
            assert (one["difference"]["share"], one["difference"]["p_holm"]) == (0, 1)


def here(module: str, task: dict[str, Any], seconds: float, aloud: bool) -> dict[str, Any]:
    """A worker's answer, without the process."""
    result: dict[str, Any] = json.loads(json.dumps(length_pass_rate.work(**json.loads(json.dumps(task)))))
    return result


def test_real_summaries(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real summariser, and the same with an adapter that changes what it writes."""
    monkeypatch.setattr(length_pass_rate, "measured", here)
    model, rows = shared / "models" / "summarizer-5m", shared / "data" / "dialogsum.validation.jsonl"
    policies = {
        name: load_policy(PolicyConfig(model=str(model), dtype="float32", tuning=tuning))
        for name, tuning in (("prompt-only", "full"), ("trained", "lora"))
    }
    changed = policies["trained"]
    noise = {name: mx.random.normal(w.shape, key=mx.random.key(1)) for name, w in changed.weights().items()}
    changed.set_weights({name: w + 0.02 * noise[name] for name, w in changed.weights().items()})
    export_adapter(changed, tmp_path / "adapter")
    instruction = "Summarize the conversation.\n\n{document}"
    given = ["--model", str(model), "--adapter", str(tmp_path / "adapter"), "--dtype", "float32", "--json"]
    given += ["--data", str(rows), "--document-column", "dialogue", "--instruction", instruction]
    assert length_pass_rate.main([*given, "--rows", "6", "--targets", "28", "--tolerances", "0,6,25%"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert any("no length is told" in line for line in report["not_equal"])
    (target,) = report["targets"]
    options = DataConfig(
        evaluation=str(rows), document_column="dialogue", instruction=instruction, evaluation_rows=6
    )
    for name, policy in policies.items():
        fitting = options.model_copy(update={"max_prompt_tokens": policy.room_for_prompt(512, 43)})
        read = config_rows(fitting, "evaluation", 0)
        assert read is not None
        examples = load_examples(read, fitting, policy.tokenizer, 28, "evaluation").examples
        found = evaluate(
            LocalSampler(policy), examples, LengthConfig(target=28), Sampling(0, max_tokens=43), 6
        )
        for one in target["tolerances"]:
            passed = [
                row.finish_reason == "stop" and abs(row.length - 28) <= one["tolerance"] for row in found.rows
            ]
            assert one["within"][name]["share"] == pytest.approx(sum(passed) / 6)
        assert target["lengths"][name]["mean"] == pytest.approx(found.summary["length_mean"])
        assert target["lengths"][name]["unfinished"] == pytest.approx(found.summary["unfinished"])
    assert target["lengths"]["trained"] != target["lengths"]["prompt-only"], "the adapter is there"
    assert "25 % = 7" in text_of(length_pass_rate.table(report))


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for arguments, expected in (
        ([], "--model is missing"),
        (["--model", "m", "--instruction", "Sum up."], "has no {document}"),
        (["--model", str(model), "--data", str(tmp_path / "no.jsonl")], "no.jsonl"),
        (["--model", str(model)], "no config.json"),
    ):
        assert length_pass_rate.main(arguments) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert len(said.strip().splitlines()) == 1
