"""Files of predictions put together with their references: every record is used or counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mlx_sumrl.config.predictions import PredictionsConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.predictions import Predictions, load_predictions
from mlx_sumrl.evaluation.predictions_file import (
    UnreadableError,
    columns_as_values,
    of_kind,
    truth,
    value_of,
)

REFERENCES = [{"id": "a", "n": 8, "tags": ["x", "y"], "s": "yes"}, {"id": "b", "n": 5, "tags": [], "s": ""}]
PREDICTIONS = [
    {"id": "b", "n": 5, "tags": [], "s": "", "is_valid_json": True},
    {"id": "a", "n": 7.5, "tags": ["x"], "s": "no", "is_valid_json": True},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            names = dict.fromkeys(name for row in rows for name in row)
            writer = csv.DictWriter(file, list(names))
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(
    folder: Path, predictions: Any, references: Any, suffix: str = ".jsonl", **options: Any
) -> Predictions:
    given = write(folder / f"p{suffix}", predictions)
    wanted = write(folder / "r.jsonl", references)
    return load_predictions(PredictionsConfig(predictions=given, references=wanted, **options))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_says_the_same(suffix: str, tmp_path: Path) -> None:
    found = load(tmp_path, PREDICTIONS, REFERENCES, suffix)
    assert [row.id for row in found.rows] == ["a", "b"]  # in the order of the references
    assert [row.answer for row in found.rows] == [
        {k: row[k] for k in ("n", "tags", "s")} for row in PREDICTIONS[::-1]
    ]
    assert found.fields == ("n", "tags", "s")
    assert found.kinds == {"n": "number", "tags": "list", "s": "text"}
    assert not found.several
    assert found.account.describe() == "2 of 2 predictions are used. 2 of 2 references are used."


@pytest.mark.parametrize(
    ("stated", "valid"),
    [
        *((yes, 1) for yes in (True, 1, 1.0, "true", "True", "1")),
        *((no, 0) for no in (False, 0, 0.0, "false", "FALSE", "0")),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_what_is_not_valid_has_no_fields(stated: Any, valid: int, suffix: str, tmp_path: Path) -> None:
    rows = [{**PREDICTIONS[0], "is_valid_json": stated}, PREDICTIONS[1]]
    found = load(tmp_path, rows, REFERENCES, suffix).rows[1]
    assert (found.valid, found.answer is not None) == (bool(valid), bool(valid))


def test_what_is_not_of_the_references_kind_is_missing(tmp_path: Path) -> None:
    odd = {"id": "a", "n": "7", "tags": "x", "s": 3, "more": 1, "is_valid_json": True}
    found = load(tmp_path, [odd, {**PREDICTIONS[0], "n": None}], REFERENCES)
    assert [row.answer for row in found.rows] == [{}, {"tags": [], "s": ""}]
    assert found.account.wrong_kind == {"n": 1, "tags": 1, "s": 1}
    assert found.account.columns_left_out == ["more"]
    assert "1 answers have something in tags that is not" in found.account.describe()
    cells = load(
        tmp_path,
        [{"id": "a", "n": "nan", "tags": "['x', \"y\"]", "s": ""}, PREDICTIONS[0]],
        REFERENCES,
        ".csv",
    )
    assert cells.rows[0].answer == {"tags": ["x", "y"], "s": ""}  # a list as pandas writes it
    assert cells.account.wrong_kind == {"n": 1}


def test_rows_without_a_partner_are_counted_and_refused(tmp_path: Path) -> None:
    more = [*PREDICTIONS, {**PREDICTIONS[0], "id": "z"}]
    found = load(tmp_path, more, REFERENCES, max_unmatched_share=0.34)
    assert len(found.rows) == 2
    assert found.account.unused_predictions == {"no such reference": ["z"]}
    assert "2 of 3 predictions are used; not used: 1 x no such reference (z)" in found.account.describe()
    with pytest.raises(UserError, match=r"1 of 3 predictions cannot be used .* allows 33\.0%"):
        load(tmp_path, more, REFERENCES, max_unmatched_share=0.33)
    with pytest.raises(UserError, match=r"1 of 2 references cannot be used \(1 x no prediction \(a\)\)"):
        load(tmp_path, PREDICTIONS[:1], REFERENCES)
    left = load(tmp_path, PREDICTIONS[:1], REFERENCES, max_unmatched_share=0.5)
    assert [row.id for row in left.rows] == ["b"]
    scored = load(tmp_path, PREDICTIONS[:1], REFERENCES, missing="invalid")
    assert [(row.id, row.valid, row.answer is None) for row in scored.rows] == [
        ("a", False, True),
        ("b", True, False),
    ]


def test_records_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    given = write(
        tmp_path / "p.jsonl", [*PREDICTIONS, {"n": 1}, {**PREDICTIONS[0], "is_valid_json": "maybe"}]
    )
    given.write_text(given.read_text() + "{torn\n[]\n")
    wanted = write(tmp_path / "r.jsonl", [*REFERENCES, {"n": 3}])
    options = PredictionsConfig(predictions=given, references=wanted, max_unmatched_share=0.7)
    account = load_predictions(options).account
    assert (account.predictions, account.references) == (6, 3)
    assert account.unused_predictions == {
        "no id": ["p.jsonl:3"],
        "is_valid_json is neither true nor false": ["b"],
        "the line is not JSON": ["p.jsonl:5"],
        "the line is not a JSON object": ["p.jsonl:6"],
    }
    assert account.unused_references == {"no id": ["r.jsonl:3"]}


def test_several_answers_to_one_id(tmp_path: Path) -> None:
    twice = [*PREDICTIONS, {**PREDICTIONS[1], "n": 1}]
    with pytest.raises(UserError, match="has the id 'a' twice; leave one of them out, or --samples true"):
        load(tmp_path, twice, REFERENCES)
    found = load(tmp_path, twice, REFERENCES, samples=True)
    assert found.several
    assert [(row.id, row.sample, row.answer and row.answer["n"]) for row in found.rows] == [
        ("a", "0", 7.5),
        ("a", "1", 1),
        ("b", "0", 5),
    ]
    numbered = [{**row, "sample": number} for number, row in enumerate(twice)]
    assert [row.sample for row in load(tmp_path, numbered, REFERENCES).rows] == ["1", "2", "0"]
    with pytest.raises(
        UserError, match="the id 'a' with sample '7' twice; leave one of them out, or number them"
    ):
        load(tmp_path, [{**row, "sample": 7} for row in twice], REFERENCES)
    with pytest.raises(UserError, match=r"references: .* has the id 'b' twice"):
        load(tmp_path, PREDICTIONS, [*REFERENCES, REFERENCES[1]])


def test_other_names(tmp_path: Path) -> None:
    rows = [
        {"key": {"item": row["id"]}, "score": row["n"], "tags": row["tags"], "ok": 1} for row in PREDICTIONS
    ]
    found = load(
        tmp_path,
        rows,
        REFERENCES,
        id_column="key.item",
        reference_id_column="id",
        rename={"n": "score"},
        fields=("tags", "n"),
        valid_column="ok",
    )
    assert [row.answer for row in found.rows] == [{"tags": ["x"], "n": 7.5}, {"tags": [], "n": 5}]
    assert found.account.columns_left_out == []
    for options, said in (
        ({}, "has no column 's'; .* .--rename '{s: NAME}'."),
        ({"fields": ("n", "t")}, "fields has 't', which .* does not; it has id, n, tags, s"),
        ({"rename": {"m": "n"}}, "rename has 'm', which .* does not"),
        ({"id_column": "key"}, "references: .* has no column 'key'; its columns are id, n, tags, s"),
        ({"answer_column": "text"}, "has no column 'text'; .* --answer_column"),
    ):
        given = [{k: v for k, v in row.items() if k != "s"} for row in PREDICTIONS]
        with pytest.raises(UserError, match=said):
            load(tmp_path, given, REFERENCES, **options)


def test_whole_answers_and_conversations(tmp_path: Path) -> None:
    chats = [
        {
            "meta": {"item": row["id"]},
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": json.dumps({k: v for k, v in row.items() if k != "id"})},
            ],
        }
        for row in REFERENCES
    ]
    texts = ['{"n": 7, "tags": []}', "I cannot say"]
    rows = [{"id": row["id"], "text": text} for row, text in zip(REFERENCES, texts, strict=True)]
    found = load(tmp_path, rows, chats, reference_id_column="meta.item", answer_column="text")
    assert [row.reference for row in found.rows] == [
        {"n": 8, "tags": ["x", "y"], "s": "yes"},
        {"n": 5, "tags": [], "s": ""},
    ]
    assert [(row.valid, row.answer) for row in found.rows] == [(True, {"n": 7, "tags": []}), (False, None)]
    objects = [{"id": "a", "text": {"n": 1}}, {"id": "b", "text": None}]
    found = load(tmp_path, objects, chats, reference_id_column="meta.item", answer_column="text")
    assert [(row.valid, row.answer) for row in found.rows] == [(True, {"n": 1}), (False, None)]
    broken = [
        {**chats[0], "messages": []},
        {**chats[1], "messages": [{"role": "assistant", "content": "no"}]},
    ]
    with pytest.raises(
        UserError, match=r"no row of .* can be used .*does not end with an answer.*is not JSON"
    ):
        load(tmp_path, objects, broken, reference_id_column="meta.item", answer_column="text")


def test_references_of_text_cells(tmp_path: Path) -> None:
    given = write(tmp_path / "p.jsonl", PREDICTIONS)
    wanted = write(tmp_path / "r.csv", REFERENCES)
    found = load_predictions(PredictionsConfig(predictions=given, references=wanted))
    assert [row.reference for row in found.rows] == [
        {"n": 8, "tags": ["x", "y"], "s": "yes"},
        {"n": 5, "tags": [], "s": ""},
    ]
    rows = [{"l": "[1]", "n": "1", "b": "true", "s": "[1]"}, {"l": "", "n": "2.5", "b": "False", "s": "[1"}]
    assert columns_as_values(rows) == [
        {"l": [1], "n": 1, "b": True, "s": "[1]"},
        {"l": None, "n": 2.5, "b": False, "s": "[1"},
    ]


def test_values() -> None:
    assert value_of("1e3", "number") == 1000
    assert value_of(" .5", "number") == 0.5
    assert value_of('{"a": 1}', "other") == {"a": 1}
    assert value_of("a", "other") == "a"
    for cell, kind in (
        ("inf", "number"),
        ("1,5", "number"),
        ('{"a": 1}', "list"),
        ("a, b", "list"),
        ("so", "boolean"),
    ):
        with pytest.raises(UnreadableError):
            value_of(cell, kind)  # type: ignore[arg-type]
    for value, kind in (
        (True, "number"),
        (float("nan"), "number"),
        ("1", "number"),
        ([1], "text"),
        (1, "boolean"),
    ):
        with pytest.raises(UnreadableError):
            of_kind(value, kind)  # type: ignore[arg-type]
    with pytest.raises(UnreadableError):
        truth(2)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", "no\nno\n", "of all 2 records, the line is not JSON .first p.jsonl:1."),
        ("p.json", "{no", "p.json is no JSON"),
        ("p.json", '{"a": 1}', "holds no list of objects"),
        ("p.json", "[1, 2]", "of all 2 records, the entry is not a JSON object"),
        ("p.jsonl", "", "has no rows"),
        ("p.txt", "a", "is none of .jsonl, .json, .csv, .parquet"),
        ("p.parquet", "a", "is not a readable .parquet file"),
        ("p.csv", "id,id\n1,2\n", "not a header of distinct column names"),
    ],
)
def test_files_that_are_not_read(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    wanted = write(tmp_path / "r.jsonl", REFERENCES)
    with pytest.raises(UserError, match=said):
        load_predictions(PredictionsConfig(predictions=tmp_path / name, references=wanted))
    with pytest.raises(UserError, match="predictions: there is no file"):
        load_predictions(PredictionsConfig(predictions=tmp_path / "nowhere.jsonl", references=wanted))


def test_ids_that_have_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no id of .* is among those of .*--id_column"):
        load(tmp_path, [{**row, "id": row["n"]} for row in PREDICTIONS], REFERENCES)
