"""Every row is a document or counted; sources are mixed by weight; the same seed gives the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.data.distillation.documents import form, next_source, plan_documents, source_names
from mlx_sumrl.errors import UserError


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in rows))
    return str(path)


def config(*sources: Any, **changes: Any) -> DistillConfig:
    options = {"out": Path("out"), "teacher": "http://h", "model": "m", "source": list(sources)}
    return DistillConfig.model_validate({**options, **changes})


@settings(deadline=None)  # machines are shared
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 120))
def test_no_source_gets_less_than_its_share(weights: list[int], count: int) -> None:
    """The lower quota of Jefferson's method, at each moment."""
    taken = [0] * len(weights)
    for number in range(1, count + 1):
        taken[next_source(taken, weights, range(len(weights)))] += 1
        for have, weight in zip(taken, weights, strict=True):
            assert have >= number * weight // sum(weights)


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows = [
        {"document": "The first."},
        {"document": "  the FIRST. "},
        {"document": "\uff34he first."},
        {"document": ""},
        {"document": None},
        {"document": 7},
        {"document": "half a pair \ud800"},
        "not json\n",
        {"document": "x" * 101},
        {"document": "The second."},
    ]
    file = written(tmp_path / "a.jsonl", rows)
    plan = plan_documents(config(file, longest_document=100, max_unusable_share=0.5))
    assert {one.text.strip().casefold() for one in plan.documents} >= {"the second."}
    assert len(plan.documents) == 2
    assert plan.left_out == {
        "the same document is there already": 2,
        "empty document": 1,
        "no document": 1,
        "the document is not text": 1,
        "the document is not valid Unicode": 1,
        "the line is not JSON": 1,
        "the document is longer than longest_document": 1,
    }
    assert plan.left_out.total() + len(plan.documents) == len(rows)
    exact = plan_documents(config(file, longest_document=100, max_unusable_share=0.5, same="exact"))
    assert len(exact.documents) == 4
    with pytest.raises(
        UserError, match=r"5 of 10 rows of .* cannot be used \(max_unusable_share allows 40.0%\)"
    ):
        plan_documents(config(file, max_unusable_share=0.4))


def test_weights_hold_among_what_is_not_double(tmp_path: Path) -> None:
    """Half of the second source repeats the first: it still gives its share."""
    first = written(tmp_path / "a.jsonl", [{"document": f"a {n}"} for n in range(50)])
    rows = [{"document": f"a {n}"} for n in range(50)] + [{"document": f"b {n}"} for n in range(50)]
    second = written(tmp_path / "b.jsonl", rows)
    plan = plan_documents(config({"file": first, "weight": 1}, {"file": second, "weight": 2}, rows=30))
    assert Counter(one.source for one in plan.documents) == {"a.jsonl": 10, "b.jsonl": 20}
    assert len({one.text for one in plan.documents}) == 30
    assert [one.order for one in plan.documents] == list(range(30))


def test_names_tell_sources_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "a.jsonl", [])
    x, y = str(tmp_path / "x" / "a.jsonl"), str(tmp_path / "y" / "a.jsonl")
    assert source_names([x]) == ["a.jsonl"]
    assert source_names([x, y, "trl-lib/tldr"]) == ["x/a.jsonl", "y/a.jsonl", "trl-lib/tldr"]
    assert source_names([x, x]) == ["a.jsonl", "a.jsonl"]


def test_a_source_that_ends_leaves_the_rest_to_the_others(tmp_path: Path) -> None:
    few = written(tmp_path / "a.jsonl", [{"document": f"a {n}"} for n in range(3)])
    many = written(tmp_path / "b.jsonl", [{"document": f"b {n}"} for n in range(50)])
    plan = plan_documents(config({"file": few, "weight": 9}, many, rows=20))
    assert [(one["documents"], one["ended"]) for one in plan.sources] == [(3, True), (17, False)]


def test_a_seed_is_an_order(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{"document": f"a {n}"} for n in range(50)])

    def order(seed: int) -> list[str]:
        return [one.text for one in plan_documents(config(file, seed=seed)).documents]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_languages(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{"document": "Hallo"}, {"document": "Hello"}, {"document": "?!"}])

    def language_of(text: str) -> tuple[str, float]:
        return ("de" if text == "Hallo" else "en"), (0.3 if text == "?!" else 0.9)

    found = {one.text: one.language for one in plan_documents(config(file), (), language_of).documents}
    assert found == {"Hallo": "de", "Hello": "en", "?!": None}
    given_ = plan_documents(config({"file": file, "language": "fr"}), (), language_of).documents
    assert {one.language for one in given_} == {"fr"}
    assert {one.language for one in plan_documents(config(file)).documents} == {None}


def test_columns_that_an_instruction_names(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{"document": "a", "title": "t"}, {"document": "b"}])
    plan = plan_documents(config(file, max_unusable_share=1), ("title",))
    assert [one.text for one in plan.documents] == ["a"]
    assert plan.left_out == {"no title, which the instruction names": 1}
    with pytest.raises(UserError, match=r"no column 'titel' .* did you mean 'title'"):
        plan_documents(config(file), ("titel",))


@settings(deadline=None)  # machines are shared
@given(st.text(), st.sampled_from([" ", "\n", "\t \u3000"]))
def test_form(text: str, space: str) -> None:
    spaced = space + space.join(text.split()) + space
    assert form(spaced, "normalised") == form(text, "normalised")
    assert form(text, "exact") == text


def test_forms_by_hand() -> None:
    assert form(" Straße\u00a0\n DREI ", "normalised") == form("strasse drei", "normalised")
    assert form("\uff43af\u00e9", "normalised") == form("cafe\u0301", "normalised")
    assert form("a b", "normalised") != form("ab", "normalised")
