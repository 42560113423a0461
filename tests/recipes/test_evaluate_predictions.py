"""`recipes.evaluate --predictions P --references R`: files of the published layout are scored, no model is loaded."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .programs import ROOT, Program, write_options

FIELDS = ("relevance_score", "key_insights", "company_names", "summary")
REFERENCES = [
    ("a", 8, ["AI", "Chips"], ["Google"], ""),
    ("b", 5, [], [], "A new phone is out today."),
    ("c", 2, ["Law"], [], ""),
    ("d", 9, ["AI"], ["OpenAI", "Google"], ""),
]
PREDICTIONS = [
    ("a", 7, ["AI", "Robots"], ["Google"], "", True),
    ("b", 5, [], [], "A phone is out.", True),
    ("c", None, None, None, None, False),
    ("d", 9, ["AI"], ["Google"], "", True),
]


def rows(values: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(("id", *FIELDS, "is_valid_json"), row, strict=False)) for row in values]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with predictions in three forms, and references in two."""
    given, wanted = rows(PREDICTIONS), rows(REFERENCES)
    lines(tmp_path / "p.jsonl", given)
    (tmp_path / "p.json").write_text(json.dumps(given))
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(given[0]))
        writer.writeheader()
        for row in given:
            cells = {
                key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()
            }
            writer.writerow(cells)
    lines(tmp_path / "r.jsonl", wanted)
    chats = [
        {
            "metadata": {"item": row.pop("id")},
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": json.dumps(row)},
            ],
        }
        for row in wanted
    ]
    lines(tmp_path / "chats.jsonl", chats)
    return tmp_path


def lines(path: Path, content: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def scored(program: Program, folder: Path, *argv: str) -> dict[str, Any]:
    ended = program("evaluate", *argv, "--out", "out/found.json")
    assert (ended.code, ended.err) == (0, ""), ended
    assert max(map(len, ended.out.splitlines())) <= 80 + len(str(folder)), ended.out
    result: dict[str, Any] = json.loads((folder / "out" / "found.json").read_text())
    return result


def test_the_published_layout_by_hand(program: Program, job: Path) -> None:
    found = scored(program, job, "--predictions", "p.jsonl", "--references", "r.jsonl")
    fields, empty = found["fields"], found["baselines"]["always empty"]["fields"]
    assert list(fields) == list(FIELDS)
    number = fields["relevance_score"]["numbers"]  # errors -1, 0, 0 of 8, 5, 9, whose mean is 22/3
    assert (number["mae"], number["median_error"], number["answered"]) == pytest.approx((1 / 3, 0, 3 / 4))
    assert (number["rmse"], number["r2"]) == pytest.approx((3**-0.5, 1 - 1 / (78 / 9)))
    assert [(one["id"], one["error"]) for one in found["numeric_errors"]["relevance_score"]] == [
        *(("a", -1), ("b", 0), ("d", 0)),
    ]
    insights, companies = fields["key_insights"], fields["company_names"]
    assert (insights["f1_mean"], insights["jaccard_mean"]) == pytest.approx(
        ((1 / 2 + 1 + 0 + 1) / 4, (1 / 3 + 2) / 4)
    )
    assert (insights["precision"], insights["recall"], insights["f1"]) == pytest.approx((2 / 3, 2 / 4, 4 / 7))
    # c: what is missing does not agree with an empty list; b: an empty list does
    assert (companies["precision_mean"], companies["recall_mean"]) == pytest.approx(
        (3 / 4, (1 + 1 + 1 / 2) / 4)
    )
    assert (companies["f1_mean"], companies["jaccard_mean"]) == pytest.approx(((2 + 2 / 3) / 4, 2.5 / 4))
    assert (companies["exact"], companies["both_empty"], insights["both_empty"]) == (1 / 2, 1 / 4, 1 / 4)
    summary = fields["summary"]  # 4 of 4 words are in the 6 of b's reference
    assert summary["text"]["metrics"]["rouge1"] == pytest.approx(2 * 4 / (4 + 6))
    assert (summary["text"]["rows"], summary["text"]["words"], summary["exact"]) == (1, 1, 1 / 2)
    assert (found["summary"]["valid"], found["summary"]["exact_match"]) == (3 / 4, 0)

    # Always empty: right on every empty reference, and the mean of the numbers, 6.
    assert [empty[name]["f1_mean"] for name in FIELDS[1:3]] == [1 / 4, 1 / 2]
    assert [empty[name]["jaccard_mean"] for name in FIELDS[1:3]] == [1 / 4, 1 / 2]
    assert [empty[name]["f1"] for name in FIELDS[1:3]] == [0, 0]
    assert empty["summary"]["exact"] == 3 / 4
    number = empty["relevance_score"]["numbers"]
    assert (number["mae"], number["r2"]) == pytest.approx(((2 + 1 + 4 + 3) / 4, 0))
    constant = found["baselines"]["constant"][
        "fields"
    ]  # AI alone (half of the references have one insight), and 6.5
    assert constant["key_insights"]["jaccard_mean"] == pytest.approx((1 / 2 + 0 + 0 + 1) / 4)
    assert constant["relevance_score"]["numbers"]["mae"] == pytest.approx((1.5 + 1.5 + 4.5 + 2.5) / 4)

    assert [row["metrics"]["valid"] for row in found["rows"]] == [1, 1, 0, 1]
    assert found["rows"][0]["metrics"]["key_insights/jaccard"] == pytest.approx(1 / 3)
    assert found["options"]["matching"] == "exact"
    assert found["command"] == (
        "python -m recipes.evaluate --predictions p.jsonl --references r.jsonl --out out/found.json"
    )


def test_every_form_of_the_files_says_the_same(program: Program, job: Path) -> None:
    pairs = [("p.jsonl", "r.jsonl"), ("p.json", "r.jsonl"), ("p.csv", "chats.jsonl")]
    first, *others = (
        scored(
            program,
            job,
            *("--predictions", predictions, "--references", references),
            *(("--reference_id_column", "metadata.item") if references == "chats.jsonl" else ()),
        )
        for predictions, references in pairs
    )
    for other in others:
        for key in ("summary", "fields", "baselines", "rows", "numeric_errors"):
            assert other[key] == first[key], key


def test_a_config_file_and_options(program: Program, job: Path) -> None:
    options = {"predictions": "p.jsonl", "references": "r.jsonl", "matching": "normalised"}
    soft = ("--soft_fields", "key_insights", "--soft_threshold", "0.9")
    found = scored(program, job, "--config", write_options(job, options), *soft)
    assert found["fields"]["company_names"]["matching"] == "normalised"
    assert found["fields"]["key_insights"]["matching"] == "soft: ROUGE-L F1 of at least 0.9, one to one"


def test_samples(program: Program, job: Path) -> None:
    given = [row for row in rows(PREDICTIONS) if row["id"] != "c"]
    again = [{**row, "relevance_score": row["relevance_score"] + 2} for row in given]
    lines(job / "s.jsonl", [{**row, "sample": n} for n, some in enumerate((given, again)) for row in some])
    argv = ("--predictions", "s.jsonl", "--references", "r.jsonl", "--missing", "invalid")
    found = scored(program, job, *argv)
    # 7 and 9, 5 and 7, 9 and 11: spread √2 each, means 8, 6, 10
    assert found["consistency"] == pytest.approx({"relevance_score": 2**0.5 * (1 / 8 + 1 / 6 + 1 / 10) / 3})
    assert found["samples"]["fields"]["key_insights"]["jaccard"] == 1
    assert found["samples"]["identical"] == 0
    assert (found["samples"]["ids"], found["samples"]["left_out"]) == (["a", "b", "d"], 1)
    assert found["summary"]["rows"] == 7


def in_a_process(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", program, "--predictions", "p.jsonl", "--references", "r.jsonl"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "80", "NLTK_DATA": ""},  # WordNet takes seconds
        capture_output=True,
        text=True,
    )


def test_no_model_is_loaded(job: Path) -> None:
    """Whoever reads weights, of a model or an adapter, ends the program."""
    refusing = (
        "import mlx_sumrl, mlx.core, mlx_lm.utils, runpy, safetensors\n"
        "def refuse(*given, **named): raise AssertionError('weights are read')\n"
        "for module, names in ((mlx_lm, ['load']), (mlx.core, ['load']), (safetensors, ['safe_open']),\n"
        "                      (mlx_lm.utils, ['load', 'load_model', 'load_tokenizer'])):\n"
        "    for name in names:\n"
        "        assert hasattr(module, name)\n"
        "        setattr(module, name, refuse)\n"
    )
    ended = in_a_process(f"{refusing}runpy.run_module('recipes.evaluate', run_name='__main__')\n", job)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    assert "always empty" in ended.stdout
    without = (
        "import sys\nfrom recipes.evaluate_predictions import main\nmain()\n"
        "assert not {'mlx', 'mlx_lm', 'transformers'} & {name.partition('.')[0] for name in sys.modules}\n"
    )
    ended = in_a_process(without, job)
    assert (ended.returncode, ended.stderr) == (0, ""), ended


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--references", "r.jsonl"), "predictions is missing"),
        (("--predictions", "p.jsonl"), "references is missing"),
        (("--predictions", "nowhere.jsonl", "--references", "r.jsonl"), "there is no file nowhere.jsonl"),
        (("--predictions", "text.jsonl", "--references", "r.jsonl"), "the line is not JSON"),
        (("--predictions", "twice.jsonl", "--references", "r.jsonl"), "the id 'a' twice"),
        (("--predictions", "half.jsonl", "--references", "r.jsonl"), "2 of 4 references cannot be used"),
        (("--predictions", "r.jsonl", "--references", "chats.jsonl"), "has no column 'id'"),
        (("--predictions", "short.jsonl", "--references", "r.jsonl"), "no column 'summary'"),
        (("--predictions", "p.jsonl", "--references", "r.jsonl", "--model", "M"), "leave out --model"),
        (("--predictions", "p.jsonl", "--references", "r.jsonl", "--soft_fields", "summary"), "is no list"),
        (("--predictions", "p.jsonl", "--references", "r.jsonl", "--out", "."), "is a folder"),
        (("--predictions", "p.jsonl", "--references", "r.jsonl", "--matching", "loose"), "'loose'"),
    ],
)
def test_bad_input_is_one_sentence(argv: tuple[str, ...], said: str, program: Program, job: Path) -> None:
    given = rows(PREDICTIONS)
    (job / "text.jsonl").write_text("id: a\n")
    lines(job / "twice.jsonl", [*given, given[0]])
    lines(job / "half.jsonl", given[:2])
    lines(job / "short.jsonl", [{key: row[key] for key in row if key != "summary"} for row in given])
    ended = program("evaluate", *argv)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_help(program: Program) -> None:
    ended = program("evaluate", "--help")
    assert ended.code == 0
    assert "--predictions P --help" in ended.out
    ended = program("evaluate", "--predictions", "P", "--help")
    assert "--soft_fields" in ended.out


def test_it_is_the_same_for_a_model_s_own_answers(program: Program, job: Path, shared: Path) -> None:
    """`recipes.evaluate_structured` shows the same tables, and its JSON has what the report draws."""
    (job / "answer.json").write_text(
        '{"type": "object", "properties": {"relevance_score": {}, "key_insights": {}}}'
    )
    argv = ("--model", str(shared / "models" / "summarizer-5m"), "--dtype", "float32", "--decodings", "free")
    argv += ("--data.evaluation", "chats.jsonl", "--structured.schema", "answer.json", "--max_tokens", "8")
    ended = program("evaluate_structured", *argv, "--out", "found.json")
    assert (ended.code, ended.err) == (0, ""), ended
    found = json.loads((job / "found.json").read_text())["free"]
    assert found["baselines"]["always empty"]["fields"]["company_names"]["jaccard_mean"] == 1 / 2
    assert set(FIELDS) == set(found["fields"])
    assert set(found) >= {"numeric_errors", "matching", "rows", "summary", "options"}
    assert found["command"].startswith("python -m recipes.evaluate_structured --model ")
    assert {row["metrics"]["valid"] for row in found["rows"]} == {0.0}
    assert "always empty" in ended.out
    ended = program("evaluate_structured", *argv, "--soft_fields", "relevance_score")
    assert (ended.code, "is no list" in ended.err) == (2, True)
