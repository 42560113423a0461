"""Small sources, the options of a quick distillation, and its files read without the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_sumrl.endpoint.ledger import Ledger
from tests.endpoint.simulated_teacher import MODEL, SimulatedTeacher

QUICK = ("--retry.first_wait_s", "0", "--timeout_s", "30")


def document(number: int) -> str:
    return (
        f"Report {number:03}: the bridge over river {number * 7} was closed for {number + 2} days in spring."
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def source(folder: Path, count: int) -> Path:
    return write_rows(
        folder / "reports.jsonl", [{"id": f"r{n}", "document": document(n)} for n in range(count)]
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def options(teacher: SimulatedTeacher, folder: Path, *more: str) -> list[str]:
    named = ["--teacher", teacher.url, "--model", MODEL, "--source", "reports.jsonl", "--id_column", "id"]
    return [*named, "--out", str(folder / "out"), *QUICK, *more]


def answers_on_disk(ledger: Path) -> list[str]:
    """The documents whose answers a ledger holds, read without the program."""
    if not ledger.exists():
        return []
    records = [json.loads(line) for line in ledger.read_bytes().split(b"\n")[:-1]]
    return [one["document"] for one in records if one["kind"] == "answer"]


def spent_at_most(ledger: Path) -> int:
    with Ledger.open(ledger, None) as held:
        return (held.spent + held.uncertain).tokens
