"""The folder is complete or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.data import prepared_folder
from mlx_sumrl.data.prepared import Prepared
from mlx_sumrl.data.prepared_folder import check_free, write_prepared
from mlx_sumrl.data.prepared_row import PreparedRow
from mlx_sumrl.errors import UserError


def made(text: str = "long") -> Prepared:
    row = PreparedRow("a", text, "short", "s", language="en")
    from mlx_sumrl.data.duplicates import Duplicates

    return Prepared(
        {"train": [row], "test": [row]}, [], {}, 0, [row, row], Duplicates([], []), [], ["train", "test"], []
    )


@pytest.fixture(autouse=True)
def _plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_folder, "card_page", lambda card, name: f"# {name}\n")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_written_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "data"
    write_prepared(made(), {"x": 1}, out)
    assert names(out) == {"train.jsonl", "test.jsonl", "card.json", "README.md"}
    assert names(out.parent) == {"data"}
    assert json.loads((out / "train.jsonl").read_text()) == {
        "id": "a",
        "document": "long",
        "summary": "short",
        "source": "s",
        "language": "en",
    }
    assert json.loads((out / "card.json").read_text()) == {"x": 1}
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_prepared(made(), {}, tmp_path / "data")
    assert "train.jsonl" in names(tmp_path / "data")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "data"
    write_prepared(made("first"), {}, out)
    with pytest.raises(
        UserError, match=r"already holds a prepared dataset: choose another --out, or add --replace"
    ):
        write_prepared(made("second"), {}, out)
    assert "first" in (out / "train.jsonl").read_text()
    (out / "notes.txt").write_text("mine")
    write_prepared(made("second"), {}, out, replace=True)
    assert "second" in (out / "train.jsonl").read_text()
    assert names(tmp_path) == {"data"}


def test_somebody_else_s_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds something else \(card\.json is missing\)"):
        write_prepared(made(), {}, tmp_path, replace=True)
    with pytest.raises(UserError, match="is a file; name a folder"):
        check_free(tmp_path / "thesis.tex", True)
    with pytest.raises(UserError, match="is not a folder that you may write to"):
        check_free(tmp_path / "thesis.tex" / "data", True)
    assert names(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize("there_before", [False, True])
def test_nothing_stays_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
) -> None:
    out = tmp_path / "data"
    if there_before:
        write_prepared(made("first"), {}, out)

    def full(path: Path, content: Any) -> None:
        assert (path.parent / "train.jsonl").stat().st_size  # in the middle of it
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared_folder, "write_json", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        write_prepared(made("second"), {}, out, replace=True)
    assert names(tmp_path) == ({"data"} if there_before else set())
    if there_before:
        assert "first" in (out / "train.jsonl").read_text()


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data"
    write_prepared(made("first"), {}, out)
    rename = Path.rename
    calls = []

    def fails_once(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(UserError, match="Input/output error"):
        write_prepared(made("second"), {}, out, replace=True)
    assert "first" in (out / "train.jsonl").read_text()
    assert names(tmp_path) == {"data"}
