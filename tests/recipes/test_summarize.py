"""`recipes.summarize` as a user types it: where the text comes from, and what happens to a long one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlx_sumrl.data.text_length import text_length

from .programs import Program

LONG = " ".join(f"I lost my phone on day {n} and want it back." for n in range(30))


@pytest.fixture
def asked(tiny_model: Path) -> list[str]:
    """A context of 128 tokens; the model is random, and so is what it writes."""
    options = [
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--max_tokens",
        "24",
        "--length.target",
        "16",
    ]
    options += ["--temperature", "1"]
    return [*options, "--data.instruction", "Summarize.\n\n{document}"]


def test_a_long_text_is_cut_and_that_is_said(program: Program, asked: list[str]) -> None:
    ended = program("summarize", *asked, LONG)
    assert ended.code == 0
    assert re.fullmatch(
        r"the text is longer than a prompt of 104 tokens: its last \d+ tokens were not read; --long reads all of it\n"
        r"\d+ tokens(, cut there)?\n",
        ended.err,
    )
    short = program("summarize", *asked, "I lost my phone.")
    assert re.fullmatch(r"\d+ tokens(, cut there)?\n", short.err)


def test_all_of_it(program: Program, asked: list[str], tmp_path: Path) -> None:
    """The same text from three places; progress, parts and length on standard error."""
    (tmp_path / "long.txt").write_text(LONG, encoding="utf-8-sig")
    ended = program("summarize", *asked, "--show_parts", "--long", LONG)
    assert ended.code == 0
    assert "not read" not in ended.err
    chunks = re.search(r"round 1, chunks  step (\d+)/(\d+)", ended.err)
    assert chunks is not None
    assert int(chunks[2]) > 5
    assert f"[round 1, chunk 1 of {chunks[2]}] " in ended.err
    assert re.search(r"^\d+ tokens(, cut there)?$", ended.err.splitlines()[-1])
    assert ended.out.strip()
    assert "round" not in ended.out
    for given, stdin in ((["--file", "long.txt"], None), ([], LONG)):
        again = program("summarize", *asked, "--long", *given, stdin=stdin)
        assert (again.code, again.out) == (0, ended.out)
        assert "[round 1" not in again.err
    # An option of the room switches it on as well; a text after --long null is cut.
    other = program("summarize", *asked, "--long.chunk_tokens", "40", LONG)
    found = re.search(r"round 1, chunks  step \d+/(\d+)", other.err)
    assert found is not None
    assert int(found[1]) > int(chunks[2])
    assert "not read" in program("summarize", *asked, "--long", "null", stdin=LONG).err


def test_in_another_unit(program: Program, asked: list[str]) -> None:
    ended = program("summarize", *asked, "--length.unit", "characters", "I lost my phone.")
    characters = text_length(ended.out, "characters")
    assert re.fullmatch(rf"{characters} characters(, cut there)?\n", ended.err)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--file", "absent.txt"], "absent.txt cannot be read (No such file or directory); correct --file"),
        (
            ["--file", "latin.txt"],
            "latin.txt is not UTF-8 text (invalid continuation byte); convert it to UTF-8",
        ),
        (
            ["--file", "latin.txt", "--seed", "1", "a text"],
            "there are two texts, the last argument and --file latin.txt; give one",
        ),
        (
            ["--show_parts", "a text"],
            "show_parts shows what --long makes: give --long too, or leave it out",
        ),
        (
            ["--long.chunk_tokens", "500", LONG],
            "long.chunk_tokens 500 is more than a prompt has room for: lower it to ",
        ),
        (
            ["--length.unit", "bullets", "--length.target", "3", "a text"],
            "length.tolerance 5 is not below length.target 3 (bullets): an empty summary would be within; set "
            "length.tolerance to at most 2",
        ),
    ],
)
def test_refused(program: Program, asked: list[str], tmp_path: Path, given: list[str], sentence: str) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") + b"t\xe9")
    ended = program("summarize", *asked, *given)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {sentence}")
    assert ended.err.count("\n") == 1
