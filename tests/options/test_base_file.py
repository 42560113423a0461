"""``base: FILE`` in a YAML file: what is laid over what, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import parse, read_options


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int = 1
    b: int = 2
    many: list[int] = [0]


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = "none"
    inner: Inner = Inner()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_own_keys_win_mappings_merge_and_lists_are_replaced(tmp_path: Path) -> None:
    write(tmp_path / "low.yaml", "name: low\ninner: {a: 10, b: 20, many: [1, 2, 3]}")
    write(tmp_path / "sub" / "middle.yaml", "base: ../low.yaml\ninner: {b: 21}")
    top = write(tmp_path / "sub" / "top.yaml", "base: middle.yaml\nname: top\ninner: {many: [9]}")
    assert read_options(top) == {"name": "top", "inner": {"a": 10, "b": 21, "many": [9]}}
    found = parse(Outer, ["--config", str(top), "--inner.a", "7"], prog="", description="")
    assert found == Outer(name="top", inner=Inner(a=7, b=21, many=[9]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [x.yaml]", "base in .*top.yaml is .*; name a YAML file"),
        ("base: nowhere.yaml", r"config file .*nowhere.yaml does not exist"),
        ("base: top.yaml", "base top.yaml in .*top.yaml leads back to itself"),
        ("base: around.yaml", "leads back to itself"),
        ("base: wrong.yaml", "unknown option nmae"),
    ],
)
def test_what_goes_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "around.yaml", "base: ./top.yaml")
    write(tmp_path / "wrong.yaml", "nmae: x")
    top = write(tmp_path / "top.yaml", text)
    with pytest.raises(UserError, match=message):
        parse(Outer, ["--config", str(top)], prog="", description="")


def test_a_room_of_the_file_may_have_a_base_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "low.yaml", "a: 10\nb: 20")
    write(tmp_path / "sub" / "middle.yaml", "base: ../low.yaml\nb: 21")
    write(tmp_path / "sub" / "under.yaml", "inner: {base: middle.yaml, many: [4]}\nname: under")
    top = write(tmp_path / "top.yaml", "base: sub/under.yaml\ninner: {b: 22}")
    found = read_options(top, ("inner",))
    assert found == {"name": "under", "inner": {"a": 10, "b": 22, "many": [4]}}
    around = write(tmp_path / "around.yaml", "inner: {base: around.yaml}")
    with pytest.raises(UserError, match="leads back to itself"):
        read_options(around, ("inner",))
    with pytest.raises(UserError, match=r"unknown option inner\.base"):
        parse(Outer, ["--config", str(top)], prog="", description="")
