"""The card says what is there, and what it names trains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import DataConfig
from mlx_sumrl.config.prepare import PrepareConfig
from mlx_sumrl.data.data_card import card_page, make_card
from mlx_sumrl.data.examples import config_rows, load_examples
from mlx_sumrl.data.prepared import prepare
from mlx_sumrl.data.prepared_folder import write_prepared
from mlx_sumrl.errors import UserError

from .small_sources import MADE_WITH, config, row, text, write


def test_the_card(tmp_path: Path) -> None:
    rows: list[Any] = [row(n, day=2000 + n) for n in range(20)]
    rows += [{**row(20), "summary": ""}, {**row(3), "id": "copy", "document": text(3).upper(), "day": 2003}]
    options = config(
        write(tmp_path / "a.jsonl", rows), date_column="day", licence="MIT | free", instruction="Sum."
    )
    prepared = prepare(options)
    card = json.loads(json.dumps(make_card(prepared, options, None, MADE_WITH)))
    assert card["rows"] == {"read": 22, "written": 21, "left_out": 1, "renamed": 0}
    assert {name: split["rows"] for name, split in card["splits"].items()} == {
        "train": 19,
        "validation": 1,
        "test": 1,
    }
    assert card["splits"]["test"]["dates"] == {
        "first": "2019-01-01T00:00:00+00:00",
        "last": "2019-01-01T00:00:00+00:00",
    }
    assert card["left_out"] == {"empty summary": {"rows": 1, "ids": ["a.jsonl:21"]}}
    assert card["duplicates"]["exact"] == [["r3", "copy"]]
    assert card["duplicates"]["exact_rows"] == 1
    assert card["options"]["split"]["validation"] == 0.05
    page = card_page(card, "mine")
    for said in (
        "# mine",
        "MIT \\| free",
        "split by time",
        "| empty summary | 1 | a.jsonl:21 |",
        "Sum.",
        "prepare",
    ):
        assert said in page


def test_what_is_prepared_trains(tmp_path: Path, chatml: Any) -> None:
    """The columns and the instruction are those that training reads."""
    lines = [{"dialogue": text(n), "summary": f"Short {n}."} for n in range(20)]
    options = PrepareConfig.model_validate(
        {
            "sources": [{"source": "dialogsum", "files": write(tmp_path / "a.jsonl", lines)}],
            "out": tmp_path / "out",
        }
    )
    prepared = prepare(options)
    card = make_card(prepared, options, None, MADE_WITH)
    write_prepared(prepared, card, options.out)
    data = DataConfig(
        train=str(options.out / "train.jsonl"), instruction=card["sources"][0]["instruction"], id_column="id"
    )
    rows = config_rows(data, "train", seed=0)
    assert rows is not None
    examples = load_examples(rows, data, chatml, 64).examples
    assert [one.id for one in examples] == [one.id for one in prepared.splits["train"]]
    assert "Summarize the conversation.\n\nw" in examples[0].prompt
    assert examples[0].reference == prepared.splits["train"][0].summary


def test_sources_that_ask_for_different_things_train_together(tmp_path: Path, chatml: Any) -> None:
    """Each row is put to the model as its own source has it."""
    files = [
        write(tmp_path / f"{name}.jsonl", [row(n + 50 * k) for n in range(20)]) for k, name in enumerate("ab")
    ]
    asked = ["Sum up the talk.\n\n{document}", "Summarize the post.\n\n{document}"]
    sources = [{"source": file, "instruction": said} for file, said in zip(files, asked, strict=True)]
    options = PrepareConfig.model_validate({"sources": sources, "out": tmp_path / "out"})
    prepared = prepare(options)
    card = make_card(prepared, options, None, MADE_WITH)
    [said] = re.findall(r'`data.instruction: "(.*)"`', card_page(card, "mine"))
    write_prepared(prepared, card, options.out)
    data = DataConfig(
        train=str(options.out / "train.jsonl"), instruction=said.replace(r"\n", "\n"), id_column="id"
    )
    rows = config_rows(data, "train", seed=0)
    assert rows is not None
    examples = load_examples(rows, data, chatml, 64).examples
    assert len(examples) == len(prepared.splits["train"])
    for example, one in zip(examples, prepared.splits["train"], strict=True):
        assert f"{asked[one.source == 'b.jsonl'].replace('{document}', one.document)}" in example.prompt


@pytest.mark.parametrize(
    "asked",
    [
        (None, None),
        ("Sum up.\n\n{document}", None),
        ("Sum up.\n\n{document}", "Sum up.\n\n{document}"),
        ("Sum up.\n\n{document}", "{document}\n\nTL;DR:"),
        ("Sum up.\n\n{document}", "{document}"),
    ],
)
def test_what_no_column_can_tell_is_in_the_card_alone(asked: tuple[str | None, ...], tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{name}.jsonl", [row(n + 50 * k) for n in range(20)]) for k, name in enumerate("ab")
    ]
    sources = [{"source": file, "instruction": said} for file, said in zip(files, asked, strict=True)]
    options = PrepareConfig.model_validate({"sources": sources, "out": tmp_path / "out"})
    prepared = prepare(options)
    assert not any(one.kept for rows in prepared.splits.values() for one in rows)
    assert "column `instruction`" not in card_page(make_card(prepared, options, None, MADE_WITH), "mine")


def test_a_kept_column_of_that_name_is_refused(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{name}.jsonl", [row(n + 50 * k, instruction="x") for n in range(20)])
        for k, name in enumerate("ab")
    ]
    sources = [
        {"source": file, "instruction": f"{file}\n\n{{document}}", "keep_columns": "instruction"}
        for file in files
    ]
    with pytest.raises(UserError, match=r"column 'instruction' of a\.jsonl cannot be kept"):
        prepare(PrepareConfig.model_validate({"sources": sources, "out": tmp_path / "out"}))
