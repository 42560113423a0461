"""Small files to prepare, whose documents have no shingle in common unless they are made to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_sumrl.config.prepare import PrepareConfig
from mlx_sumrl.data.prepared import Prepared

MADE_WITH = {"command": "prepare", "versions": {"python": "3"}}


def text(n: int, words: int = 40) -> str:
    """Words that no other number has."""
    return " ".join(f"w{n}x{k}" for k in range(words))


def near(n: int) -> str:
    """`text(n)` with one word changed: 3 of its 38 shingles go and 3 come, .85."""
    return text(n).replace(f"w{n}x10 ", f"changed{n} ")


def row(n: int, **other: Any) -> dict[str, Any]:
    return {"id": f"r{n}", "document": text(n), "summary": f"Short {n}.", **other}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return str(path)


def config(*files: str, **options: Any) -> PrepareConfig:
    """Options of a small file, where a row that cannot be used is a large share."""
    given = {"sources": [{"source": file} for file in files], "out": "out", "max_unusable_share": 1}
    return PrepareConfig.model_validate(given | options)


def ids(prepared: Prepared) -> dict[str, set[str]]:
    return {name: {one.id for one in rows} for name, rows in prepared.splits.items()}


def check_account(prepared: Prepared) -> None:
    written = sum(len(rows) for rows in prepared.splits.values())
    left_out = sum(len(dropped) for dropped in prepared.dropped.values())
    assert sum(source.records for source in prepared.sources) == written + left_out
    everyone = [one.id for rows in prepared.splits.values() for one in rows]
    assert len(set(everyone)) == len(everyone)
