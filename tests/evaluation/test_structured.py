"""What is counted of structured answers, and field F1, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from rich.table import Table

from mlx_sumrl.data.answer_schema import AnswerSchema
from mlx_sumrl.evaluation.structured import evaluate_structured, score_structured
from mlx_sumrl.evaluation.structured_answer import read_answer
from mlx_sumrl.evaluation.structured_fields import field_scores, macro_f1, micro_f1
from mlx_sumrl.evaluation.structured_table import field_tables, structured_table, summary_table
from mlx_sumrl.rollouts.types import Group, Sampling

SCHEMA = AnswerSchema(
    "news",
    {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "minimum": 1, "maximum": 10},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["score", "tags"],
        "additionalProperties": False,
    },
)
GOOD = '{"score": 3, "tags": ["a"]}'
VALUE = {"score": 3, "tags": ["a"]}


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (GOOD, "valid"),
        (f"\n {GOOD}\n\n", "valid"),
        (f"Here it is: {GOOD}", "repaired around"),
        (f"{GOOD} I hope that helps", "repaired around"),
        (f"```json\n{GOOD}\n```", "repaired around"),
        ('{"score": 3, "tags": ["a",],}', "repaired"),
        ("{'score': 3, 'tags': ['a']}", "repaired"),
        ('{"score": 3 "tags": ["a"}', "repaired"),
        (f"{GOOD}{GOOD}", "several"),
        (f"{GOOD}\nand\n{GOOD}", "several around"),
        (f'{GOOD}\n{{"score"', "several"),
        ('{"score": 3, "tags": ["a', ""),  # what has no end is not made one
        ('{"score": 11, "tags": []}', ""),
        ('{"score": "3", "tags": []}', ""),
        ('{"score": 3}', ""),
        ('{"score": NaN, "tags": []}', ""),
        ('So: {"score": 11, "tags": []}', "around"),
        ("I cannot say.", "absent"),
        ('["a"]', "absent"),  # an object is asked for
        ("", "absent"),
    ],
)
def test_what_is_counted(text: str, flags: str) -> None:
    answer = read_answer(text, "stop", SCHEMA)
    names = ("valid", "repaired", "around", "several", "absent", "unfinished")
    assert {name for name in names if getattr(answer, name)} == set(flags.split())
    assert answer.usable == bool({"valid", "repaired"} & set(flags.split()))
    assert answer.value == (VALUE if answer.usable else None)
    assert (answer.problem is None) == answer.valid
    cut = read_answer(text, "length", SCHEMA)
    assert cut.unfinished
    assert cut.valid == answer.valid


def test_plain_values() -> None:
    schema = AnswerSchema("s", {"enum": ["yes", "no"]})
    plain = AnswerSchema("s", {"type": "string"})
    assert read_answer('"yes"', "stop", schema).valid
    assert not read_answer("yes", "stop", plain).usable
    assert not read_answer("yes {", "stop", plain).absent


def test_fields_by_hand() -> None:
    references = [
        {"score": 3, "tags": ["a", "b"], "note": ""},
        {"score": 4, "tags": [], "note": "x"},
        {"score": 5, "tags": ["c"], "note": "y"},
    ]
    answers = [
        {"score": 3.0, "tags": ["b", "a", "a", "z"], "note": "", "more": {"k": 1}},  # 3.0 is 3; twice is once
        {"score": 5, "tags": [], "note": "X"},
        None,
    ]
    scores = field_scores(references, answers, ("tags", "score"))
    assert list(scores) == ["tags", "score", "note", "more"]
    counted = {name: (one.right, one.said, one.expected) for name, one in scores.items()}
    assert counted == {"tags": (2, 3, 3), "score": (1, 2, 3), "note": (1, 2, 3), "more": (0, 1, 0)}
    assert scores["tags"].f1 == pytest.approx(4 / 6)
    assert (scores["tags"].precision, scores["tags"].recall) == pytest.approx((2 / 3, 2 / 3))
    assert scores["score"].f1 == pytest.approx(2 / 5)
    assert scores["tags"].exact == pytest.approx(1 / 3)  # the empty list
    assert scores["note"].exact == pytest.approx(1 / 3)
    assert scores["more"].exact == pytest.approx(2 / 3)
    assert micro_f1(scores.values()) == pytest.approx(2 * 4 / (8 + 9))
    assert macro_f1(scores.values()) == pytest.approx(float(Fraction(4, 6) + Fraction(2, 5) * 2) / 4)


def test_odd_values_are_compared_as_they_are() -> None:
    pairs: list[tuple[Any, Any, int]] = [
        (True, 1, 0),
        ("1", 1, 0),
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}, 1),
        ("Apple", "apple", 0),
        (None, None, 1),
        ([{"a": 1}, "x"], ["x", {"a": 1}], 2),
    ]
    for reference, said, right in pairs:
        assert field_scores([{"f": reference}], [{"f": said}])["f"].right == right, (reference, said)
    empty = field_scores([{"f": []}], [{"f": []}])["f"]
    assert (empty.f1, empty.precision, empty.recall, empty.exact) == (1, 1, 1, 1)
    assert field_scores([["a", "b"]], [["b"]])["answer"].f1 == pytest.approx(2 / 3)
    nothing = field_scores([{"f": ["a"]}, {"f": []}], [{"f": []}, {}])["f"]
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.jaccard) == (0, 0, 0, 0)
    assert (nothing.precision_mean, nothing.f1_mean, nothing.exact, nothing.answered) == (0, 0, 0, 0.5)
    with pytest.raises(ValueError, match="1 references and 0 answers"):
        field_scores([1], [])


@pytest.fixture
def groups(answer: Callable[..., Group]) -> list[Group]:
    return [
        answer(GOOD, 9, reference=GOOD, id="r1"),
        answer(f"So: {GOOD}", 11, reference='{"score": 3, "tags": ["a", "b"]}', id="r2"),
        answer("none", 1, reference=GOOD, id="r3"),
        answer('{"score": 3, "tags": ["', 20, "length", reference=GOOD, id="r4"),
    ]


def test_the_summary(groups: list[Group]) -> None:
    result = score_structured(groups, SCHEMA)
    assert result.summary == pytest.approx(
        {
            "rows": 4,
            "valid": 0.25,
            "exact_match": 0.25,
            # tags: all of one row, the half of another, nothing of two that cannot be used
            "precision": 2 / 4,
            "recall": 1.5 / 4,
            "f1": (1 + 2 / 3) / 4,
            "jaccard": 1.5 / 4,
            "repaired": 0.25,
            "around": 0.25,
            "several": 0,
            "absent": 0.25,
            "unfinished": 0.25,
            # score: 2 right of 2 said and 4 expected; tags: 2 of 2 and 5
            "field_f1_micro": 2 * 4 / (4 + 9),
            "field_f1_macro": (4 / 6 + 4 / 7) / 2,
            "length_mean": 41 / 4,
        }
    )
    content = json.loads(json.dumps(result.to_json()))
    assert content["fields"]["tags"]["f1"] == pytest.approx(4 / 7)
    assert content["rows"][1]["answer"]["value"] == VALUE
    with pytest.raises(ValueError, match="no completion"):
        score_structured([], SCHEMA)


def test_evaluating_asks_the_sampler_and_measures_its_speed(groups: list[Group]) -> None:
    class Said:
        def sample(self, examples: Any, group_size: int, sampling: Sampling, seed: int) -> list[Group]:
            return [next(group for group in groups if group.example.id == one.id) for one in examples]

    examples = [group.example for group in groups]
    result = evaluate_structured(Said(), examples, SCHEMA, Sampling(0), 3)
    assert result.rows == score_structured(groups, SCHEMA).rows
    assert result.summary["tokens_per_second"] > 0
    columns = structured_table({"free": result}).columns
    cells = {str(column.header): next(iter(column.cells)) for column in columns}
    assert (cells["valid"], cells["cut"], cells["micro"]) == ("25.0", "25.0", "61.5")
    assert lines_of(field_tables({"free": result.scores})[0])["  free"] == [
        *("50.0", "37.5", "41.7", "57.1", "37.5", "25.0", "0.0"),
    ]
    assert lines_of(summary_table({"free": result.scores}))["free"][:2] == ["25.0", "25.0"]


def lines_of(table: Table) -> dict[str, list[str]]:
    """First cell of each line -> the others."""
    cells = [list(column.cells) for column in table.columns]
    return {str(first): [str(one) for one in rest] for first, *rest in zip(*cells, strict=True)}
