"""Judging as a program: against a simulated judge, and with a real server."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlx_sumrl.evaluation.results import Evaluation
from tests.endpoint.simulated_teacher import KEY, MODEL
from tests.judging.made import judge_server, parts_of

from .distilling import write_rows
from .judging import DIGITS, by_criterion, evaluation, ledger_lines, options, read
from .programs import ROOT, SHARED, Program, tiny_job, write_options
from .test_bad_input import sentence_of


class TestRun:
    def test_scores_beside_the_evaluation_and_into_a_copy(self, program: Program, tmp_path: Path) -> None:
        source = evaluation(tmp_path / "result.json", 10)
        before = source.read_bytes()
        with judge_server(by_criterion, key=KEY) as server:
            os.environ["JUDGE_KEY"] = KEY
            try:
                price = ("--price.prompt", "2", "--price.completion", "6", "--key_variable", "JUDGE_KEY")
                ended = program("judge", *options(server, *price, "--into", "judged/copy.json"))
            finally:
                del os.environ["JUDGE_KEY"]
            assert (ended.code, ended.err) == (0, ""), ended
            assert len(server.bodies) == 40
            assert set(server.keys) == {f"Bearer {KEY}"}
        assert source.read_bytes() == before
        found = read(tmp_path / "judged" / "judged.json")
        assert (found["complete"], found["malformed_replies"]) == (True, 0)
        assert found["cost"]["replies"] == pytest.approx(server.cost(2, 6))
        assert found["tokens"] == dict(server.billed)
        one = found["evaluations"]["result"]
        assert [row["composite"] for row in one["rows"]] == [3.5] * 9 + [2.75]
        assert one["summary"]["judge_composite"] == pytest.approx(3.425)
        assert one["summary"]["judge_all"] == 0.9
        assert one["summary"]["judge_clarity"] == pytest.approx(0.925)
        copy = Evaluation.from_json(read(tmp_path / "judged" / "copy.json"))
        assert copy.summary["judge_composite"] == one["summary"]["judge_composite"]
        assert copy.rows[9].metrics == {
            "within": 1,
            "rougeL": 0.59,
            "judge_faithfulness": 1,
            "judge_coverage": 0.75,
            "judge_conciseness": 0.75,
            "judge_clarity": 0.25,
            "judge_composite": 2.75,
            "judge_all": 0,
        }
        assert copy.rows[9].text == "Bridge 9 shut."
        for path in (tmp_path / "judged").iterdir():
            assert KEY not in path.read_text()
        assert KEY not in ended.out
        assert "3.425" in ended.out
        assert "90%" in ended.out

    def test_a_run_s_evaluations_and_rows(self, program: Program, tmp_path: Path) -> None:
        """A folder's summaries without rows are no evaluation; a copy has all rows, the judged ones with scores."""
        folder = tmp_path / "runs" / "mine"
        evaluation(folder / "evaluation" / "before.json", 4, "Shut {n}.")
        evaluation(folder / "evaluation" / "length.json", 4)
        (folder / "evaluation" / "final.json").write_text('{"before": {"rows": 4}}')
        with judge_server(by_criterion) as server:
            given = options(server, "--rows", "2", "--into", "copies", evaluation="runs/mine")
            ended = program("judge", *given)
            assert (ended.code, ended.err) == (0, ""), ended
            assert len(server.bodies) == 16
        found = read(folder / "judged" / "judged.json")["evaluations"]
        assert list(found) == ["mine-before", "mine-length"]
        rows = read(tmp_path / "copies" / "mine-length.json")["rows"]
        assert [row["metrics"]["judge_composite"] for row in rows] == [3.5, 3.5, None, None]

    def test_a_file_of_rows(self, program: Program, tmp_path: Path) -> None:
        rows = [
            {"name": "a", "article": "A text.", "said": "Bridge 0 shut."},
            {"name": "b", "article": "", "said": "x"},
        ]
        write_rows(tmp_path / "rows.jsonl", rows)
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write("{broken\n")
        columns = ("--document_column", "article", "--summary_column", "said", "--id_column", "name")
        with judge_server(by_criterion) as server:
            ended = program("judge", *options(server, *columns, "--out", "o", evaluation="rows.jsonl"))
        assert (ended.code, ended.err) == (0, ""), ended
        one = read(tmp_path / "o" / "judged.json")["evaluations"]["rows"]
        assert [row["composite"] for row in one["rows"]] == [3.5, None, None]
        assert one["rows"][1]["unscored"] == {"no document": 1}
        assert sum(one["summary"]["unscored"].values()) == 2
        assert "2 questions without a score: 1 x no document, 1 x " in ended.out

    def test_labels(self, program: Program, tmp_path: Path) -> None:
        evaluation(tmp_path / "result.json", 10)
        write_rows(
            tmp_path / "people.jsonl", [{"id": f"r{n}", "clarity": 2 if n == 9 else 5} for n in range(10)]
        )
        with judge_server(by_criterion) as server:
            ended = program("judge", *options(server, "--labels", "people.jsonl"))
        assert (ended.code, ended.err) == (0, ""), ended
        found = read(tmp_path / "judged" / "judged.json")["agreement"]
        assert list(found) == ["clarity"]
        assert (found["clarity"]["n"], found["clarity"]["kappa"]) == (10, pytest.approx(1))
        assert found["clarity"]["spearman"] == pytest.approx(1)
        assert "agreement, clarity, 10 rows: Spearman 1.000 (95 % 1.00 to 1.00)" in ended.out

    def test_against(self, program: Program, tmp_path: Path) -> None:
        evaluation(tmp_path / "result.json", 6)
        evaluation(tmp_path / "other.json", 6, "It is not known what became of bridge {n}.")

        def script(number: int, prompt: str) -> str:
            return "says A" if "Bridge" in parts_of(prompt)["SUMMARY A"] else "says B"

        with judge_server(script) as server:
            ended = program("judge", *options(server, "--against", "other.json"))
            assert (ended.code, ended.err) == (0, ""), ended
            assert len(server.bodies) == 12
            assert not [body for body in server.bodies if "logprobs" in body]
        found = read(tmp_path / "judged" / "against.json")
        assert {name: found["summary"][name] for name in ("win", "tie", "loss")} == {
            "win": 6,
            "tie": 0,
            "loss": 0,
        }
        assert found["rows"][0] == {"id": "r0", "outcome": "win", "replies": [["A", "B"]], "unscored": {}}
        assert "result against other: 6 wins, 0 ties, 0 losses of 6 pairs (sign test p = 0.031)" in ended.out
        assert "50% of the preferences went to the summary shown first" in ended.out

    def test_a_cap_leaves_the_rest_open(self, program: Program, tmp_path: Path) -> None:
        evaluation(tmp_path / "result.json", 30)
        with judge_server(by_criterion) as server:
            ended = program("judge", *options(server, "--max_total_tokens", "20000"))
            assert (ended.code, ended.err) == (0, ""), ended
            asked = len(server.bodies)
            assert 0 < asked < 120
            assert server.billed.total() <= 20000
            assert f"{120 - asked} questions left open: max_total_tokens 20,000 is reached" in ended.out
            found = read(tmp_path / "judged" / "judged.json")
            assert (found["complete"], found["evaluations"]["result"]["summary"]["rows"]) == (False, 30)
            assert program("judge", *options(server)).code == 0
            assert len(server.bodies) == 120
        assert read(tmp_path / "judged" / "judged.json")["complete"] is True


@pytest.mark.slow
def test_a_policy_trained_with_a_judge(program: Program, tmp_path: Path) -> None:
    """Every completion of two steps is scored, and the key is in no file."""
    judge = {
        "server": "",
        "model": MODEL,
        "ledger": "replies.jsonl",
        "key_variable": "JUDGE_KEY",
        "form": "json",
    }
    stage = {"name": "judged", "steps": 2, "rewards": [{"kind": "length"}, {"kind": "judge", "judge": judge}]}
    said = json.dumps(DIGITS)
    os.environ["JUDGE_KEY"] = KEY
    try:
        with judge_server(lambda number, prompt: f"says {said}", key=KEY) as server:
            judge["server"] = server.url
            job = tiny_job(
                {"stages": [stage], "sft": {"steps": 2}, "export": {"fused": False, "adapter": False}}
            )
            ended = program("grpo_staged", "--config", write_options(tmp_path, job))
            assert ended.code == 0, ended
            asked = len(server.bodies)
    finally:
        del os.environ["JUDGE_KEY"]
    lines = [
        json.loads(line) for line in (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    ]
    scored = [line["reward/judge_composite"] for line in lines if "reward/judge_composite" in line]
    assert len(scored) == 2
    assert 0 < asked <= 16
    for value in scored:  # 3.5 / 4 for a completion that says something, 0 for one that does not
        assert 0 < value <= 0.875
        assert value / 0.875 * 8 == pytest.approx(round(value / 0.875 * 8), abs=1e-6)
    for path in (tmp_path / "runs").rglob("*.json*"):
        assert KEY not in path.read_text()


class TestRefused:
    def test_options(self, program: Program, tmp_path: Path) -> None:
        evaluation(tmp_path / "result.json", 2)
        evaluation(tmp_path / "three.json", 3)
        write_rows(tmp_path / "rows.jsonl", [{"document": "d", "summary": "s"}])
        (tmp_path / "summary.json").write_text("{}")
        base = ["--server", "http://127.0.0.1:1", "--model", "m"]

        def refused(*argv: str) -> str:
            return sentence_of(program("judge", *base, *argv))

        assert refused() == "evaluation is missing: give --evaluation, a file of recipes.evaluate --out"
        assert refused("--evaluation", "no.json").startswith("the evaluation no.json cannot be read")
        assert refused("--evaluation", "summary.json").startswith("summary.json holds no rows of summaries")
        assert refused("--evaluation", ".").startswith(". has no evaluation with rows")
        one = ["--evaluation", "result.json"]
        assert "would be the same reply 3 times" in refused(*one, "--rounds", "3")
        assert "would write over result.json" in refused(*one, "--into", "result.json")
        assert "result.json has 2 rows and three.json has 3" in refused(*one, "--against", "three.json")
        assert "is a file of rows: leave out --into" in refused("--evaluation", "rows.jsonl", "--into", "x")
        assert "has no column 'text' (--summary_column)" in refused(
            "--evaluation", "rows.jsonl", "--summary_column", "text"
        )
        assert "needs scores" in refused(*one, "--against", "three.json", "--into", "x")
        assert "max_cost needs prices" in refused(*one, "--max_cost", "3")
        assert "no server answers at 127.0.0.1:1" in refused(*one)
        assert "correct --server" in refused(*one)
        write_rows(tmp_path / "people.jsonl", [{"id": "r0", "score": 3}])
        assert "belongs to one evaluation" in refused(
            "--evaluation", "result.json,three.json", "--labels", "people.jsonl"
        )
        both = tmp_path / "run" / "evaluation"
        evaluation(both / "before.json", 2)
        evaluation(both / "after.json", 2)
        assert "name one file for each" in refused("--evaluation", "run", "--against", "result.json")
        assert "name a folder" in refused("--evaluation", "run", "--into", "one.json")
        assert "have the same name" in refused("--evaluation", "result.json,result.json")
        assert refused(*one, "--server", "nowhere").startswith("--server 'nowhere' is no address")

    def test_a_model_that_is_not_there(self, program: Program, tmp_path: Path) -> None:
        evaluation(tmp_path / "result.json", 2)
        with judge_server(by_criterion) as server:
            said = sentence_of(program("judge", *options(server, "--model", "larger")))
        assert said.endswith(f"give --model one of {MODEL}")


SERVER = """
import mlx_sumrl, runpy, sys
sys.argv[0] = "mlx_lm.server"
runpy.run_module("mlx_lm.server", run_name="__main__")
"""
"""With the BLAS that mlx_sumrl loads; without it the prompts take seconds."""


@pytest.mark.slow
def test_a_real_server(program: Program, tmp_path: Path) -> None:
    """mlx_lm.server with a small summariser, which is no judge: its replies are nonsense, the protocol holds."""
    model = SHARED / "models" / "summarizer-5m"
    if not model.is_dir():
        pytest.skip("needs shared/, the folder of models and data beside the checkout")
    evaluation(tmp_path / "result.json", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, "--model", str(model), "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        assert any("Starting httpd" in line for line in server.stderr), "the server ended"
        threading.Thread(target=server.stderr.read, daemon=True).start()
        base = [
            "--server",
            f"http://127.0.0.1:{port}/v1",
            "--model",
            "default_model",
            "--evaluation",
            "result.json",
        ]
        ended = program("judge", *base, "--max_tokens", "4", "--malformed_attempts", "2", "--out", "plain")
        assert (ended.code, ended.err) == (0, ""), ended
        found = read(tmp_path / "plain" / "judged.json")
        summary = found["evaluations"]["result"]["summary"]
        unscored = sum(summary["unscored"].values())
        assert unscored + sum(summary["n"].values()) == 8
        assert found["malformed_replies"] >= unscored
        answers = ledger_lines(tmp_path / "plain" / "ledger.jsonl", "answer")
        assert len(answers) == 8 + found["malformed_replies"] - unscored
        assert {one["usage"]["counted_by"] for one in answers} == {"server"}
        for one in answers:
            assert one["tokens"], "mlx_lm.server offers log-probabilities"
            assert len(one["tokens"][0][1]) == 10
            assert all(pair[1] <= 0 for _, likely in one["tokens"] for pair in likely)
        # The same server, made to say digits alone: its log-probabilities weigh them.
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(model))
        digits = {token: tokenizer.convert_tokens_to_ids(str(token)) for token in range(1, 6)}
        bias = json.dumps({"logit_bias": {str(one): 100 for one in digits.values()}})
        ended = program("judge", *base, "--max_tokens", "1", "--extra", bias, "--out", "digits")
        assert (ended.code, ended.err) == (0, ""), ended
        rows = read(tmp_path / "digits" / "judged.json")["evaluations"]["result"]["rows"]
        assert [row["unscored"] for row in rows] == [{}] * 2
        answers = ledger_lines(tmp_path / "digits" / "ledger.jsonl", "answer")
        weighed = 0
        for answer in answers:
            ((_, likely),) = answer["tokens"]
            chances = {int(token): math.exp(logprob) for token, logprob in likely if token in "12345"}
            (row,) = [row for row in rows if row["id"] == answer["row"]]
            if (mass := row["mass"][answer["asks"]]) is None:
                continue
            weighed += 1
            assert mass == pytest.approx(min(sum(chances.values()), 1))
            mean = sum(digit * chance for digit, chance in chances.items()) / sum(chances.values())
            assert row["scores"][answer["asks"]] == pytest.approx((mean - 1) / 4)
        assert weighed == len(answers) == 8
    finally:
        server.kill()
        server.wait()
