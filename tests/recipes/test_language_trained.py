"""The language reward can be trained on: a policy that answers Chinese now in Chinese, now in English, unlearns the
English."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .programs import SHARED, Program, tiny_job, write_options

STEPS = 16


def test_a_policy_of_two_languages_keeps_the_document_s(program: Program, tmp_path: Path) -> None:
    source = SHARED / "data" / "lcsts.sample.jsonl"
    if not source.is_file():
        pytest.skip("needs lcsts in the shared folder beside the checkout")
    with source.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(16), strict=False)]
    answers = ["经济增长了", "The economy grew"]
    taught = [{**row, "summary": answers[n % 2]} for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in taught), encoding="utf-8")
    changes = {
        "data": {"grammar": None, "train": "rows.jsonl", "evaluation": "rows.jsonl"},
        "length": {"target": 8, "tolerance": 3, "unit": "characters"},
        "sampling": {"max_tokens": 32},
        "sft": {"steps": 60, "batch_size": 8, "optimizer": {"learning_rate": 5e-3}},
        "grpo": {"prompts_per_step": 2, "group_size": 8},
        "stages": [{"name": "language", "steps": STEPS, "rewards": [{"kind": "language"}]}],
        "checkpoint": {"every": 100},
    }
    ended = program("grpo_joint", "--config", write_options(tmp_path, tiny_job(changes)))
    assert (ended.code, ended.err) == (0, "")
    run = tmp_path / "runs" / "job"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [row["reward/language"] for row in metrics if row["stage"] == "language"]
    print(f"reward/language: {kept}")
    assert len(kept) == STEPS
    assert any(0.1 < share < 0.9 for share in kept[:4]), "both languages at first"
    assert sum(kept[-4:]) / 4 >= 0.95
    final = json.loads((run / "evaluation" / "final.json").read_text())
    assert final["after"]["language_kept"] == 1.0
    assert "length in characters" in ended.out
    record = json.loads((run / "rollouts.jsonl").read_text().splitlines()[-1])
    assert {one["rewards"]["language"] for one in record["completions"]} <= {0.0, 1.0}
