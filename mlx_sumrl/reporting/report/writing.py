"""Writes report.html, comparison.json and the figures. Never imports mlx.

Invariant: each file is complete or not there, and depends on nothing but the material: no date, no machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.json_files import replacing, write_json
from mlx_sumrl.reporting.report import (
    answer_figures,
    comparison_figures,
    length_figures,
    quality_figures,
    training_figures,
)
from mlx_sumrl.reporting.report.gathering import Given, Wanted, gather
from mlx_sumrl.reporting.report.material import Material
from mlx_sumrl.reporting.report.page import page
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.verdicts import sentences

REPORT = "report.html"
COMPARISON = "comparison.json"
FIGURES = "figures"
DRAWN: tuple[tuple[str, Callable[[Material], Picture | None]], ...] = (
    ("lengths", length_figures.histogram),
    ("quality against length", length_figures.tradeoff),
    ("differences", comparison_figures.effects),
    ("tests", comparison_figures.significance),
    ("closeness to the references", quality_figures.overlap),
    ("spread over rows", quality_figures.spread),
    ("validity of JSON", answer_figures.validity),
    ("fields of JSON", answer_figures.fields),
    ("numeric errors", answer_figures.numeric_errors),
    ("consistency over samples", quality_figures.consistency),
    ("correlation of metrics", comparison_figures.correlation),
    ("rewards", training_figures.rewards),
    ("length and loss over the steps", training_figures.progress),
)
"""What each figure is about, and who draws it."""


def write_report(material: Material, folder: Path, *, beside: bool = True) -> list[Path]:
    """report.html in ``folder``; with ``beside`` also comparison.json and figures/. Returns what was written.

    Raises:
        UserError: the folder cannot be written into.
    """
    drawn = [(title, draw(material)) for title, draw in DRAWN]
    pictures = [picture for _, picture in drawn if picture is not None]
    left_out = [title for title, picture in drawn if picture is None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / REPORT]
        with replacing(folder / REPORT) as file:
            file.write(page(material, pictures, left_out).encode("utf-8", "replace"))
        if beside:
            write_json(folder / COMPARISON, to_json(material))
            written.append(folder / COMPARISON)
            for picture in pictures:
                written += picture.save(folder / FIGURES)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written into ({error.strerror or error}): choose another place with --out"
        ) from error
    return written


def report_of_run(folder: Path) -> Path:
    """report.html of one run, in its folder, without files beside it; its path."""
    write_report(gather([Given((folder,))], Wanted(), ComparisonConfig()), folder, beside=False)
    return folder / REPORT


def to_json(material: Material) -> dict[str, Any]:
    """Means, comparisons and what they say, as plain values."""
    return {
        "baseline": material.baseline,
        "asked": None if material.asked is None else asdict(material.asked),
        "means": {
            subject.name: {name: subject.mean(name) for name in subject.metrics}
            for subject in material.subjects
        },
        "seeds": {subject.name: len(subject.evaluations) for subject in material.subjects},
        "comparisons": [asdict(one) for one in material.comparisons],
        "sentences": sentences(material),
        "json_answers": {name: asdict(one) for name, one in material.json_answers.items()},
        "warnings": list(material.warnings),
        "commands": dict(material.commands),
    }
