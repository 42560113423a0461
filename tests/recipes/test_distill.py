"""Distillation as a program: against a simulated teacher that misbehaves, and a real server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest

from mlx_sumrl.config import DataConfig
from mlx_sumrl.data.examples import load_examples
from mlx_sumrl.data.sources import read_rows
from mlx_sumrl.endpoint.ledger import Ledger
from tests.endpoint.simulated_teacher import KEY, MODEL, SimulatedTeacher, summary_of

from .distilling import QUICK, document, options, read, source, spent_at_most, write_rows
from .programs import SHARED, Program
from .test_bad_input import sentence_of


class TestRun:
    def test_every_row_once_with_its_provenance(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 30)
        with SimulatedTeacher(key=KEY) as teacher:
            os.environ["TEACHER_KEY"] = KEY
            try:
                ended = program(
                    "distill",
                    *options(teacher, tmp_path, "--key_variable", "TEACHER_KEY", "--validation_share", "0.2"),
                    *("--price.prompt", "2", "--price.completion", "6"),
                )
            finally:
                del os.environ["TEACHER_KEY"]
            assert (ended.code, ended.err) == (0, "")
            assert len(teacher.documents) == 30
            assert set(teacher.keys) == {f"Bearer {KEY}"}
            assert teacher.most_under_way <= 8
        out = tmp_path / "out"
        train, validation = read(out / "train.jsonl"), read(out / "validation.jsonl")
        assert (len(train), len(validation)) == (24, 6)
        rows = {row["id"]: row for row in train + validation}
        assert set(rows) == {f"r{n}" for n in range(30)}
        for number in range(30):
            row = rows[f"r{number}"]
            assert (row["document"], row["summary"]) == (document(number), summary_of(document(number)))
            assert row["provenance"]["row"] == f"reports.jsonl:{number + 1}"
            assert row["provenance"]["teacher"] == MODEL
            assert row["provenance"]["served_as"] == f"{MODEL}-2026"
            assert row["provenance"]["endpoint"] == teacher.url.removeprefix("http://")
        card = json.loads((out / "card.json").read_text())
        assert card["complete"] is True
        assert card["tokens"]["prompt"] == teacher.billed["prompt"]
        assert card["tokens"]["completion"] == teacher.billed["completion"]
        assert card["cost"]["answers"] == pytest.approx(teacher.cost(2, 6))
        written = b"".join(path.read_bytes() for path in out.iterdir())
        assert KEY.encode() not in written
        assert KEY not in ended.out + ended.err

    def test_again_asks_nothing_and_writes_the_same(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 12)
        with SimulatedTeacher() as teacher:
            assert program("distill", *options(teacher, tmp_path)).code == 0
            first = (tmp_path / "out" / "train.jsonl").read_bytes()
            assert program("distill", *options(teacher, tmp_path)).code == 0
            assert len(teacher.documents) == 12
        (tmp_path / "out" / "train.jsonl").unlink()
        assert program("distill", "--from_ledger", "--out", str(tmp_path / "out")).code == 0
        assert (tmp_path / "out" / "train.jsonl").read_bytes() == first

    def test_other_filters_from_the_ledger(self, program: Program, tmp_path: Path) -> None:
        rows = [{"document": "One two three."}, {"document": "One two three four five six seven."}]
        write_rows(tmp_path / "reports.jsonl", rows)
        out = tmp_path / "out"
        with SimulatedTeacher() as teacher:
            given = [
                "--teacher",
                teacher.url,
                "--model",
                MODEL,
                "--source",
                "reports.jsonl",
                "--out",
                str(out),
            ]
            assert program("distill", *given).code == 0
        assert len(read(out / "train.jsonl")) == 2
        # "In short: One two three." has 5 words, the other 8.
        ended = program("distill", "--from_ledger", "--out", str(out), "--filter.longest", "5")
        assert "1 x longer than 5 words" in ended.out
        assert [row["summary"] for row in read(out / "train.jsonl")] == ["In short: One two three."]

    def test_more_answers_ask_only_the_new_ones(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 5)
        said = iter(range(1000))
        with SimulatedTeacher(lambda number, text: f"says answer number {next(said)}") as teacher:
            warm = options(teacher, tmp_path, "--temperature", "0.7")
            assert program("distill", *warm).code == 0
            assert program("distill", *warm, "--answers", "3").code == 0
            assert Counter(teacher.documents) == {document(n): 3 for n in range(5)}
        ids = [row["id"] for row in read(tmp_path / "out" / "train.jsonl")]
        assert sorted(ids) == sorted(f"r{n}{end}" for n in range(5) for end in ("", "/2", "/3"))

    def test_several_sources_by_weight(self, program: Program, tmp_path: Path) -> None:
        write_rows(tmp_path / "a.jsonl", [{"document": f"First kind, number {n}."} for n in range(40)])
        write_rows(tmp_path / "b.jsonl", [{"post": f"Second kind, number {n}."} for n in range(40)])
        sources = "[{file: a.jsonl, weight: 3}, {file: b.jsonl, document_column: post}]"
        with SimulatedTeacher() as teacher:
            given = [
                "--teacher",
                teacher.url,
                "--model",
                MODEL,
                "--rows",
                "20",
                "--out",
                str(tmp_path / "out"),
            ]
            assert program("distill", *given, "--source", sources).code == 0
        rows = read(tmp_path / "out" / "train.jsonl")
        assert Counter(row["source"] for row in rows) == {"a.jsonl": 15, "b.jsonl": 5}


def test_languages_are_kept(program: Program, tmp_path: Path) -> None:
    """Documents in two languages, each asked about in its own; three of nine answers are in English all the same."""
    pytest.importorskip("mlx_sumrl.data.languages")
    german = [
        {"document": f"Die Brücke über den Fluss wurde im Frühling {n} Tage lang gesperrt, weil sie alt ist."}
        for n in range(3, 12)
    ]
    english = [
        {"document": f"The bridge over the river was closed for {n} days in spring because it is old."}
        for n in range(3, 12)
    ]
    write_rows(tmp_path / "both.jsonl", german + english)

    def script(number: int, text: str) -> str:
        if "Fluss" in text and not any(f"{days} Tage" in text for days in (3, 6, 9)):
            return f"says Die alte Brücke über den Fluss war wegen Bauarbeiten gesperrt, Bericht {number}."
        return f"says The old bridge over the river was closed for repairs, report {number}."

    with SimulatedTeacher(script) as teacher:
        given = ["--teacher", teacher.url, "--model", MODEL, "--source", "both.jsonl", "--out", "out", *QUICK]
        instructions = '{de: "Fasse auf Deutsch zusammen:\\n\\n{document}"}'
        ended = program("distill", *given, "--filter.language", "document", "--instructions", instructions)
        assert (ended.code, ended.err) == (0, "")
        turns = [body["messages"][-1]["content"] for body in teacher.bodies]
    assert sum(turn.startswith("Fasse auf Deutsch zusammen:\n\nDie Brücke") for turn in turns) == 9
    rows = read(tmp_path / "out" / "train.jsonl")
    assert Counter(row["language"] for row in rows) == {"en": 9, "de": 6}
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["answers"]["left_out"] == {"in another language (en instead of de)": 3}


def hostile(number: int, text: str) -> str:
    """Twelve requests of each fifteen go wrong in one way or another, in turn."""
    script = (
        *("answer", "busy", "status 500", "half", "cut", "busy 0", "usage null"),
        *('usage {"prompt_tokens": -3, "completion_tokens": true}', 'usage "lots"', "status 503", "half"),
        *("status 502", "cut", "answer", "answer"),
    )
    return script[(number - 1) % len(script)]


class TestHostile:
    def test_every_row_once(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 40)
        with SimulatedTeacher(hostile) as teacher:
            ended = program("distill", *options(teacher, tmp_path, "--retry.attempts", "50"))
            assert (ended.code, ended.err) == (0, "")
            assert teacher.delivered == {document(n): 1 for n in range(40)}
            assert teacher.behaviours["half"] > 4
            assert teacher.behaviours["busy"] > 4
        rows = read(tmp_path / "out" / "train.jsonl")
        assert sorted(row["document"] for row in rows) == [document(n) for n in range(40)]
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        lost = card["requests_without_answer"]["may_have_been_billed"]
        assert lost["half or no JSON"] == teacher.behaviours["half"]
        assert lost["connection broken"] == teacher.behaviours["cut"]
        assert lost["status 502"] >= 1
        assert card["tokens"]["answers_counted_at_worst_case"] == teacher.behaviours["usage"]
        billed = teacher.billed.total()
        assert billed <= spent_at_most(tmp_path / "out" / "ledger.jsonl")

    def test_a_hang_is_tried_again(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 4)
        with SimulatedTeacher(lambda number, text: "hang" if number == 2 else "answer") as teacher:
            ended = program("distill", *options(teacher, tmp_path, "--timeout_s", "1"))
            assert ended.code == 0
            assert teacher.behaviours["hang"] == 1
        assert len(read(tmp_path / "out" / "train.jsonl")) == 4
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        assert card["requests_without_answer"]["may_have_been_billed"]["time-out"] >= 1

    @pytest.mark.parametrize("cap", [("--max_cost", "0.02"), ("--max_total_tokens", "4000")])
    def test_a_cap_holds_whatever_arrives(
        self, cap: tuple[str, str], program: Program, tmp_path: Path
    ) -> None:
        source(tmp_path, 80)
        prices = (
            "--price.prompt",
            "3",
            "--price.completion",
            "9",
            "--max_tokens",
            "40",
            "--retry.attempts",
            "50",
        )
        with SimulatedTeacher(hostile) as teacher:
            given = options(teacher, tmp_path, *prices, *cap)
            ended = program("distill", *given)
            assert ended.code == 0
            assert f"{cap[0][2:]} " in ended.out
            assert "; the same command goes on from here" in ended.out
            spent = teacher.cost(3, 9) if cap[0] == "--max_cost" else teacher.billed.total()
            assert 0 < spent <= float(cap[1])
            requests = len(teacher.documents)
            kept = read(tmp_path / "out" / "train.jsonl")
            assert len(kept) == teacher.delivered.total() > 3
            # Nothing fits any more: the same command sends nothing.
            assert program("distill", *given).code == 0
            assert len(teacher.documents) == requests
            # A higher cap goes on.
            assert program("distill", *options(teacher, tmp_path, *prices, cap[0], "1000000")).code == 0
            assert teacher.delivered == {document(n): 1 for n in range(80)}


class TestRefused:
    """One sentence, exit code 2, and at most one request."""

    def refused(self, program: Program, *argv: str) -> str:
        return sentence_of(program("distill", *argv))

    def test_no_server(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 5)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        given = ["--model", "m", "--source", "reports.jsonl", "--out", "out"]
        said = self.refused(program, "--teacher", f"http://127.0.0.1:{port}", *given)
        assert said.startswith(f"no server answers at 127.0.0.1:{port} (")
        said = self.refused(program, "--teacher", "user:hidden@localhost:8080", *given)
        assert said.startswith("--teacher 'localhost:8080' is no address")
        assert "hidden" not in said

    def test_the_first_request_finds_it(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 5)
        with SimulatedTeacher(key=KEY) as teacher:
            given = options(teacher, tmp_path)
            assert "refuses the key, or that there is none" in self.refused(program, *given)
            os.environ["TEACHER_KEY"] = "sk-wrong-key"
            try:
                said = self.refused(program, *given, "--key_variable", "TEACHER_KEY")
            finally:
                del os.environ["TEACHER_KEY"]
            assert said.endswith("put a key that it takes into the environment variable TEACHER_KEY")
            assert "sk-wrong-key" not in said
            assert len(teacher.documents) == 2
            said = self.refused(program, *given, "--key_variable", "TEACHER_KEY")
            assert said == (
                "the environment variable TEACHER_KEY (--key_variable) is not set: set it to the server's API key"
            )
            assert len(teacher.documents) == 2
        with SimulatedTeacher() as teacher:
            said = self.refused(program, *options(teacher, tmp_path), "--model", "larger")
            assert said.endswith(
                f"has no model 'larger' (The model `larger` does not exist.): give --model one of {MODEL}"
            )
            said = self.refused(program, *options(teacher, tmp_path), "--teacher", f"{teacher.url}/api")
            assert "answers 404 at /api/v1/chat/completions" in said
            teacher.script = lambda number, text: "page"
            assert "answers with a web page" in self.refused(program, *options(teacher, tmp_path))
            teacher.script = lambda number, text: "elsewhere"
            said = self.refused(program, *options(teacher, tmp_path))
            assert "sends on to elsewhere.invalid/v1: " in said
            assert len(teacher.documents) == 3

    def test_everything_fails(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 30)
        with SimulatedTeacher(lambda number, text: "status 400") as teacher:
            said = self.refused(program, *options(teacher, tmp_path, "--retry.failures_in_a_row", "4"))
            assert said.startswith("4 rows in a row failed at")
            assert "(status 400, on purpose)" in said
            assert len(teacher.documents) == 4

    def test_a_ledger_of_other_options(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 3)
        with SimulatedTeacher() as teacher:
            given = options(teacher, tmp_path)
            assert program("distill", *given).code == 0
            said = self.refused(program, *given, "--temperature", "0.5")
            assert said.endswith(
                "were asked for with temperature 0.0, and now it is 0.5: give the options of before to go on, or "
                "another --out"
            )
            with Ledger.open(tmp_path / "out" / "ledger.jsonl", None):
                assert "another process writes to the ledger" in self.refused(program, *given)
            assert len(teacher.documents) == 3

    def test_files(self, program: Program, tmp_path: Path) -> None:
        source(tmp_path, 3)
        given = ["--teacher", "http://127.0.0.1:1", "--model", "m", "--out", "out"]
        assert self.refused(program, *given) == "source is missing: give --source, a file of documents"
        assert "there is no file reprots.jsonl" in self.refused(program, *given, "--source", "reprots.jsonl")
        (tmp_path / "empty.jsonl").touch()
        assert "empty.jsonl (--source) has no rows" in self.refused(
            program, *given, "--source", "empty.jsonl"
        )
        said = self.refused(program, *given, "--source", "reports.jsonl", "--document_column", "documnt")
        assert said == (
            "reports.jsonl has no column 'documnt' (--document_column); its columns are id, document; did you mean "
            "'document'?"
        )
        said = self.refused(program, *given, "--source", "reports.jsonl", "--max_cost", "3")
        assert said.startswith("max_cost needs prices")
        assert "there is no ledger" in self.refused(program, "--from_ledger", "--out", "nowhere")
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "train.jsonl").write_text("{}\n")
        assert "it is another dataset" in self.refused(program, *given, "--source", "reports.jsonl")
        assert (tmp_path / "out" / "train.jsonl").read_text() == "{}\n"


@pytest.mark.slow
def test_a_real_server(program: Program, tmp_path: Path) -> None:
    """mlx_lm.server with a real summariser; the rows' token counts are those of its tokenizer."""
    model = SHARED / "models" / "summarizer-5m"
    dialogues = SHARED / "data" / "dialogsum.validation.jsonl"
    if not model.is_dir():
        pytest.skip("needs shared/, the folder of models and data beside the checkout")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        listening = any("Starting httpd" in line for line in server.stderr)
        assert listening, "the server ended"
        threading.Thread(target=server.stderr.read, daemon=True).start()
        url = f"http://127.0.0.1:{port}/v1"
        given = ["--teacher", url, "--model", "default_model", "--source", str(dialogues), "--rows", "6"]
        given += [
            "--document_column",
            "dialogue",
            "--id_column",
            "id",
            "--max_tokens",
            "60",
            "--concurrency",
            "4",
        ]
        given += ["--instruction", "Summarize the conversation.\n\n{document}", "--longest_document", "500"]
        ended = program("distill", *given, "--out", "out")
        assert (ended.code, ended.err) == (0, ""), ended
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(model))
        rows = read(tmp_path / "out" / "train.jsonl")
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        dropped = sum(card["answers"]["left_out"].values())
        assert len(rows) + dropped == 6
        assert len(rows) >= 3
        for row in rows:
            turn = {"role": "user", "content": f"Summarize the conversation.\n\n{row['document']}"}
            ids = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=True)
            ids = ids["input_ids"] if hasattr(ids, "keys") else ids
            assert row["provenance"]["usage"]["prompt_tokens"] == len(ids)
            assert row["provenance"]["usage"]["counted_by"] == "server"
            assert row["id"].startswith("dev_")
        # What training reads.
        data = DataConfig(train=str(tmp_path / "out" / "train.jsonl"), id_column="id")
        loaded = load_examples(read_rows(str(data.train)), data, tokenizer, 64)
        assert [one.reference for one in loaded.examples] == [row["summary"] for row in rows]
        said = sentence_of(program("distill", *given, "--out", "other", "--model", "nobody/nothing"))
        assert "nobody/nothing" in said
        assert httpx.get(f"{url}/models").status_code == 200
    finally:
        server.kill()
        server.wait()
