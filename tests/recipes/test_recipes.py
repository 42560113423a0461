"""Each recipe from its command line to the files and numbers it leaves, on the smallest job there is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.options.tree import merged
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.training.stages import laid_under

from .programs import SHARED, Ended, Program, tiny_job, write_options

STAGES = [
    {"name": "length", "steps": 3, "rewards": [{"kind": "length"}, {"kind": "rougeL", "weight": 0}]},
    {"name": "quality", "steps": 2, "rewards": [{"kind": "length"}, {"kind": "rougeL", "weight": 2}]},
]
CHANGES = {
    "name": "job",
    "data": {"grammar": None, "train": "posts.jsonl", "evaluation": "held_out.jsonl", "id_column": "id"},
    "sft": {"steps": 2},
    "evaluation": {"samples": 2},
}
NUMBERS = ("within", "exact", "length_mean", "rougeL")


@dataclass(frozen=True)
class Job:
    """What a run left."""

    run: Path
    config: str
    ended: Ended

    def json(self, name: str) -> Any:
        return json.loads((self.run / name).read_text())

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / name).read_text().splitlines()]

    def files(self) -> dict[str, bytes]:
        found = [path for path in self.run.rglob("*") if path.is_file()]
        return {path.relative_to(self.run).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def rows(posts: list[dict[str, str]], tmp_path: Path) -> None:
    """30 posts to train on, 6 held out."""
    for name, part in (("posts", posts[:30]), ("held_out", posts[30:36])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(post) + "\n" for post in part))


@pytest.fixture
def staged(program: Program, rows: None, tmp_path: Path) -> Job:
    config = write_options(tmp_path, tiny_job({**CHANGES, "stages": STAGES}))
    return Job(tmp_path / "runs" / "job", config, program("grpo_staged", "--config", config))


def table_of(out: str, *names: str) -> list[list[str]]:
    """What the printed table says of these policies in this order: within, exact, length, ±, spread, ..."""
    lines = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    return [
        next(line for line in lines if re.match(rf"{re.escape(name)} [0-9]", line)).removeprefix(name).split()
        for name in names
    ]


def test_staged_from_start_to_end(staged: Job, program: Program, tmp_path: Path) -> None:
    assert (staged.ended.code, staged.ended.err) == (0, "")

    # The folder, as DESIGN has it.
    files = staged.files()
    assert {name.split("/")[0] for name in files} - {".lock", "base"} == {
        *(
            "config.json",
            "metrics.jsonl",
            "rollouts.jsonl",
            "curves.svg",
            "checkpoints",
            "evaluation",
            "export",
        ),
        *("provenance.json", "exported.json"),
    }
    assert {name for name in files if name.startswith("evaluation/")} == {
        f"evaluation/{name}.json" for name in ("before", "length", "quality", "final")
    }
    last = {"policy.safetensors", "optimizer.safetensors", "state.json"}
    assert {f"checkpoints/step-000007/{name}" for name in last} <= files.keys()
    assert {"export/model/model.safetensors", "export/model/config.json", "export/model/tokenizer.json"} <= (
        files.keys()
    )
    config = staged.json("config.json")
    assert config["options"]["grpo"]["group_size"] == 4
    assert config["options"]["policy"]["lora"]["rank"] == 8, "defaults too"
    assert config["seed"] == 0
    assert {"python", "mlx", "mlx-lm"} <= config["versions"].keys()
    assert "grpo_staged" in config["command"]
    assert config["platform"]["system"]

    metrics = staged.lines("metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["stage"] for row in metrics] == ["sft"] * 2 + ["length"] * 3 + ["quality"] * 2
    rollouts = staged.lines("rollouts.jsonl")
    assert {row["stage"] for row in rollouts} == {"length", "quality"}
    assert all(len(row["completions"]) == 4 and "Summarize." in row["prompt"] for row in rollouts)

    # final.json says what the evaluations found.
    final = staged.json("evaluation/final.json")
    assert final.keys() == {"before", "stages", "after"}
    assert [stage["name"] for stage in final["stages"]] == ["length", "quality"]
    summaries = {"before": final["before"], "length": final["stages"][0], "quality": final["stages"][1]}
    for name, summary in summaries.items():
        found = staged.json(f"evaluation/{name}.json")
        assert len(found["rows"]) == summary["rows"] == 6
        assert {key: summary[key] for key in found["summary"]} == found["summary"]
        assert all(isinstance(summary[key], float) for key in NUMBERS)
        lengths = [row["length"] for row in found["rows"]]
        assert summary["length_mean"] == pytest.approx(sum(lengths) / 6)
    assert {key: final["after"][key] for key in NUMBERS} == {
        key: summaries["quality"][key] for key in NUMBERS
    }

    # The table and the samples on the screen.
    out = staged.ended.out
    assert "6 held-out rows, target 12 ± 4" in out
    assert re.search(r"^train: 30 of 30 rows of posts.jsonl are used", out, re.MULTILINE)
    assert re.search(r"Policy\W+Within\W+Exact\W+Length", out)
    names = ("before", "after length", "after quality")
    table = table_of(out, *names)
    for row, summary in zip(table, summaries.values(), strict=True):
        assert row[:3] == [
            *(f"{100 * summary[name]:.1f}" for name in ("within", "exact")),
            f"{summary['length_mean']:.1f}",
        ]
        assert f"{100 * summary['rougeL']:.1f}" in row[5:]
    held_out = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    squeezed = " ".join(out.split())
    for post in held_out[:2]:
        assert f"{post['id']}, " in squeezed
        assert f"reference: {post['summary']}" in squeezed
    assert f"{held_out[2]['id']}, " not in squeezed, "two samples were asked for"
    assert "run folder runs/job" in squeezed
    assert "exported runs/job/export/model" in squeezed

    # What was exported is the policy, for the other recipes too.
    model = "runs/job/export/model"
    same = ["--data.instruction", "Summarize.\n\n{document}", "--data.max_prompt_tokens", "64"]
    same += ["--length.target", "12", "--length.tolerance", "4", "--max_tokens", "20", "--dtype", "float32"]
    given = ["--model", model, "--data.evaluation", "held_out.jsonl", "--data.id_column", "id", *same]
    ended = program("evaluate", *given, "--out", "again/result.json")
    assert (ended.code, ended.err) == (0, "")
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    within_the_run = staged.json("evaluation/quality.json")
    # Each says how it was made; the run itself says of which model in its own folder.
    said = within_the_run.pop("options")
    assert {name: again["options"][name] for name in said} == said
    assert again.pop("options")["model"] == model
    assert again == within_the_run
    assert "6 rows, target 12 ± 4" in ended.out

    post = again["rows"][0]
    for text, stdin in (([post["document"]], None), ([], post["document"])):
        ended = program("summarize", "--model", model, *same, *text, stdin=stdin)
        assert ended.code == 0
        assert ended.out == post["text"].strip() + "\n"
        cut = "" if post["finish_reason"] == "stop" else ", cut there"
        told = ended.err.splitlines()  # that the text lost its end, and the length
        assert told[-1] == f"{post['length']} tokens{cut}"
        assert all("tokens were not read; --long reads all of it" in line for line in told[:-1])

    # A finished run has nothing left to do.
    before = staged.files()
    ended = program("grpo_staged", "--resume", "runs/job")
    assert (ended.code, ended.err) == (0, "")
    assert "going on after step 7" in ended.out
    assert table_of(ended.out, *names) == table
    after = staged.files()
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] in ([], [".lock"])


def test_joint_with_full_tuning_brings_its_own_stage(
    program: Program, rows: None, no_wordnet: None, tmp_path: Path
) -> None:
    """Without METEOR, since the processes that would score it have no WordNet here."""
    config = write_options(tmp_path, tiny_job({**CHANGES, "sft": None}))
    job = Job(
        tmp_path / "runs" / "both",
        config,
        program("grpo_joint", "--config", config, "--name", "both", "--stages.0.steps", "2"),
    )
    assert (job.ended.code, job.ended.err) == (0, "")
    assert [row["stage"] for row in job.lines("metrics.jsonl")] == ["constrained"] * 2
    used = job.json("config.json")["options"]["stages"]
    assert [stage["steps"] for stage in used] == [2]
    own = laid_under({"policy": {"tuning": "full"}})["stages"][0]["rewards"]
    assert [reward["kind"] for reward in used[0]["rewards"]] == [one["kind"] for one in own]
    quality = next(reward for reward in used[0]["rewards"] if reward["kind"] == "rougeL")
    assert (quality["credit"], quality["gate"]) == ("all", None)
    assert used[0]["constraint"]["reward"] == "within"
    assert {"reward/length", "reward/within", "reward/rougeL"} <= job.lines("metrics.jsonl")[0].keys()
    final = job.json("evaluation/final.json")
    assert [stage["name"] for stage in final["stages"]] == ["constrained"]
    assert {key: final["after"][key] for key in NUMBERS} == {key: final["stages"][0][key] for key in NUMBERS}


def test_without_held_out_rows_it_trains_and_exports(program: Program, rows: None, tmp_path: Path) -> None:
    changes = merged(CHANGES, {"data": {"evaluation": None}, "policy": {"tuning": "lora"}, "stages": STAGES})
    job = Job(
        tmp_path / "runs" / "job",
        "",
        program("grpo_staged", "--config", write_options(tmp_path, tiny_job(changes))),
    )
    assert (job.ended.code, job.ended.err) == (0, "")
    assert not (job.run / "evaluation").exists()
    assert {path.name for path in (job.run / "export").iterdir()} == {"adapter", "peft", "model"}
    load_policy(str(job.run / "base"), adapter=str(job.run / "export" / "adapter"))


def test_when_to_stop_is_learned_after_the_stages(program: Program, rows: None, tmp_path: Path) -> None:
    stopping = {"steps": 2, "batch_size": 4, "when": "after"}
    changes = {"sft": None, "stopping": stopping, "stages": [{**STAGES[0], "steps": 3}]}
    ended = program("grpo_staged", "--config", write_options(tmp_path, tiny_job(changes)))
    assert ended.code == 0, ended.err
    run = tmp_path / "runs" / "job"
    final = json.loads((run / "evaluation" / "final.json").read_text())
    names = [stage["name"] for stage in final["stages"]]
    assert names == [STAGES[0]["name"], "stopping"]
    assert final["after"]["rows"] == 6
    assert "after stopping" in " ".join(ended.out.split())
    assert (run / "export" / "model").is_dir()
    again = program("grpo_staged", "--resume", str(run))
    assert again.code == 0, "nothing is left to do"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3 + 2


def test_the_length_matched_baseline(program: Program, rows: None, tmp_path: Path) -> None:
    """The untrained policy made to write exactly the target: never finished, always that long."""
    changes = {**CHANGES, "stages": STAGES[:1], "evaluation": {"length_matched_baseline": True, "samples": 0}}
    config = write_options(tmp_path, tiny_job(changes))
    ended = program("grpo_staged", "--config", config, "--stages.0.steps", "1")
    assert (ended.code, ended.err) == (0, "")
    final = json.loads((tmp_path / "runs" / "job" / "evaluation" / "final.json").read_text())
    matched = final["length_matched"]
    assert (matched["length_mean"], matched["length_std"], matched["unfinished"]) == (12, 0, 1)
    assert table_of(ended.out, "length-matched")[0][:5] == ["0.0", "0.0", "12.0", "±", "0.0"]


@pytest.mark.slow
def test_a_real_summariser_on_real_rows(program: Program, tmp_path: Path) -> None:
    """LoRA on a model folder with a chat template of its own; the exports give the numbers that the run gave."""
    model, data = SHARED / "models" / "summarizer-5m", SHARED / "data" / "dialogsum.validation.jsonl"
    if not (model.is_dir() and data.is_file()):
        pytest.skip("needs the shared folder with summarizer-5m and dialogsum beside the checkout")
    same = {
        "instruction": "Summarize the conversation.\n\n{document}",
        "document_column": "dialogue",
        "max_prompt_tokens": 160,
    }
    options = {
        "name": "real",
        "policy": {"model": str(model), "dtype": "float32", "lora": {"rank": 4}},
        "data": {"train": str(data), "evaluation": str(data), **same, "train_rows": 8, "evaluation_rows": 6},
        "length": {"target": 32},
        "sampling": {"max_tokens": 48},
        "grpo": {"prompts_per_step": 2, "group_size": 4},
        "optimizer": {"learning_rate": 1e-3},
        "stages": [{"name": "length", "steps": 2, "rewards": [{"kind": "length"}]}],
    }
    ended = program("grpo_staged", "--config", write_options(tmp_path, options))
    assert (ended.code, ended.err) == (0, "")
    assert "6 of 6 held-out documents are trained on too" in " ".join(ended.out.split())
    run = tmp_path / "runs" / "real"
    final = json.loads((run / "evaluation" / "final.json").read_text())
    assert final["before"]["rougeL"] > 0.15, "it was a summariser before it came here"
    found = json.loads((run / "evaluation" / "length.json").read_text())
    given = [
        "--config",
        write_options(tmp_path, {"data": {"evaluation": str(data), **same, "evaluation_rows": 6}}),
    ]
    given += ["--length.target", "32", "--max_tokens", "48", "--dtype", "float32"]
    for name, source in (
        ("adapter", ["--model", str(model), "--adapter", str(run / "export" / "adapter")]),
        ("fused", ["--model", str(run / "export" / "model")]),
    ):
        ended = program("evaluate", *given, *source, "--out", f"{name}.json")
        assert (ended.code, ended.err) == (0, "")
        again = json.loads((tmp_path / f"{name}.json").read_text())
        assert [row["text"] for row in again["rows"]] == [row["text"] for row in found["rows"]]
        assert again["summary"] == found["summary"]
