"""Overlap with references, how it is spread over rows, and how much samples of one row differ. Never imports mlx."""

from __future__ import annotations

import numpy as np

from mlx_sumrl.reporting.report.bars import bars
from mlx_sumrl.reporting.report.material import Material, Subject, pick
from mlx_sumrl.reporting.report.palette import WIDTH, drawing, light, look
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.wording import is_share, listed, number, plain, short, title_of

OVERLAP = (
    *("rouge1", "rouge2", "rougeL", "rougeLsum", "rougeL_recall", "meteor", "bleu", "chrf"),
    *("bertscore_precision", "bertscore_recall", "bertscore_f1"),
    *("judge_faithfulness", "judge_coverage", "judge_conciseness", "judge_clarity"),
)
SPREAD = ("length_error", "rougeL", "meteor", "bertscore_f1", "judge_composite", "repetition")
"""Metrics whose rows are shown one by one."""
STEADY = ("length", "rougeL", "meteor", "chrf", "bertscore_f1", "judge_composite", "repetition", "novelty_2")
"""Metrics of texts whose variation over samples is shown."""
CONSISTENCY = "consistency_"
"""Before a metric's name in a summary: its coefficient of variation over samples of one row."""


def overlap(material: Material) -> Picture | None:
    """ROUGE and its like, BERTScore, the judge: means with intervals."""
    names = material.metrics(*OVERLAP)
    if not names:
        return None
    found = {
        one.name: [one.interval(name) or (np.nan, np.nan, np.nan) for name in names]
        for one in material.subjects
    }
    said = []
    for name in names:
        best = max(material.subjects, key=lambda one: one.mean(name) or 0.0)
        said.append(f"{title_of(name)} {best.name} ({number(best.mean(name), name)})")
    several = len(material.subjects) > 1
    caption = f"Highest mean: {', '.join(said)}. " if several else ""
    return bars(
        {who: [mean for mean, _, _ in one] for who, one in found.items()},
        [title_of(name) for name in names],
        name="overlap",
        title="Closeness to the references, and what judges say",
        caption=caption
        + "Whiskers are 95 % intervals of each mean by itself; what is shown of the differences "
        "is in the table and the forest plot.",
        unit="score × 100",
        halves={who: [mean - low for mean, low, _ in one] for who, one in found.items()},
    )


def spread(material: Material) -> Picture | None:
    """A violin with a box in it for each subject, a panel for each metric."""
    names = [
        name
        for name in material.metrics(*SPREAD)
        if any(len(one.values(name)) > 1 and np.ptp(one.values(name)) > 0 for one in material.subjects)
    ]
    if not names:
        return None
    subjects = material.subjects
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, len(names) * (0.75 + 0.4 * len(subjects))))
        panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            scale = 100 if is_share(name) else 1
            for place, subject in enumerate(subjects):
                values = scale * subject.values(name)
                style = look(place)
                if len(values) > 1 and np.ptp(values) > 0:
                    bodies = axes.violinplot(
                        values, [place], orientation="horizontal", widths=0.85, showextrema=False, points=60
                    )
                    for body in bodies["bodies"]:
                        body.set(facecolor=style.colour, alpha=0.35, edgecolor=style.colour)
                axes.boxplot(
                    values,
                    positions=[place],
                    orientation="horizontal",
                    widths=0.22,
                    patch_artist=True,
                    boxprops={"facecolor": light("card"), "edgecolor": light("ink"), "linewidth": 1},
                    medianprops={"color": light("ink"), "linewidth": 2},
                    whiskerprops={"color": light("ink"), "linewidth": 1},
                    capprops={"color": light("ink"), "linewidth": 1},
                    flierprops={"marker": ".", "markersize": 3, "markeredgecolor": light("muted")},
                )
            axes.set_yticks(range(len(subjects)), [short(subject.name, 20) for subject in subjects])
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(len(subjects) - 0.4, -0.6)
            axes.grid(visible=False, axis="y")
            axes.set_title(f"{title_of(name)}, {_unit(material, name)}")
            if name == "length_error":
                axes.axvline(0, color=light("muted"), linewidth=1, linestyle="--")
    said = []
    for name in names:
        widest = max(subjects, key=lambda one: _between(one, name))
        said.append(f"{title_of(name)} {widest.name} ({number(_between(widest, name), name)})")
    return Picture(
        "spread",
        "How the rows are spread",
        "Box: the middle half of the rows with their median; whiskers: up to 1.5 boxes further; behind: their "
        f"density. Widest middle half: {', '.join(said)}.",
        f"Box and violin plots of {listed([title_of(name) for name in names])} "
        f"for {listed([one.name for one in subjects])}",
        figure,
    )


def _unit(material: Material, name: str) -> str:
    return "score × 100" if is_share(name) else material.unit if name.startswith("length") else "score"


def _between(subject: Subject, name: str) -> float:
    low, high = np.percentile(subject.values(name), [25, 75])
    return float(high - low)


def consistency(material: Material) -> Picture | None:
    """How much several samples of one row differ, of texts and of JSON answers."""
    held: dict[str, dict[str, float]] = {}
    for subject in material.subjects:
        for evaluation in subject.evaluations[:1]:
            held[subject.name] = {
                name: value
                for name in STEADY
                if isinstance(value := evaluation.summary.get(f"{CONSISTENCY}{name}"), int | float)
            }
    held |= {name: dict(one.consistency) for name, one in material.json_answers.items() if one.consistency}
    held = {name: one for name, one in held.items() if one}
    names = list(dict.fromkeys(name for one in held.values() for name in one))
    if not names:
        return None
    values = {who: [one.get(name, np.nan) for name in names] for who, one in held.items()}
    said = []
    for who, one in held.items():
        name = max(one, key=lambda metric: one[metric])
        said.append(f"{who} varies most in {title_of(name)} ({plain(one[name])})")
    return bars(
        values,
        [title_of(name) for name in names],
        name="consistency",
        title="How much samples of one row differ",
        caption=f"{listed(said)}. It is the standard deviation over the mean of one row’s samples, averaged over rows: "
        "0 is the same every time.",
        unit="coefficient of variation",
        scale=1,
    )


def best_quality(material: Material) -> str | None:
    """The metric that stands for quality where one has to."""
    return pick(material.metrics(), "judge_composite", "bertscore_f1", "meteor", "rougeL")
