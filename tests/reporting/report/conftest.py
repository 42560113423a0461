"""Evaluations whose numbers are known, as files and folders of runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Made = Callable[..., Path]


def evaluation(
    lengths: Sequence[int],
    quality: Sequence[float],
    target: int = 20,
    tolerance: int = 2,
    texts: Sequence[str] | None = None,
    **metrics: Sequence[float],
) -> dict[str, Any]:
    """What `Evaluation.to_json` writes, of N rows."""
    rows = []
    for place, (length, score) in enumerate(zip(lengths, quality, strict=True)):
        own = {name: values[place] for name, values in metrics.items()}
        rows.append(
            {
                "id": f"row-{place}",
                "document": f"document number {place}",
                "reference": f"reference number {place}",
                "text": texts[place] if texts else f"summary {place} of {length}",
                "length": length,
                "finish_reason": "stop",
                "metrics": {
                    "within": float(abs(length - target) <= tolerance),
                    "exact": float(length == target),
                    "rougeL": score,
                    "meteor": None,
                    **own,
                },
            }
        )
    return {
        "summary": {"rows": len(rows)},
        "meteor_missing": None,
        "rows": rows,
        "asked": {"target": target, "tolerance": tolerance, "unit": "tokens"},
    }


@pytest.fixture
def before() -> dict[str, Any]:
    """40 rows, 4 of them within."""
    random = np.random.default_rng(0)
    lengths = [20, 21, 19, 22, *random.integers(4, 15, 36).tolist()]
    return evaluation(lengths, random.uniform(0.2, 0.4, 40).tolist())


@pytest.fixture
def after(before: dict[str, Any]) -> dict[str, Any]:
    """The same rows, 36 of them within, a tenth better in ROUGE-L but for noise."""
    random = np.random.default_rng(1)
    quality = [row["metrics"]["rougeL"] + 0.1 + random.normal(0, 0.02) for row in before["rows"]]
    return evaluation([*random.integers(18, 23, 36).tolist(), 30, 31, 8, 9], quality)


@pytest.fixture
def written(tmp_path: Path) -> Made:
    """``written("name", content, **changes)`` -> the file."""

    def write(name: str, content: dict[str, Any], **changes: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run_folder(tmp_path: Path) -> Made:
    """``run_folder("name", {"before": ..., "length": ...}, seed=1)`` -> a run's folder with steps and evaluations."""

    def make(name: str, evaluations: dict[str, Any], seed: int = 0, **options: Any) -> Path:
        path = tmp_path / "runs" / name
        (path / "evaluation").mkdir(parents=True)
        stages = [stage for stage in evaluations if stage != "before"]
        asked = {
            "name": name,
            "runs_dir": "runs",
            "seed": seed,
            "length": {"target": 20, "tolerance": 2},
            "stages": [{"name": stage, "steps": 4} for stage in stages],
            **options,
        }
        record = {"options": asked, "command": f"python -m recipes.grpo_staged --name {name} --seed {seed}"}
        (path / "config.json").write_text(json.dumps(record))
        steps = [
            {
                "step": 4 * number + step,
                "stage": stage,
                "reward/mean": -1 / (4 * number + step),
                "reward/length": 0.1 * step,
                "length/mean": 10.0 + step,
                "length/within": 0.2 * step,
            }
            for number, stage in enumerate(stages)
            for step in range(1, 5)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
        for stage, content in evaluations.items():
            own = {part: held for part, held in content.items() if part != "asked"}
            (path / "evaluation" / f"{stage}.json").write_text(json.dumps(own))
        (path / "evaluation" / "final.json").write_text("{}")
        return path

    return make
