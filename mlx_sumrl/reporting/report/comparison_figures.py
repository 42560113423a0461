"""What differs, by how much, and which metrics say the same. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlx_sumrl.evaluation.statistics.comparison import Comparison
from mlx_sumrl.evaluation.statistics.correlation import correlations
from mlx_sumrl.reporting.report.material import Material
from mlx_sumrl.reporting.report.palette import WIDTH, drawing, light, look
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.wording import is_share, number, plain, short, title_of, unit_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_SHOWN = "no difference shown"
SIGNS = {"better": "▲", "worse": "▼", "higher": "▲", "lower": "▼"}
CORRELATED = (
    *("length", "within", "rouge1", "rougeL", "meteor", "bertscore_f1", "chrf", "repetition", "novelty_2"),
    *("coverage", "density", "entity_coverage", "compression"),
    *("judge_faithfulness", "judge_coverage", "judge_conciseness", "judge_clarity", "judge_composite"),
)
"""Metrics that are held against each other."""
MANY = 9
"""Metrics from which a grid needs more room than a telephone has."""
COLLAPSED = 0.7
"""From which two metrics say nearly the same."""


def effects(material: Material) -> Picture | None:
    """Forest plot: each difference with its interval, shares in percentage points, the rest in a panel of their own."""
    held = [one for one in material.comparisons if one.low is not None and one.high is not None]
    if not held:
        return None
    shares = [one for one in held if is_share(one.metric)]
    others: dict[str, list[Comparison]] = {}
    for one in held:
        if not is_share(one.metric):
            others.setdefault(one.metric, []).append(one)
    panels = [("difference, percentage points (score × 100)", 100.0, shares)] if shares else []
    panels += [(f"difference, {unit_of(name)}", 1.0, those) for name, those in others.items()]
    pairs = list(dict.fromkeys((one.baseline, one.other) for one in held))
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.7 + sum(0.5 + 0.2 * len(those) for _, _, those in panels)))
        below = figure.subplots(
            len(panels), 1, squeeze=False, height_ratios=[2 + len(those) for _, _, those in panels]
        )[:, 0]
        for axes, (unit, scale, those) in zip(below, panels, strict=True):
            _forest(axes, those, pairs, scale, material)
            axes.set_xlabel(unit)
            axes.locator_params(axis="x", nbins=6)
        handles: dict[str, Artist] = {}
        for axes in below:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=2)
    shown = [one for one in held if one.verdict != NOT_SHOWN]
    said = f"{len(shown)} of {len(held)} differences are shown (filled marks)"
    if shown:
        largest = max(shown, key=lambda one: abs(one.cohens_d or 0.0))
        said += (
            f"; the largest for its spread is {title_of(largest.metric)} of {largest.other} against "
            f"{largest.baseline}, d = {plain(largest.cohens_d or 0.0)}"
        )
    return Picture(
        "effects",
        "Differences with their intervals",
        f"{said}. An interval that holds 0 shows nothing; one that does not may still show nothing, once all tests "
        "are counted (Holm).",
        "Forest plot of differences and their intervals: "
        + "; ".join(
            f"{title_of(one.metric)} {one.other} against {one.baseline} {number(one.difference, one.metric)}"
            for one in held
        ),
        figure,
    )


def _forest(
    axes: Axes,
    those: Sequence[Comparison],
    pairs: Sequence[tuple[str, str]],
    scale: float,
    material: Material,
) -> None:
    metrics = list(dict.fromkeys(one.metric for one in those))
    rows = {name: [one for one in those if one.metric == name] for name in metrics}
    at, ticks = 0.0, []
    labelled: set[tuple[str, str]] = set()
    for name, group in rows.items():
        start = at
        for one in group:
            assert one.low is not None
            assert one.high is not None
            low, high = one.low, one.high
            pair = (one.baseline, one.other)
            style = look(
                material.place(one.other) if len({base for base, _ in pairs}) == 1 else pairs.index(pair)
            )
            axes.errorbar(
                scale * one.difference,
                at,
                xerr=[[scale * (one.difference - low)], [scale * (high - one.difference)]],
                color=style.colour,
                marker=style.marker,
                markersize=6,
                markerfacecolor=style.colour if one.verdict != NOT_SHOWN else light("card"),
                linewidth=1.4,
                capsize=2.5,
                label="_" if pair in labelled else f"{short(one.other)} − {short(one.baseline)}",
                gid=f"effect-{one.metric}-{one.other}",
            )
            labelled.add(pair)
            at += 1
        ticks.append(((start + at - 1) / 2, title_of(name)))
        at += 0.6
    axes.axvline(0, color=light("muted"), linewidth=1)
    axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(at - 0.5, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def significance(material: Material) -> Picture | None:
    """Heatmap of p after Holm: a line for each pair, a column for each metric."""
    held = material.comparisons
    if not held:
        return None
    pairs = list(dict.fromkeys((one.baseline, one.other) for one in held))
    metrics = list(dict.fromkeys(one.metric for one in held))
    by_cell = {((one.baseline, one.other), one.metric): one for one in held}
    cells = []
    for metric in metrics:
        for pair in pairs:
            one = by_cell.get((pair, metric))
            if one is None:
                cells.append(("", "axis", 0.0))
                continue
            sign = SIGNS.get(one.verdict, "")
            good = one.verdict in ("better", "higher")
            shade = 0.0 if one.verdict == NOT_SHOWN else 0.45 if one.p_holm < 0.001 else 0.25
            text = (
                "< .001"
                if one.p_holm < 0.001
                else f"{one.p_holm:.3f}".lstrip("0")
                if one.p_holm < 0.9995
                else "1"
            )
            cells.append((f"{sign} {text}".strip(), "series1" if good else "series2", shade))
    counts = {
        word: sum(one.verdict == word for one in held) for word in dict.fromkeys(one.verdict for one in held)
    }
    picture = _grid(
        [title_of(metric) for metric in metrics],
        [f"{short(other, 18)}\nvs {short(base, 18)}" for base, other in pairs],
        cells,
    )
    return Picture(
        "significance",
        "Tests: p after Holm’s correction",
        f"{len(held)} tests, counted together: "
        + ", ".join(f"{count} {word}" for word, count in counts.items())
        + ". ▲ better, ▼ worse than what it is compared with; no mark and no colour: no difference shown.",
        "Table of p values after Holm’s correction: "
        + "; ".join(
            f"{title_of(one.metric)}, {one.other} against {one.baseline}: {one.verdict}" for one in held
        ),
        picture,
    )


def correlation(material: Material) -> Picture | None:
    """Spearman's correlation of metrics over the rows, the mean over the subjects."""
    names = [
        name
        for name in material.metrics(*CORRELATED)
        if any(len(one.values(name)) > 2 and np.ptp(one.values(name)) > 0 for one in material.subjects)
    ]
    if len(names) < 2:
        return None
    # Within each subject: together they would also correlate by what the policies do differently.
    each = [correlations(one.evaluations, names).rho for one in material.subjects]
    mean: dict[tuple[int, int], float] = {}
    for i in range(len(names)):
        for j in range(i):
            found = [rho for one in each if (rho := one[i][j]) is not None]
            if found:
                mean[i, j] = float(np.mean(found))
    if not mean:
        return None
    cells = []
    for i in range(1, len(names)):
        for j in range(len(names) - 1):
            rho = mean.get((i, j))
            if rho is None:
                cells.append(("", "axis", 0.0))
            else:
                text = f"{rho:.2f}".replace("0.", ".", 1).replace("-", "−")
                cells.append((text, "series1" if rho > 0 else "series2", 0.45 * abs(rho)))
    (i, j), strongest = max(mean.items(), key=lambda item: abs(item[1]))
    same = sum(abs(rho) >= COLLAPSED for rho in mean.values())
    judged = [names.index(name) for name in ("judge_coverage", "judge_conciseness") if name in names]
    said = f"Strongest: {title_of(names[i])} and {title_of(names[j])} ({plain(strongest)}). "
    said += f"{same} of {len(mean)} pairs say nearly the same (|ρ| at least {COLLAPSED})."
    if len(judged) == 2 and (rho := mean.get((max(judged), min(judged)))) is not None:
        what = "collapse into one" if rho >= COLLAPSED else "pull apart" if rho < 0 else "are two things"
        said += f" The judge’s coverage and conciseness {what} (ρ = {plain(rho)})."
    titles = [short(title_of(name), 18) for name in names]
    return Picture(
        "correlation",
        "Which metrics say the same",
        f"Spearman’s ρ over the rows of each, averaged. {said}",
        "Table of rank correlations: "
        + "; ".join(
            f"{title_of(names[a])} and {title_of(names[b])} {plain(rho)}" for (a, b), rho in mean.items()
        ),
        _grid(titles[1:], titles[:-1], cells, slanted=True),
        wide=len(names) > MANY,
    )


def _grid(
    lines: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[tuple[str, str, float]],
    slanted: bool = False,
) -> Figure:
    """Cells of text on a colour [lines * columns], each as (text, colour, how strong)."""
    with drawing():
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(WIDTH, 1.3 + 0.3 * len(lines)))
        axes = figure.subplots()
        for place, (text, colour, strength) in enumerate(cells):
            y, x = divmod(place, len(columns))
            if strength:
                axes.add_patch(
                    Rectangle(
                        (x - 0.48, y - 0.46), 0.96, 0.92, facecolor=light(colour), alpha=strength, linewidth=0
                    )
                )
            if text:
                axes.text(x, y, text, ha="center", va="center", fontsize=8.5 if len(columns) < MANY else 7)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_yticks(range(len(lines)), lines)
        axes.set_xticks(range(len(columns)), columns)
        axes.tick_params(length=0, bottom=False, top=False, labelbottom=False, labeltop=True)
        if slanted:
            axes.tick_params(axis="x", labelrotation=45)
            for label in axes.get_xticklabels():
                label.set(ha="left", rotation_mode="anchor")
        axes.grid(visible=False)
        for side in axes.spines.values():
            side.set_visible(False)
    return figure
