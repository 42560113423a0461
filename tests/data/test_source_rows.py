"""Declared sources: every layout, from files and from a simulated hub; and what can be wrong with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_sumrl.config.prepare import ReadingConfig, SourceConfig
from mlx_sumrl.data.declared_sources import DECLARED, declared
from mlx_sumrl.data.source_places import Place
from mlx_sumrl.data.source_rows import SourceRows, read_source
from mlx_sumrl.data.sources import dataset_splits
from mlx_sumrl.errors import UserError

TOP = ReadingConfig()
CHAT = [{"role": "user", "content": "Tag: a storm"}, {"role": "assistant", "content": '{"tag": "weather"}'}]


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(source: str, *files: str, top: ReadingConfig = TOP, **options: Any) -> SourceRows:
    return read_source(SourceConfig(source=source, files=files, **options), top)


# One row of each declared source as its dataset page shows it: source, row, document, summary, id, kept.
HUB_ROWS: list[tuple[str, dict[str, Any], str, str, str | None, dict[str, Any]]] = [
    (
        "tldr",
        {"prompt": "SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: Long. TL;DR: no.\n\nTL;DR:", "completion": " Short."},
        "SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: Long. TL;DR: no.",
        "Short.",
        None,
        {},
    ),
    ("smoltldr", {"prompt": "POST: Long.\n\nTL;DR:", "completion": " S."}, "POST: Long.", "S.", None, {}),
    (
        "cnn_dailymail",
        {"article": "News.", "highlights": "One .\nTwo .", "id": "f0"},
        "News.",
        "One .\nTwo .",
        "f0",
        {},
    ),
    ("xsum", {"document": "News.", "summary": "One.", "id": "123"}, "News.", "One.", "123", {}),
    (
        "scitldr",
        {
            "source": ["First sentence.", " Second one. "],
            "source_labels": [0, 1],
            "rouge_scores": [0.1, 0.2],
            "paper_id": "SysE",
            "target": ["The author's.", "A reviewer's."],
        },
        "First sentence. Second one.",
        "The author's.",
        "SysE",
        {},
    ),
    (
        "dialogsum",
        {"id": "train_0", "dialogue": "#Person1#: Hi.", "summary": "A greets B.", "topic": "greeting"},
        "#Person1#: Hi.",
        "A greets B.",
        "train_0",
        {"topic": "greeting"},
    ),
    ("lcsts", {"text": "日前，方舟子发文。", "summary": "发文"}, "日前，方舟子发文。", "发文", None, {}),  # noqa: RUF001
]


def test_every_declared_source_is_tried() -> None:
    assert {source for source, *_ in HUB_ROWS} | {"messages"} == set(DECLARED)
    assert declared("TRL-lib/tldr") is DECLARED["tldr"]
    assert declared("knkarthick/dialogsum") is DECLARED["dialogsum"]
    assert declared("posts.jsonl") is None
    for source in DECLARED.values():
        assert source.licence
        assert source.name == "messages" or source.instruction.count("{document}") == 1


@pytest.mark.parametrize(("source", "row", "document", "summary", "own_id", "kept"), HUB_ROWS)
def test_the_layout_of_the_hub(
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    row: dict[str, Any],
    document: str,
    summary: str,
    own_id: str | None,
    kept: dict[str, Any],
) -> None:
    """A simulated hub: what is asked of it, and what becomes of its rows."""
    asked = []

    def load_dataset(path: str, **options: Any) -> list[dict[str, Any]]:
        asked.append((path, options))
        return [row]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = read(source, rows=5)
    hub = DECLARED[source].hub
    assert hub is not None
    assert [path for path, _ in asked] == [hub.name] * 3
    assert [options["split"] for _, options in asked] == ["train[:5]", "validation[:5]", "test[:5]"]
    place = {key: value for key, value in asked[0][1].items() if key != "split"}
    assert place == {
        "cnn_dailymail": {"name": "3.0.0"},
        "xsum": {"revision": "refs/convert/parquet", "data_dir": "default"},
        "scitldr": {"revision": "refs/convert/parquet", "data_dir": "Abstract"},
    }.get(source, {})
    assert [one.split for one in found.rows] == ["train", "validation", "test"]
    for one in found.rows:
        assert (one.document, one.summary, one.source, one.kept) == (document, summary, source, kept)
    assert found.rows[0].id == (own_id or f"{hub.name}/train:1")
    assert found.licence == DECLARED[source].licence


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, **options: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"or name a .* file, as --source scitldr --from FILE$"):
        read("scitldr")


def test_places_with_the_real_library(tmp_path: Path) -> None:
    """Folders on this machine that are laid out as the hub's: a folder of the dataset, and a configuration."""
    import pandas

    for folder in ("Abstract/train", "FullText/train", "3.0.0", "2.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        frame = pandas.DataFrame({"source": [[folder, "b"]], "target": [["c", "d"]]})
        frame.to_parquet(tmp_path / folder / "train-0000.parquet")
    place = Place(str(tmp_path), "train", "train", folder="Abstract")
    assert [row.fields for row in place.read(5).rows] == [
        {"source": ["Abstract/train", "b"], "target": ["c", "d"]}
    ]
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
            for name in ("2.0.0", "3.0.0")
        )
        + "---\n"
    )
    place = Place(str(tmp_path), "train", "train", config_name="3.0.0")
    assert [row.fields["source"][0] for row in place.read(None).rows] == ["3.0.0"]
    assert dataset_splits(str(tmp_path), "3.0.0") == ["train"]
    with pytest.raises(UserError, match="cannot be looked up"):
        dataset_splits(str(tmp_path), "4.0.0")


def test_hub_dataset_that_is_not_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, **options: Any) -> list[dict[str, Any]]:
        asked.append(options)
        return [{"post": "Long.", "brief": "Short."}]

    hub = SimpleNamespace(
        load_dataset=load_dataset, get_dataset_split_names=lambda path, name: ["train", "dev", "extra"]
    )
    monkeypatch.setitem(sys.modules, "datasets", hub)
    columns = ReadingConfig(document_column="post", summary_column="brief")
    found = read("owner/posts", config_name="v2", top=columns)
    assert asked == [{"name": "v2", "split": split} for split in ("train", "dev", "extra")]
    assert [one.split for one in found.rows] == ["train", "validation", None]


@pytest.mark.parametrize(
    ("source", "file", "count"),
    [
        ("tldr", "tldr.train.jsonl", 1500),
        ("xsum", "xsum.sample.jsonl", 900),
        ("scitldr", "scitldr.train.jsonl", 1992),
        ("dialogsum", "dialogsum.validation.jsonl", 500),
        ("lcsts", "lcsts.sample.jsonl", 2000),
        ("messages", "news_tags.train.jsonl", 364),
    ],
)
def test_real_files(shared: Path, source: str, file: str, count: int) -> None:
    found = read(source, str(shared / "data" / file))
    assert found.records == count
    assert len(found.rows) + len(found.refused) == count
    print(source, found.refused[:3])
    assert len(found.rows) >= 0.99 * count
    if source == "tldr":
        assert found.rows[0].kept["subreddit"] == "r/AskReddit"
    assert {row.split for row in found.rows} == {
        {"tldr": "train", "scitldr": "train", "dialogsum": "validation", "messages": "train"}.get(source)
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_any_file_with_columns_named(tmp_path: Path, suffix: str) -> None:
    import pandas

    path = tmp_path / f"posts{suffix}"
    table = pandas.DataFrame(
        {"nr": [7, 8], "post": ["Long, one.", "Long two."], "tl_dr": ["One.", "Two."], "who": ["ann", "bob"]}
    )
    table["day"] = (
        pandas.to_datetime(["2024-01-31", "2024-02-01"]) if suffix == ".parquet" else ["2024-01-31"] * 2
    )
    if suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    columns = ReadingConfig(
        document_column="post", summary_column="tl_dr", id_column="nr", date_column="day", group_column="who"
    )
    first = read(str(path), top=columns).rows[0]
    assert first.source == f"posts{suffix}"
    assert (first.id, first.document, first.summary, first.group) == ("7", "Long, one.", "One.", "ann")
    assert first.date is not None
    assert first.date.date().isoformat() == "2024-01-31"
    line = json.loads(json.dumps(first.to_json()))
    assert list(line) == ["id", "document", "summary", "source", "language", "day", "who"]
    assert line["day"].startswith("2024-01-31")


def test_what_a_parquet_file_holds_beside_text(tmp_path: Path) -> None:
    import pandas

    day = pandas.Timestamp("2024-01-31")
    frame = pandas.DataFrame(
        {
            "document": ["Long."] * 3,
            "summary": ["Short."] * 3,
            "id": [1.5, float("nan"), None],
            "site": ["a", None, ""],
            "meta": [{"seen": day, "at": [day]}] * 3,
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    found = read(str(tmp_path / "a.parquet"), group_column="site", keep_columns=("meta",)).rows
    assert [row.id for row in found] == ["1.5", "a.parquet:2", "a.parquet:3"]
    assert [row.group for row in found] == ["a", None, None]
    assert json.loads(json.dumps(found[0].to_json()))["meta"] == {
        "seen": "2024-01-31 00:00:00",
        "at": ["2024-01-31 00:00:00"],
    }


def test_a_folder_with_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "dev", "sub/test", ".hidden/train"):
        write(tmp_path / f"{name}.jsonl", [{"document": name, "summary": "s"}] * 3)
    write(tmp_path / "README.md", [])
    found = read(str(tmp_path))
    assert {(row.document, row.split) for row in found.rows} == {
        ("train-00000-of-00002", "train"),
        ("train-00001-of-00002", "train"),
        ("dev", "validation"),
        ("sub/test", "test"),
    }
    # `rows` is for a whole split, not for each file of it.
    limited = read(str(tmp_path), rows=4).rows
    assert [row.split for row in limited].count("train") == 4
    assert [row.split for row in limited].count("test") == 3


def test_own_columns_come_before_those_at_the_top(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"x": "Long.", "y": "Short.", "z": "Other."}])
    top = ReadingConfig(document_column="x", summary_column="y", licence="MIT")
    assert read(file, top=top).rows[0].summary == "Short."
    own = read(file, top=top, summary_column="z", licence="CC0")
    assert (own.rows[0].summary, own.licence) == ("Other.", "CC0")


def test_chats(tmp_path: Path) -> None:
    with_system = [{"role": "system", "content": "Tag the news."}, *CHAT]
    rows: list[Any] = [
        {"messages": CHAT, "id": "a"},
        {"messages": with_system},
        {"messages": json.dumps(CHAT)},  # as a .csv file has it
        {"messages": CHAT[:1]},
        {"messages": []},
        {"messages": [{"role": "user"}, CHAT[1]]},
        {"messages": ["hello"]},
        {"messages": "hello"},
        {"messages": [CHAT[0], {"role": "assistant", "content": " "}]},
    ]
    found = read("messages", write(tmp_path / "chats.jsonl", rows))
    assert [row.messages for row in found.rows] == [CHAT, with_system, CHAT]
    assert (found.rows[1].document, found.rows[1].summary) == ("Tag: a storm", '{"tag": "weather"}')
    assert list(found.rows[0].to_json()) == ["id", "messages", "source", "language"]
    assert [reason for _, reason in found.refused] == [
        "the chat does not end with an answer",
        "no chat",
        "a turn of the chat has no text",
        "a turn of the chat has no role",
        "the chat is not JSON",
        "empty summary",
    ]
    # An undeclared file with such a column is one too.
    assert len(read(write(tmp_path / "b.jsonl", rows[:3])).rows) == 3


def test_chats_are_compared_without_their_template(tmp_path: Path) -> None:
    def chat(text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"Tag this item: {text} Answer in JSON."}, CHAT[1]]}

    found = read(
        "messages", write(tmp_path / "c.jsonl", [chat("storm hits"), chat("cup won"), chat("rates up")])
    )
    assert [row.compared for row in found.rows] == ["storm hits", "cup won", "rates up"]
    same = read("messages", write(tmp_path / "d.jsonl", [chat("storm hits")] * 2))
    assert len({row.compared for row in same.rows}) == 1
    assert "storm hits" in same.rows[0].compared


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    rows = [
        {"document": "Long.", "summary": "Short."},
        {"document": "Long."},
        {"document": "", "summary": "Short."},
        {"document": "Long.", "summary": " \u200b\n"},
        {"document": 7, "summary": "Short."},
        {"document": ["Long", 7], "summary": "Short."},
        {"document": "half \ud83d a pair", "summary": "Short."},
        {"document": [], "summary": "Short."},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    found = read(str(path))
    assert len(found.rows) == 1
    assert found.refused == [
        ("a.jsonl:2", "no summary"),
        ("a.jsonl:3", "empty document"),
        ("a.jsonl:4", "empty summary"),
        ("a.jsonl:5", "the document is not text"),
        ("a.jsonl:6", "the document is not text"),
        ("a.jsonl:7", "the document is not valid Unicode"),
        ("a.jsonl:8", "empty document"),
        ("a.jsonl:9", "the line is not JSON"),
    ]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", [{"post": "Long.", "brief": "Short.", "language": "en"}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "nothing").mkdir()

    def refusal(source: str, *files: str, **columns: Any) -> str:
        with pytest.raises(UserError) as error:
            read(source, *files, top=ReadingConfig(**columns))
        return str(error.value)

    assert refusal(good) == (
        f"{good} has no column 'document' and 'summary'; its columns are post, brief, language: name the right ones "
        "with --document_column and --summary_column"
    )
    named = {"document_column": "post", "summary_column": "brief"}
    assert "has no column 'sumary'" in refusal(good, document_column="post", summary_column="sumary")
    assert "no column 'day' (date_column)" in refusal(good, **named, date_column="day")
    assert "no column 'nr' (id_column)" in refusal(good, **named, id_column="nr")
    assert "no column 'tag' (keep_columns)" in refusal(good, **named, keep_columns=("tag",))
    assert "column 'language' of" in refusal(good, **named, keep_columns=("language",))
    assert "has no column 'messages'" in refusal("messages", good)
    assert "--messages_column" in refusal("messages", good)
    assert "empty.jsonl has no rows" in refusal(str(tmp_path / "empty.jsonl"))
    assert "no row of" in refusal(str(tmp_path / "broken.jsonl"))
    assert "the line is not JSON" in refusal(str(tmp_path / "broken.jsonl"))
    assert "holds no .jsonl, .csv, .parquet file" in refusal(str(tmp_path / "nothing"))
    assert "there is no file or folder" in refusal("xsum", str(tmp_path / "b.jsonl"))
    assert "there is no file or folder nowhere.jsonl" in refusal("nowhere.jsonl")
    assert refusal("dialogsun").startswith("there is no source 'dialogsun': name a file or folder")
    assert "name one with --from FILE" in refusal("messages")
