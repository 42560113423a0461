"""What is left out of a prepared dataset, and under which reason it is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.data.data_card import make_card
from mlx_sumrl.data.prepared import prepare
from mlx_sumrl.errors import UserError

from .small_sources import MADE_WITH, check_account, config, row, text, write


def test_filters(tmp_path: Path) -> None:
    english = "The weather was bad in the north of the country on Monday, and many trains were late."
    german = "Das Wetter war am Montag im Norden des Landes schlecht, und viele Züge hatten Verspätung."
    rows = [
        *(
            {"id": f"e{n}", "document": f"{english} {text(n)}", "summary": f"Trains were late {n}."}
            for n in range(5)
        ),
        {"id": "german", "document": german, "summary": "Züge hatten am Montag Verspätung."},
        {"id": "mixed", "document": english, "summary": german},
        {"id": "copy", "document": f"{english} One.", "summary": f"So:  {english.upper()} ONE."},
        {"id": "short", "document": f"{english} Two.", "summary": "Late."},
        {"id": "long", "document": f"{english} Three.", "summary": "Trains were late " * 5},
        {"id": "brief", "document": "It rained.", "summary": "There was rain."},
        {"id": "empty", "document": english, "summary": ""},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    prepared = prepare(
        config(
            file,
            split={"validation": 1, "test": 0},
            filters={"languages": ["en"], "min_summary": 2, "max_summary": 12, "min_document": 3},
        )
    )
    check_account(prepared)
    assert prepared.dropped == {
        "empty summary": ["a.jsonl:12"],
        "document in another language (de)": ["german"],
        "summary in another language (de)": ["mixed"],
        "summary holds the whole document": ["copy"],
        "summary shorter than 2 words": ["short"],
        "summary longer than 12 words": ["long"],
        "document shorter than 3 words": ["brief"],
    }
    assert sum(len(members) for members in prepared.splits.values()) == 5
    # Nothing but what cannot be used, where nothing is asked.
    plain = prepare(config(file, split={"validation": 1, "test": 0}, filters={"copies": True}))
    assert plain.dropped == {"empty summary": ["a.jsonl:12"]}
    with pytest.raises(ValueError, match=r"filters\.languages names 'English': give ISO 639 codes"):
        config(file, filters={"languages": "English"})
    with pytest.raises(UserError, match=r"no row is left: 1 x empty summary, .*widen the filters"):
        prepare(config(file, filters={"languages": ["fr"]}))


def test_lengths_in_tokens(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{**row(n), "summary": "x" * (n + 1)} for n in range(10)])

    def letters(texts: Any) -> list[int]:
        return [len(one) for one in texts]

    options = config(
        file,
        tokenizer="folder",
        filters={"unit": "tokens", "max_summary": 8},
        split={"validation": 1, "test": 0},
    )
    prepared = prepare(options, letters)
    assert prepared.dropped == {"summary longer than 8 tokens": ["r8", "r9"]}
    card = make_card(prepared, options, letters, MADE_WITH)
    lengths = [len(one.summary) for one in prepared.splits["train"]]
    assert card["splits"]["train"]["summary"]["tokens"]["max"] == max(lengths)
    assert card["splits"]["train"]["summary"]["tokens"]["mean"] == round(sum(lengths) / len(lengths), 2)
    assert card["splits"]["train"]["document"]["words"]["median"] == 40
    with pytest.raises(ValueError, match="needs --tokenizer"):
        config(file, filters={"unit": "tokens"})
