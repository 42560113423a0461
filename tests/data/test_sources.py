"""Reading rows: each kind of file, and what can be wrong with it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.data.sources import Row, read_rows, rows_from
from mlx_sumrl.errors import UserError

RECORDS = [
    {"id": "a", "text": 'plain, "quoted"\nand a second line'},
    {"id": "b", "text": "中文\u2028é 😀"},
    {"id": "c", "text": "{braces} \\ %"},
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"posts{suffix}", RECORDS)
    rows = read_rows(str(path))
    assert [row.fields for row in rows.rows] == RECORDS
    assert rows.columns == ["id", "text"]
    assert len({row.id for row in rows.rows}) == 3
    assert all(row.id.startswith(f"posts{suffix}:") for row in rows.rows)
    assert [row.fields for row in read_rows(str(path), limit=2).rows] == RECORDS[:2]


def test_ids_are_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    assert [row.id for row in read_rows(str(tmp_path / "a.jsonl")).rows] == ["a.jsonl:1", "a.jsonl:3"]
    (tmp_path / "a.csv").write_text('x,y\n1,"two\nlines"\n\n2,3\n')
    assert [row.id for row in read_rows(str(tmp_path / "a.csv")).rows] == ["a.csv:2", "a.csv:5"]


def test_broken_lines_are_rows(tmp_path: Path) -> None:
    lines = [b'\xef\xbb\xbf{"x": 1}', b'{"x": ', b"[1]", b'{"x": "\xff"}', b"[" * 100_000, b'{"x": 2}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = read_rows(str(tmp_path / "a.jsonl")).rows
    assert [row.fields for row in rows if row.broken is None] == [{"x": 1}, {"x": 2}]
    assert [row.id for row in rows if row.broken] == [f"a.jsonl:{n}" for n in (2, 3, 4, 5)]


def test_broken_csv_lines_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\ufeffx,y\n1,2\n1\n1,2,3\n"a"b,2\n3,4\n5,"never closed\n', encoding="utf-8"
    )
    rows = read_rows(str(tmp_path / "a.csv")).rows
    assert [row.fields for row in rows if row.broken is None] == [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}]
    assert [row.id for row in rows if row.broken] == ["a.csv:3", "a.csv:4", "a.csv:5", "a.csv:7"]


def test_long_csv_fields_and_the_modules_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"x": "long " * 100_000}])
    before = csv.field_size_limit()
    assert len(read_rows(str(path)).rows[0].fields["x"]) == 500_000
    assert csv.field_size_limit() == before


@given(st.lists(st.fixed_dictionaries({"x": st.text(), "y": st.text()}), min_size=1, max_size=5))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [row.fields for row in read_rows(str(path)).rows] == records


@pytest.mark.parametrize(
    "name", ["posts.jsonl", "data/posts.csv", "/no/where", "./posts", "a/b/c", "posts.json"]
)
def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no file") as error:
        read_rows(name)
    assert name in str(error.value)
    assert ".parquet" in str(error.value)


def test_wrong_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match=r"a\.txt is not a \.jsonl, \.csv or \.parquet file"):
        read_rows(str(tmp_path / "a.txt"))


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(UserError, match=r"a\.parquet is not a readable \.parquet file"):
        read_rows(str(tmp_path / "a.parquet"))


def test_csv_without_distinct_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,x\n1,2\n")
    with pytest.raises(UserError, match="distinct column names"):
        read_rows(str(tmp_path / "a.csv"))


def test_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> list[dict[str, int]]:
        asked.append((name, split))
        return [{"x": 1}, {"x": 2}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_rows("owner/set-v1.5", "test", 2).rows == [
        Row("owner/set-v1.5/test:1", {"x": 1}),
        Row("owner/set-v1.5/test:2", {"x": 2}),
    ]
    read_rows("owner/set", "train")
    assert asked == [("owner/set-v1.5", "test[:2]"), ("owner/set", "train")]
    assert read_rows("owner/set", "train", -1).rows == [Row("owner/set/train:2", {"x": 2})]


def test_unreachable_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError) as error:
        read_rows("owner/set", "train")
    for part in ("'owner/set'", "'train'", "ConnectionError: Couldn't reach the hub)", "network"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_real_datasets_library_on_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", RECORDS)
    rows = read_rows(str(tmp_path / "set"), "train", 2)
    assert [row.fields for row in rows.rows] == RECORDS[:2]
    with pytest.raises(UserError, match="'nosuch'"):
        read_rows(str(tmp_path / "set"), "nosuch")


def test_rows_from_memory() -> None:
    assert rows_from("made", [{"id": 7, "x": 1}]).rows == [Row("7", {"id": 7, "x": 1})]


def test_reading_files_does_not_import_datasets(tmp_path: Path) -> None:
    import subprocess

    path = write(tmp_path / "a.jsonl", RECORDS)
    code = (
        "import sys; from mlx_sumrl.data.sources import read_rows; import mlx_sumrl.data.examples;"
        f"read_rows({str(path)!r});"
        "sys.exit(any(name in sys.modules for name in ('datasets', 'mlx', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
