"""Where a JSON value ends, against Python's own parser and by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.rollouts.json_values import JsonScanner, value_spans

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TEXTS = st.text() | st.sampled_from(['"', "\\", '\\"', "{", "}]", "\u4e2d{", '"}'])
VALUES = st.recursive(
    SCALARS | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=12
)
CONTAINERS = st.lists(VALUES) | st.dictionaries(TEXTS, VALUES)
PROSE = st.text().map(lambda text: text.replace("{", "(").replace("[", "("))


@settings(max_examples=50)
@given(PROSE, CONTAINERS, st.text(), st.booleans(), st.sampled_from([None, 0, 3]), st.data())
def test_the_end_is_where_pythons_parser_has_it(
    before: str, value: Any, after: str, ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    text = before + json.dumps(value, ensure_ascii=ascii_only, indent=indent) + after
    _, end = json.JSONDecoder().raw_decode(text, len(before))
    written, wanted = text.encode(errors="replace"), len(text[:end].encode(errors="replace"))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=6)))
    scanner, read = JsonScanner(), 0
    for start, stop in zip([0, *cuts], [*cuts, len(written)], strict=True):
        assert scanner.complete == (read == wanted)
        read += scanner.feed(written[start:stop])
    assert scanner.complete
    assert read == wanted
    spans, begun = value_spans(text[:end].encode(errors="replace"))
    assert (spans, begun) == ([(len(before.encode(errors="replace")), wanted)], None)


@settings(max_examples=30, deadline=None)
@given(CONTAINERS)
def test_no_beginning_of_a_value_is_complete(value: Any) -> None:
    written = json.dumps(value).encode()
    for end in range(1, len(written)):
        assert value_spans(written[:end]) == ([], 0)


@pytest.mark.parametrize(
    ("text", "values", "rest"),
    [
        ('{"a": 1,}', ['{"a": 1,}'], None),
        ("```json\n{'a': b}\n```", ["{'a': b}"], None),
        ('{"a": [1, 2}, 3', ['{"a": [1, 2}'], None),  # the list ends with the object
        ('{"a": 1]} x', ['{"a": 1]}'], None),  # the bracket closes nothing
        ('} ] {"a": "}"} [1] {"b"', ['{"a": "}"}', "[1]"], '{"b"'),
        ('{"a": "\\\\"}{}', ['{"a": "\\\\"}', "{}"], None),
        ('{"a": "\\"}', [], '{"a": "\\"}'),
        ('say "hi" {"a": "x', [], '{"a": "x'),  # quotation marks outside of a value are prose
        ("no value", [], None),
        ("", [], None),
    ],
)
def test_by_hand(text: str, values: list[str], rest: str | None) -> None:
    spans, begun = value_spans(text.encode())
    assert [text[start:end] for start, end in spans] == values
    assert (None if begun is None else text[begun:]) == rest


def test_only_the_brackets_asked_for_begin_a_value() -> None:
    assert value_spans(b'[note] {"a": [1]} [2]', b"{") == ([(7, 17)], None)
    assert value_spans(b"{a} [1]", b"[") == ([(4, 7)], None)
    assert value_spans(b"{} []", b"") == ([], None)
