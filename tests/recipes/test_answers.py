"""Reasoning from end to end: what GRPO pays for, and how a model that learned both is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .jobs import Job
from .programs import Program, tiny_job, write_options


def test_grpo_pays_for_the_answer_and_trains_on_everything(tmp_path: Path) -> None:
    changes = {
        "answer": {"after": "e"},
        "reporting": {"rollouts_every": 1, "rollout_groups": 2},
        "sampling": {"max_tokens": 40},
        "sft": {"steps": 6, "batch_size": 4, "optimizer": {"learning_rate": 3e-3}},
    }
    job = Job(tmp_path, changes)
    rows = [row for row in job.train() if row["stage"] == "only"]
    groups = [json.loads(line) for line in (job.run.path / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    seen = set()
    for row in rows:
        written = [one for group in groups if group["step"] == row["step"] for one in group["completions"]]
        assert len(written) == 8
        for one in written:
            answered = "e" in one["text"]
            seen.add(answered)
            assert one["answer"] == one["text"].rpartition("e")[2].lstrip() * answered
            if not answered or one["finish_reason"] == "length":
                assert one["rewards"]["length"] == -1
            else:
                assert one["rewards"]["length"] == pytest.approx(-min(abs(one["length"] - 12) / 12, 1))
            letters = one["answer"]
            assert one["rewards"]["vowels"] == pytest.approx(
                sum(c in "aeiou" for c in letters) / (1 + len(letters))
            )
        assert row["reasoning/unfinished"] == sum("e" not in one["text"] for one in written) / 8
        assert row["length/mean"] == pytest.approx(sum(one["length"] for one in written) / 8)
        # All tokens are trained on: those before the answer, the answer's, and the stop tokens.
        stopped = sum(one["finish_reason"] == "stop" for one in written)
        lost = sum(one["length"] for one in written if "e" not in one["text"])
        assert lost == 0
        assert row["tokens"] >= 8 * (row["reasoning/length"] + row["length/mean"])
        assert row["tokens"] <= 8 * (row["reasoning/length"] + row["length/mean"]) + stopped + 1e-6
    assert True in seen


def test_a_model_that_learned_both_is_asked_for_one(
    program: Program, tmp_path: Path, posts: list[dict[str, str]]
) -> None:
    rows = [{**post, "summary": f"<think>so</think>{post['summary']}"} for post in posts[:12]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = tiny_job()
    options = {
        "name": "both",
        "policy": job["policy"],
        "data": {"train": "rows.jsonl", "instruction": "{document}", "max_prompt_tokens": 64},
        "masking": {"reasoning": {"share": 0.5}},
        "sft": {"steps": 2, "batch_size": 4, "max_tokens": 240},
    }
    options["policy"]["tiny"] |= {"context": 256}
    ended = program("sft", "--config", write_options(tmp_path, options))
    assert ended.code == 0, ended.err
    asked = ("--model", "runs/both/export/model", "--dtype", "float32", "--max_tokens", "8")
    on_rows = ("--data.evaluation", "rows.jsonl", "--out", "found.json")
    unsaid = program("evaluate", *asked, *on_rows)
    assert unsaid.code == 2
    assert "say which with --reasoning on or --reasoning off" in unsaid.err
    assert program("evaluate", *asked, *on_rows, "--reasoning", "on").code == 0
    summary = json.loads((tmp_path / "found.json").read_text())["summary"]
    assert summary["reasoning_unfinished"] == summary["unfinished"] == 1  # it has learned nothing yet
    assert program("evaluate", *asked, *on_rows, "--reasoning", "off").code == 0
    assert "reasoning_unfinished" not in json.loads((tmp_path / "found.json").read_text())["summary"]
    thinking = program("summarize", *asked, "--reasoning", "on", "a text")
    assert thinking.code == 2
    assert "'</think>' never came in 8 tokens, cut there" in thinking.err
    assert program("summarize", *asked, "--reasoning", "off", "a text").code == 0
