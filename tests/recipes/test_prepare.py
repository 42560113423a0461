"""``python -m recipes.prepare`` as a person runs it: on real rows, wrongly, and again."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from .programs import SHARED, Ended, Program

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared beside the checkout")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(ended: Ended) -> str:
    assert ended.code == 2, ended
    assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
    return ended.err.removeprefix("error: ").rstrip()


@pytest.fixture
def tales(tmp_path: Path) -> str:
    """40 dated posts by five authors; the columns have names of their own."""
    rows = [
        {
            "nr": n,
            "post": " ".join(f"word{n}x{k}" for k in range(30)),
            "tl_dr": f"Short {n}.",
            "day": (date(2024, 1, 1) + timedelta(days=n)).isoformat(),
            "author": f"author {n // 8}",
        }
        for n in range(40)
    ]
    path = tmp_path / "tales.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


COLUMNS = ("--document_column", "post", "--summary_column", "tl_dr", "--id_column", "nr")


def test_help(program: Program) -> None:
    ended = program("prepare", "--help")
    assert (ended.code, ended.err) == (0, "")
    for said in (
        "--source VALUE",
        "--from VALUE",
        "dialogsum (DialogSum",
        "--split.by",
        "--leakage",
        "required",
    ):
        assert said in ended.out
    assert max(map(len, ended.out.splitlines())) <= 100
    print(ended.out)


def test_any_file(program: Program, tales: str, tmp_path: Path) -> None:
    ended = program("prepare", "--source", tales, *COLUMNS, "--out", "data/tales", "--split.test", "4")
    assert (ended.code, ended.err) == (0, "")
    assert "40 rows read, 40 written (34 train, 2 validation, 4 test), 0 left out" in ended.out
    out = tmp_path / "data" / "tales"
    assert {path.name for path in out.iterdir()} == {
        "train.jsonl",
        "validation.jsonl",
        "test.jsonl",
        "card.json",
        "README.md",
    }
    row = lines(out / "test.jsonl")[0]
    assert list(row) == ["id", "document", "summary", "source", "language"]
    assert row["summary"] == f"Short {row['id']}."
    card = json.loads((out / "card.json").read_text())
    assert card["command"].startswith("python -m recipes.prepare --source tales.jsonl --document_column post")
    assert card["seed"] == 0
    assert card["versions"].keys() >= {"python", "datasketch", "py3langid"}
    again = program("prepare", "--source", tales, *COLUMNS, "--out", "data/again", "--split.test", "4")
    assert again.code == 0
    for name in ("train", "validation", "test"):
        assert (tmp_path / "data" / "again" / f"{name}.jsonl").read_bytes() == (
            out / f"{name}.jsonl"
        ).read_bytes()
    taken = refused(program("prepare", "--source", tales, *COLUMNS, "--out", "data/tales"))
    assert taken == (
        "the folder data/tales already holds a prepared dataset: choose another --out, or add --replace"
    )
    assert program("prepare", "--source", tales, *COLUMNS, "--out", "data/tales", "--replace").code == 0
    assert len(lines(out / "test.jsonl")) == 2


def test_no_training_row_is_later_than_any_test_row(program: Program, tales: str, tmp_path: Path) -> None:
    ended = program("prepare", "--source", tales, *COLUMNS, "--date_column", "day", "--out", "d")
    assert ended.code == 0
    days = [{row["day"] for row in lines(tmp_path / "d" / f"{name}.jsonl")} for name in ("train", "test")]
    assert max(days[0]) < min(days[1])
    assert len(days[1]) == 2


def test_groups(program: Program, tales: str, tmp_path: Path) -> None:
    ended = program(
        *("prepare", "--source", tales, *COLUMNS, "--group_column", "author", "--out", "d"),
        *("--split.validation", "8", "--split.test", "8"),
    )
    assert ended.code == 0
    authors = [
        {row["author"] for row in lines(tmp_path / "d" / f"{name}.jsonl")}
        for name in ("train", "validation", "test")
    ]
    assert [len(own) for own in authors] == [3, 1, 1]
    assert len(set().union(*authors)) == 5
    too_small = refused(
        program("prepare", "--source", tales, *COLUMNS, "--group_column", "author", "--out", "e")
    )
    assert too_small.startswith("validation has no row: groups or duplicates that stay together are larger")


def test_two_sources_on_the_command_line_and_in_a_file(program: Program, tales: str, tmp_path: Path) -> None:
    (tmp_path / "news.jsonl").write_text(
        "".join(
            json.dumps({"document": f"News {n} of {n * 7} and {n * 13}.", "summary": "N."}) + "\n"
            for n in range(10)
        )
    )
    options = {
        "sources": [
            {"source": tales, "document_column": "post", "summary_column": "tl_dr", "rows": 20},
            {"source": "xsum", "files": ["news.jsonl"]},
        ],
        "out": "both",
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(options))
    ended = program("prepare", "--config", "both.yaml")
    assert "30 rows read, 30 written" in ended.out
    card = json.loads((tmp_path / "both" / "card.json").read_text())
    assert [source["name"] for source in card["sources"]] == ["tales.jsonl", "xsum"]
    assert card["sources"][1]["licence"].startswith("unknown; the articles belong to the BBC")
    ended = program(
        "prepare", "--source", "xsum", "--from=news.jsonl", "--source=dialogsum", "--from", "news.jsonl",
        "--out", "twice", "--duplicates.drop", "exact",
    )  # fmt: skip
    assert "20 rows read, 10 written" in ended.out
    assert "10 x exact duplicate" in ended.out


def test_what_cannot_work(program: Program, tales: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")

    def said(*argv: str) -> str:
        sentence = refused(program("prepare", *argv))
        assert {path.name for path in tmp_path.iterdir()} == {"tales.jsonl", "empty.jsonl"}
        return sentence

    assert said().startswith("sources is missing")
    assert "there is no file or folder tale.jsonl" in said("--source", "tale.jsonl", "--out", "d")
    assert said("--source", tales) == "out is missing; set it in the config file or with --out"
    assert "tales.jsonl has no column 'document' and 'summary'" in said("--source", tales, "--out", "d")
    assert "empty.jsonl has no rows" in said("--source", "empty.jsonl", "--out", "d")
    assert "there is no source 'dialogsun'" in said("--source", "dialogsun", "--out", "d")
    assert "--source needs a value" in said("--source", "--out", "d")
    assert "stands before any --source" in said("--from", tales, "--out", "d")
    assert "--tokenizer nowhere is no folder" in said(
        "--source", tales, "--out", "d", "--tokenizer", "nowhere"
    )
    assert "split.by is time, which needs --date_column" in said(
        "--source", tales, "--out", "d", "--split.by", "time"
    )
    assert "did you mean --split.test?" in said("--source", tales, "--out", "d", "--split.tset", "3")
    assert "has no column 'when' (date_column)" in said(
        "--source", tales, *COLUMNS, "--out", "d", "--date_column", "when"
    )


@needs_shared
def test_real_sources(program: Program, tmp_path: Path) -> None:
    """Tokens of a real tokenizer, Chinese and chats among the rows."""
    tokenizer = str(SHARED / "models" / "summarizer-5m")
    for source, file in (
        ("lcsts", "lcsts.sample.jsonl"),
        ("messages", "news_tags.train.jsonl"),
        ("scitldr", "scitldr.train.jsonl"),
    ):
        ended = program(
            "prepare", "--source", source, "--from", str(SHARED / "data" / file), "--out", source, "--rows", "300",
            *(("--tokenizer", tokenizer) if source == "messages" else ()),
        )  # fmt: skip
        assert (ended.code, ended.err) == (0, "")
        card = json.loads((tmp_path / source / "card.json").read_text())
        assert card["rows"]["read"] == 300
        assert card["rows"]["written"] + card["rows"]["left_out"] == 300
        assert card["leakage"]["rows"] == 0
        main_language = {"lcsts": "zh"}.get(source, "en")
        assert card["splits"]["train"]["languages"][main_language]["share"] > 0.97
    chats = lines(tmp_path / "messages" / "train.jsonl")
    assert [turn["role"] for turn in chats[0]["messages"]] == ["user", "assistant"]
    card = json.loads((tmp_path / "messages" / "card.json").read_text())
    assert card["splits"]["train"]["summary"]["tokens"]["median"] > 20
    assert "tokens: median" in (tmp_path / "messages" / "README.md").read_text()


@needs_shared
def test_the_splits_that_dialogsum_has_leak(program: Program, tmp_path: Path) -> None:
    """The sentence names real pairs; what is left out mends it."""
    files = [str(SHARED / "data" / f"dialogsum.{name}.jsonl") for name in ("train", "validation")]
    (tmp_path / "dialogsum.yaml").write_text(
        yaml.safe_dump({"sources": [{"source": "dialogsum", "files": files, "rows": 800}]})
    )
    asked = ("prepare", "--config", "dialogsum.yaml", "--split.by", "source")
    sentence = refused(program(*asked, "--out", "e"))
    found = re.match(r"(\d+) of 1300 rows leak into a split that is held out from them", sentence)
    assert found, sentence
    ended = program(*asked, "--out", "f", "--leakage", "drop")
    assert (ended.code, ended.err) == (0, "")
    card = json.loads((tmp_path / "f" / "card.json").read_text())
    leaking = {pair["row"] for pair in card["leakage"]["pairs"]}
    assert len(leaking) == int(found[1]) > 0
    kept = {row["id"]: row["document"] for row in lines(tmp_path / "f" / "train.jsonl")}
    held_out = lines(tmp_path / "f" / "validation.jsonl")
    assert len(held_out) == 500
    assert len(kept) == 800 - len(leaking)
    assert not kept.keys() & leaking
    assert not {" ".join(one["document"].split()).lower() for one in held_out} & {
        " ".join(text.split()).lower() for text in kept.values()
    }
