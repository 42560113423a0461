"""Evaluations to judge, and the options of a quick judgement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.endpoint.simulated_teacher import MODEL, SimulatedTeacher
from tests.judging.made import criterion_of

QUICK = ("--retry.first_wait_s", "0", "--timeout_s", "30")


def evaluation(path: Path, count: int, summary: str = "Bridge {n} shut.") -> Path:
    """What `recipes.evaluate --out` writes, of so many rows."""
    rows = [
        {
            "id": f"r{n}",
            "document": f"Report {n}: the bridge was shut.",
            "reference": f"Bridge {n} closed.",
            "text": summary.format(n=n),
            "length": 3,
            "finish_reason": "stop",
            "metrics": {"within": 1.0, "rougeL": 0.5 + n / 100},
        }
        for n in range(count)
    ]
    content = {
        "summary": {"rows": count, "rougeL": 0.5},
        "meteor_missing": None,
        "unit": "tokens",
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def options(server: SimulatedTeacher, *more: str, evaluation: str = "result.json") -> list[str]:
    return ["--server", server.url, "--model", MODEL, "--evaluation", evaluation, *QUICK, *more]


def ledger_lines(path: Path, kind: str) -> list[dict[str, Any]]:
    """A ledger's lines of a kind, read without the program; a last one that is torn is none."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [one for one in records if one["kind"] == kind]


DIGITS = {"faithfulness": 5, "coverage": 4, "conciseness": 4, "clarity": 5}


def by_criterion(number: int, prompt: str) -> str:
    """The last of ten rows is unclear."""
    criterion = criterion_of(prompt)
    return f"says {2 if criterion == 'clarity' and 'Bridge 9 ' in prompt else DIGITS[criterion]}"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
