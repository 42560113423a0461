"""`recipes.evaluate_structured`: fine-tuned by `recipes.sft` or not, constrained answers are the JSON asked for."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .programs import Program, write_options

ANIMALS = ("cat", "dog", "cow", "pig")
MODEL = """
from typing import Annotated, Literal
from pydantic import BaseModel, ConfigDict, Field

class Seen(BaseModel):
    model_config = ConfigDict(extra="forbid")
    animal: Literal["cat", "dog", "cow", "pig"]
    count: int = Field(ge=1, le=4)
"""


def chat(animal: str, count: int) -> dict[str, Any]:
    answer = json.dumps({"animal": animal, "count": count})
    return {
        "messages": [
            {"role": "user", "content": f"{count} {animal}"},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with 16 conversations and the model of their answers; recipes run there."""
    rows = [chat(animal, count) for animal, count in product(ANIMALS, range(1, 5))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "seen.py").write_text(MODEL)
    return tmp_path


def evaluated(program: Program, folder: Path, model: Path, *argv: str) -> dict[str, Any]:
    ended = program(
        *("evaluate_structured", "--model", str(model), "--dtype", "float32"),
        *("--data.evaluation", "rows.jsonl", "--structured.schema", "seen.py:Seen"),
        *("--max_tokens", "100", "--out", "out.json", *argv),
    )
    assert (ended.code, ended.err) == (0, ""), ended
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return result


def check_constrained(result: dict[str, Any]) -> int:
    """How many are finished; all of them are valid."""
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": list(ANIMALS)}, "count": {"enum": [1, 2, 3, 4]}},
        "required": ["animal", "count"],
        "additionalProperties": False,
    }
    ended = [row for row in result["rows"] if not row["answer"]["unfinished"]]
    for row in ended:
        jsonschema.validate(json.loads(row["text"]), schema)
        assert row["answer"]["valid"]
    assert result["summary"]["valid"] >= len(ended) / len(result["rows"])
    return len(ended)


@pytest.mark.slow
def test_from_sft_to_field_f1(program: Program, job: Path, tiny_model: Path) -> None:
    """Random weights, then 80 steps on the very rows: every decoding is counted, fields become right."""
    three = ("--decodings", "free,stop,constrained")
    before = evaluated(program, job, tiny_model, *three)
    assert list(before) == ["free", "stop", "constrained"]
    assert before["free"]["summary"]["valid"] == 0
    assert check_constrained(before["constrained"]) >= 8
    options = {
        "policy": {"model": str(tiny_model), "tuning": "full", "dtype": "float32"},
        "data": {"train": "rows.jsonl"},
        "sft": {"steps": 80, "batch_size": 16},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"samples": 0},
    }
    ended = program("sft", "--config", write_options(job, options))
    assert ended.code == 0, ended
    after = evaluated(program, job, job / "runs" / "sft" / "export" / "model", *three)
    assert check_constrained(after["constrained"]) == 16
    for name, result in after.items():
        assert result["summary"]["field_f1_micro"] > before[name]["summary"]["field_f1_micro"] + 0.2
    for one, row in zip(after["stop"]["rows"], after["free"]["rows"], strict=True):
        if row["answer"]["valid"]:  # a valid answer has its end where the model has it too
            assert one["text"] == row["text"].rstrip()


def test_any_temperature_and_one_decoding(program: Program, job: Path, tiny_model: Path) -> None:
    result = evaluated(program, job, tiny_model, "--temperature", "2", "--data.evaluation_rows", "5")
    assert list(result) == ["constrained"]
    assert len(result["constrained"]["rows"]) == 5
    assert check_constrained(result["constrained"]) >= 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "structured.schema is missing"),
        (("--structured.schema", "nowhere.json"), "there is no file nowhere.json"),
        (("--structured.schema", "seen.py:Scene"), "the models of seen.py are: Seen"),
        (("--structured.schema", "seen.py:Seen", "--decodings", "free,fast"), "'fast'"),
        (("--structured.schema", "strings.json", "--decodings", "stop"), "neither objects nor lists"),
        (("--structured.schema", "unique.json"), "uniqueItems"),
        (("--structured.schema", "numbers.json"), "16 of 16 rows of rows.jsonl cannot be used"),
        (("--structured.schema", "seen.py:Seen", "--max_tokens", "128"), "leaves no room for a prompt"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: tuple[str, ...], said: str, program: Program, job: Path, tiny_model: Path
) -> None:
    (job / "strings.json").write_text('{"type": "string"}')
    (job / "unique.json").write_text('{"type": "array", "uniqueItems": true}')
    (job / "numbers.json").write_text('{"type": "object", "required": ["n"]}')
    given = ("--model", str(tiny_model), "--data.evaluation", "rows.jsonl", "--max_tokens", "60")
    ended = program("evaluate_structured", *given, *argv)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_rows_have_to_be_named(program: Program, job: Path, tiny_model: Path) -> None:
    ended = program("evaluate_structured", "--model", str(tiny_model), "--structured.schema", "seen.py:Seen")
    assert ended.code == 2
    assert "data.evaluation is missing" in ended.err
