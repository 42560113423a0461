"""Both sides of the SFT benchmark train the same model, and the report holds what the table shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sft_throughput, supervised_rows
from benchmarks.fresh_process import Taken, shown
from benchmarks.sft_steps import held_loss, own_sft_steps, peer_sft_steps
from benchmarks.sft_throughput import check_same_training, prepare
from benchmarks.supervised_rows import made_source, read, source, tokenised
from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from tests.benchmarks.programs import check_spread, run, text_of


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder as workers find it, and the held loss before training."""
    scratch = tmp_path_factory.mktemp("sft")
    data, model = made_source(scratch, 40)
    return scratch, prepare(data, model, scratch, held=4, train=12)


def test_the_program() -> None:
    report = run("sft_throughput", "--repeats", "2", "--tuning", "lora", "--batches", "2")
    [case] = report["cases"]
    assert (case["tuning"], case["batch_size"], len(case["useful_tokens"])) == ("lora", 2, 2)
    shown_text = text_of(sft_throughput.tables(report))
    assert list(case["variants"]) == ["mlx_sumrl", "mlx_lm.lora"]
    for variant, numbers in case["variants"].items():
        assert variant in shown_text
        check_spread(numbers["tokens_per_second"], n=4)
        check_spread(numbers["first_pass"], n=2)
        check_spread(numbers["peak"], n=2)
        assert shown(numbers["tokens_per_second"], digits=0) in shown_text
        assert shown(numbers["peak"], 1e-6, 0) in shown_text
        assert f"{numbers['held_loss']['median']:.5f}" in shown_text
    ours, peer = case["variants"].values()
    ratio = ours["tokens_per_second"]["median"] / peer["tokens_per_second"]["median"]
    assert case["ours_over_peer"]["tokens_per_second"] == pytest.approx(ratio)
    assert f"{ratio:.2f} x" in shown_text


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_both_sides_train_the_same_model(tuning: Any, prepared: tuple[Path, float]) -> None:
    """What differs after training is far less than what training did."""
    scratch, before = prepared
    held, train = (read(str(scratch / f"{name}.json")) for name in ("held", "train"))
    batches = [train[:4], train[4:8], train[8:12]] * 2
    sides: list[Callable[..., dict[str, Any]]] = [own_sft_steps, peer_sft_steps]
    results = [side(str(scratch / "model"), batches, held, tuning) for side in sides]
    ours, peer = (result["held_loss"] for result in results)
    assert ours < before
    assert abs(ours - peer) < 1e-3 * (before - ours) + 1e-9
    answers = sum(len(row.answer_ids) for batch in batches for row in batch)
    assert [result["trained_tokens"] for result in results] == [answers, answers]
    for result in results:
        assert len(result["steps"]) == len(batches)
        assert all(step["seconds"] > 0 and step["peak"] > 0 for step in result["steps"])


def test_the_held_loss_row_by_row(prepared: tuple[Path, float]) -> None:
    """Against the whole model's own logits, one row at a time and without padding."""
    import mlx.core as mx
    import numpy as np

    scratch, before = prepared
    policy = load_policy(PolicyConfig(model=str(scratch / "model"), dtype="float32", tuning="full"))
    held = read(str(scratch / "held.json"))
    nats = 0.0
    for row in held:
        logits = policy.model(mx.array([[*row.prompt_ids, *row.answer_ids]]))[0]
        logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        for place, token in enumerate(row.answer_ids, start=len(row.prompt_ids) - 1):
            nats -= float(logprobs[place, token])
    mean = nats / sum(len(row.answer_ids) for row in held)
    assert held_loss(policy.model, held) == pytest.approx(mean, rel=1e-5)
    assert before == pytest.approx(mean, rel=1e-5)


def test_rows_end_with_the_stop_token_and_are_as_many_as_asked(prepared: tuple[Path, float]) -> None:
    scratch, _ = prepared
    policy = load_policy(PolicyConfig(model=str(scratch / "tiny"), dtype="float32"))
    rows = tokenised(scratch / "rows.jsonl", policy, 10)
    assert len(rows) == 10
    for row in rows:
        assert row.answer_ids[-1] == policy.stop_id
        assert policy.decode(row.answer_ids[:-1]) == row.reference
        assert "Summarize the conversation.\n\n" in policy.decode(row.prompt_ids)
        assert row.tokens == len(row.prompt_ids) + len(row.answer_ids)
    with pytest.raises(UserError, match="ask for fewer --batches"):
        tokenised(scratch / "rows.jsonl", policy, 1000)


def test_other_training_is_not_taken_for_the_same() -> None:
    def taken(first: dict[str, float], second: dict[str, float]) -> Taken:
        return Taken({"one": [first], "other": [second]}, (0.0, 0.0))

    same = {"trained_tokens": 10, "held_loss": 2.0}
    assert check_same_training(
        taken(same, {"trained_tokens": 10, "held_loss": 2.0005}), 2.1
    ) == pytest.approx(5e-4)
    with pytest.raises(UserError, match="did not train the same model"):
        check_same_training(taken(same, {"trained_tokens": 10, "held_loss": 2.01}), 2.1)
    with pytest.raises(UserError, match="different numbers of tokens"):
        check_same_training(taken(same, {"trained_tokens": 12, "held_loss": 2.0}), 2.1)


def test_missing_rows_or_model_are_one_sentence_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(supervised_rows, "DATA", tmp_path / "rows.jsonl")
    assert sft_throughput.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.strip().splitlines()
    for part in ("rows.jsonl", "--data FILE", "--model FOLDER"):
        assert part in line
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "1"}))
    with pytest.raises(UserError, match="there is no folder"):
        source(None, tmp_path / "nowhere")
