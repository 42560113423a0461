"""Schemas from files and from pydantic models, and what meets them."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator

from mlx_sumrl.data.answer_schema import AnswerSchema, NotJsonError, load_schema, read_json
from mlx_sumrl.errors import UserError


class Mine(BaseModel):
    number: int = Field(ge=1)
    word: str = ""

    @field_validator("word")
    @classmethod
    def _lower(cls, value: str) -> str:
        if value != value.lower():
            raise ValueError("not in lower case")
        return value


def test_nothing_is_converted_and_own_validators_count() -> None:
    schema = AnswerSchema("Mine", Mine.model_json_schema(), Mine)
    assert schema.problem({"number": 3}) is None
    assert schema.problem({"number": 3, "word": "x"}) is None
    assert Mine.model_validate({"number": "3"}).number == 3  # pydantic would take it
    assert str(schema.problem({"number": "3"})) == "'3' is not of type 'integer' at $.number"
    assert schema.problem({"number": 0}) is not None
    assert schema.problem({}) is not None
    assert "not in lower case at $.word" in str(schema.problem({"number": 1, "word": "X"}))
    assert schema.fields == ("number", "word")


@pytest.mark.parametrize(
    ("schema", "opening"),
    [
        ({"type": "object"}, b"{"),
        ({"type": "array"}, b"["),
        ({"type": ["array", "object", "null"]}, b"{["),
        ({"type": "string"}, b""),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}}, b"{["),
    ],
)
def test_how_an_answer_may_begin(schema: dict[str, Any], opening: bytes) -> None:
    assert AnswerSchema("s", schema).opening == opening


def test_a_file_and_a_model_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answer.json").write_text(json.dumps({"type": "array", "items": {"type": "integer"}}))
    schema = load_schema("answer.json")
    assert schema.model is None
    assert schema.problem([1, 2]) is None
    assert schema.problem([1, "2"]) is not None
    source = """
        from __future__ import annotations
        from pydantic import BaseModel
        class Inner(BaseModel):
            word: str
        class Outer(BaseModel):
            inner: Inner
        other = 1
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    schema = load_schema("mine.py:Outer")
    assert schema.problem({"inner": {"word": "x"}}) is None
    assert "'word' is a required property" in str(schema.problem({"inner": {}}))
    with pytest.raises(
        UserError, match=r"'other' is no pydantic model; the models of mine\.py are: Inner, Outer"
    ):
        load_schema("mine.py:other")
    with pytest.raises(UserError, match="'Ouster' does not exist there"):
        load_schema("mine.py:Ouster")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ('{"type": "thing"}', "is no JSON schema: 'thing' is not valid"),
        ('{"items": {"$ref": "https://example.org/x.json"}}', "nothing is fetched"),
    ],
)
def test_files_that_are_no_schema(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        load_schema(str(path))


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("nowhere.json", "there is no file nowhere.json"),
        ("Model", "is not of the form package.module:Model"),
        ("nowhere.py:Model", "there is no file"),
        ("no_such_package.x:Model", "cannot be imported"),
    ],
)
def test_names_of_nothing(location: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_schema(location)


def test_a_model_that_no_json_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "from typing import Callable\nfrom pydantic import BaseModel\nclass M(BaseModel):\n    f: Callable\n"
    )
    with pytest.raises(UserError, match="cannot be written as a JSON schema"):
        load_schema(f"{path}:M")


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", '{"a": 1} x', "[" * 100_000, "1" * 5_000])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(NotJsonError):
        read_json(text)
