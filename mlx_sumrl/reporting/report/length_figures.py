"""How long the summaries are, against what was asked, and what that costs in quality. Never imports mlx."""

from __future__ import annotations

import numpy as np

from mlx_sumrl.reporting.report.material import Material, Subject, pick
from mlx_sumrl.reporting.report.palette import WIDTH, drawing, light, look
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.wording import is_share, listed, number, percent, short, title_of

BINS = 36
QUALITY = ("judge_composite", "bertscore_f1", "meteor", "rougeL", "rouge1", "chrf", "bleu")
"""The first of these that all have stands for quality."""

BY_PRECISION = ("bertscore_f1", "meteor", "rougeL", "rouge1", "chrf", "bleu")
FALLS = (
    " {} falls by length alone where more is asked for than the references have: the length-matched baseline shows "
    "by how much."
)


def histogram(material: Material) -> Picture | None:
    """One panel for each subject, the asked length behind all."""
    subjects = [subject for subject in material.subjects if len(subject.values("length"))]
    if not subjects:
        return None
    asked, unit = material.asked, material.unit
    lengths = [subject.values("length") for subject in subjects]
    low, high = (
        int(edge([values.min() if edge is min else values.max() for values in lengths]))
        for edge in (min, max)
    )
    if asked:
        low, high = min(low, asked.target - asked.tolerance), max(high, asked.target + asked.tolerance)
    width = max(-(-(high - low + 1) // BINS), 1)
    edges = np.arange(low, high + width + 1, width) - 0.5
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.8 + 0.95 * len(subjects)))
        panels = figure.subplots(len(subjects), 1, sharex=True, squeeze=False)[:, 0]
        for axes, subject, values in zip(panels, subjects, lengths, strict=True):
            if asked:
                axes.axvspan(
                    asked.target - asked.tolerance - 0.5,
                    asked.target + asked.tolerance + 0.5,
                    color=light("band"),
                    linewidth=0,
                    label=f"asked for: {asked}",
                )
            style = look(material.place(subject.name))
            axes.hist(
                values,
                edges,
                weights=np.full(len(values), 100 / len(values)),
                color=style.colour,
                hatch=style.hatch,
                gid=f"lengths-{subject.name}",
            )
            axes.set_title(f"{short(subject.name, 40)}: {values.mean():.1f} ± {values.std():.1f} {unit}")
            axes.grid(visible=False, axis="x")
            axes.margins(y=0.12)
        panels[-1].set_xlabel(f"length of a summary, {unit}")
        figure.supylabel("summaries, percent", fontsize=9.5)
        if asked:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left")
    caption = f"Bars are {width} {unit} wide. " if width > 1 else ""
    if asked and all("within" in subject.metrics for subject in subjects):
        caption += f"Within {asked}: {_steps(subjects, 'within')}."
    else:
        caption += "Mean length: " + ", ".join(
            f"{subject.name} {values.mean():.1f}" for subject, values in zip(subjects, lengths, strict=True)
        )
        caption += "."
    return Picture(
        "lengths",
        "How long the summaries are",
        caption,
        f"Histograms of summary lengths of {listed([subject.name for subject in subjects])}"
        + (f" with the asked band {asked}" if asked else ""),
        figure,
    )


def _steps(subjects: list[Subject], metric: str) -> str:
    """Two are a rise or a fall, more are a list."""
    shares = [(subject.name, subject.mean(metric) or 0.0) for subject in subjects]
    if len(shares) == 2 and abs(shares[0][1] - shares[1][1]) >= 0.005:
        (_, before), (name, after) = shares
        return f"{'rises' if after > before else 'falls'} from {percent(before)} to {percent(after)} ({name})"
    return ", ".join(f"{name} {percent(share)}" for name, share in shares)


def tradeoff(material: Material) -> Picture | None:
    """Mean quality against the mean distance from the asked length, and the front."""
    quality = pick(material.metrics(), *QUALITY)
    asked = material.asked
    if quality is None or asked is None or len(material.subjects) < 2:
        return None
    points = []
    for subject in material.subjects:
        off = np.abs(subject.values("length") - asked.target)
        found = subject.interval(quality)
        assert found is not None
        half = 1.959964 * float(off.std(ddof=1)) / len(off) ** 0.5 if len(off) > 1 else 0.0
        points.append((subject.name, float(off.mean()), half, found))
    scale = 100 if is_share(quality) else 1
    front = pareto([(x, mean) for _, x, _, (mean, _, _) in points])
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 3.9))
        axes = figure.subplots()
        line = sorted((points[place][1], scale * points[place][3][0]) for place in front)
        axes.plot(
            [x for x, _ in line],
            [y for _, y in line],
            color=light("muted"),
            linestyle="--",
            linewidth=1,
            drawstyle="steps-post",
            label="front: none is better in both",
            zorder=1,
        )
        for place, (name, x, half, (mean, low, high)) in enumerate(points):
            style = look(material.place(name))
            axes.errorbar(
                x,
                scale * mean,
                xerr=half,
                yerr=[[scale * (mean - low)], [scale * (high - mean)]],
                color=style.colour,
                marker=style.marker,
                markersize=9,
                linewidth=1.1,
                linestyle="none",
                markeredgecolor=light("ink") if place in front else "none",
                label=short(name),
                gid=f"point-{name}",
            )
        axes.set_xlabel(f"mean distance from {asked.target} {asked.unit} (less is better)")
        axes.set_ylabel(f"{title_of(quality)}{', percent' if scale == 100 else ''}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    on = [points[place] for place in sorted(front, key=lambda place: points[place][1])]
    falls = FALLS.format(title_of(quality)) if quality in BY_PRECISION else ""
    words = listed([f"{name} ({x:.1f} off, {number(found[0], quality)})" for name, x, _, found in on])
    return Picture(
        "tradeoff",
        "Quality against length",
        f"Means with 95 % intervals. Nothing is better in both than {words}.{falls}",
        f"Scatter chart of {title_of(quality)} against the mean distance from the asked length, one point per policy",
        figure,
    )


def pareto(points: list[tuple[float, float]]) -> set[int]:
    """Places of those that no other has a lower or equal first and a higher or equal second number than, one of them
    strictly."""
    return {
        place
        for place, (x, y) in enumerate(points)
        if not any(a <= x and b >= y and (a < x or b > y) for a, b in points)
    }
