"""How right structured answers are: validity, fields, numbers. Never imports mlx."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.reporting.report.bars import bars, fill
from mlx_sumrl.reporting.report.json_answers import VALIDITY, JsonAnswers
from mlx_sumrl.reporting.report.material import Material
from mlx_sumrl.reporting.report.palette import WIDTH, drawing, look
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.wording import listed, percent, plain, short, unit_of

BINS = 24
PARTS = ("f1", "precision", "recall")
PART_TITLES = {"f1": "F1", "precision": "Precision", "recall": "Recall"}
VALIDITY_TITLES = {
    "valid": "valid as it is",
    "repaired": "valid after a repair",
    "around": "text around it",
    "several": "more than one",
    "absent": "none",
    "unfinished": "cut at the limit",
    "missing": "missing",
}


def validity(material: Material) -> Picture | None:
    """Bars of what became of the answers."""
    answers = {name: one.validity for name, one in material.json_answers.items() if one.validity}
    names = [name for name in VALIDITY if any(name in one for one in answers.values())]
    if not names:
        return None
    values = {who: [one.get(name, np.nan) for name in names] for who, one in answers.items()}
    said = [
        f"{who} {percent(one['valid'])} of {material.json_answers[who].rows}"
        for who, one in answers.items()
        if "valid" in one
    ]
    return bars(
        values,
        [VALIDITY_TITLES[name] for name in names],
        name="validity",
        title="Are the answers valid JSON",
        caption="Valid as they are: " + ", ".join(said) + ".",
        unit="answers, percent",
    )


def fields(material: Material) -> Picture | None:
    """F1, precision and recall of each field, a panel for each."""
    answers = {name: one.fields for name, one in material.json_answers.items() if one.fields}
    names = list(dict.fromkeys(name for one in answers.values() for name in one))
    if not names:
        return None
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.8 + len(PARTS) * (0.5 + 0.17 * len(names) * len(answers))))
        panels = figure.subplots(len(PARTS), 1, sharex=True)
        for axes, part in zip(panels, PARTS, strict=True):
            values = {
                who: [getattr(one[name], part) if name in one else np.nan for name in names]
                for who, one in answers.items()
            }
            fill(axes, values, [short(name, 18) for name in names], part)
            axes.set_title(PART_TITLES[part])
            axes.set_xlim(0, 112)
        panels[-1].set_xlabel("percent")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    worst = []
    for who, one in answers.items():
        if who not in looking(material):
            continue
        name = min(one, key=lambda field: one[field].f1)
        worst.append(f"{who} does worst on {name} (F1 {percent(one[name].f1)})")
    return Picture(
        "fields",
        "How right each field is",
        f"{listed(worst)}. Means over the rows; two empty lists agree. Precision is the share of what was said that "
        "is right, recall the share of what was expected that was said.",
        f"Bar charts of F1, precision and recall of the fields {listed(names)}",
        figure,
    )


def numeric_errors(material: Material) -> Picture | None:
    """How far numbers are off, row by row, a panel for each field."""
    answers = {name: one.errors for name, one in looking(material).items() if one.errors}
    names = list(dict.fromkeys(name for one in answers.values() for name in one))
    if not names:
        return None
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.9 + 2.0 * len(names)))
        panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            held = {who: np.array(one[name]) for who, one in answers.items() if name in one}
            everything = np.concatenate(list(held.values()))
            edges = _edges(everything)
            for place, (who, errors) in enumerate(held.items()):
                style = look(place)
                axes.hist(
                    errors,
                    edges,
                    weights=np.full(len(errors), 100 / len(errors)),
                    histtype="step",
                    color=style.colour,
                    linestyle=style.dash,
                    linewidth=1.8,
                    label=short(who),
                )
            axes.set_title(name)
            axes.set_ylabel("answers, percent")
            axes.set_xlabel(f"answer minus reference, {unit_of(name)}")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    said = [
        f"{who}, {name}: off by {plain(float(np.abs(errors).mean()))} on average, median error "
        f"{plain(float(np.median(errors)))}"
        for who, one in answers.items()
        for name, errors in one.items()
    ]
    return Picture(
        "numeric-errors",
        "How far numbers are off",
        "; ".join(said) + ".",
        f"Histograms of answer minus reference for {listed(names)}",
        figure,
    )


def looking(material: Material) -> dict[str, JsonAnswers]:
    """Answers of those that looked at the documents."""
    blind = {name for one in material.json_answers.values() for name in one.blind}
    return {name: one for name, one in material.json_answers.items() if name not in blind}


def _edges(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whole numbers get bins of whole numbers."""
    span = float(np.ptp(errors))
    if np.array_equal(errors, np.round(errors)):
        width = max(-(-span // BINS), 1.0)
        return np.arange(errors.min() - 0.5, errors.max() + width + 0.5, width)
    return np.linspace(errors.min(), errors.max(), BINS + 1)
