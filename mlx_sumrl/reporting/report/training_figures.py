"""Rewards, lengths and losses over the steps, by reward and stage. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlx_sumrl.reporting.curves import FEW_POINTS, SMOOTHED_FROM, Curve, RunCurves, running_mean
from mlx_sumrl.reporting.report.material import Material
from mlx_sumrl.reporting.report.palette import WIDTH, drawing, light, look
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.wording import listed, plain, short

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

REWARD = "reward/"
UNITS = {
    "length/within": "share",
    "length/mean": "tokens",
    "kl": "nats per token",
    "loss": "nats per token",
    "stopping/right": "share",
    "evaluation/loss": "nats per token",
    "evaluation/train_loss": "nats per token",
    "reasoning/unfinished": "share",
}
"""Of what is drawn besides rewards, in this order."""
TITLES = {
    "length/within": "Within the asked length",
    "length/mean": "Length",
    "kl": "KL to the reference",
    "loss": "Supervised loss",
    "stopping/right": "Right about stopping",
    "evaluation/loss": "Loss on held-out rows",
    "evaluation/train_loss": "Loss on training rows",
    "reasoning/unfinished": "Never came to an answer",
}
SUPERVISED = "sft"
"""The stage whose ``loss`` says something; GRPO's does not."""
ENDS = 0.1
"""Share of a stage's steps that its beginning and its end are the means of."""
LATE = 0.75
"""Share of all steps from which a stage's name is written before its beginning: there is no room after it."""


def rewards(material: Material) -> Picture | None:
    """One panel for each reward."""
    names = dict.fromkeys(
        name for run in material.curves for row in run.rows for name in row if name.startswith(REWARD)
    )
    first = [f"{REWARD}mean"] if f"{REWARD}mean" in names else []
    curves = [Curve(name, name) for name in [*first, *(name for name in names if name not in first)]]
    return _picture(
        material.curves,
        curves,
        name="rewards",
        title="Rewards over the steps",
        units={curve.metric: "per completion" for curve in curves},
    )


def progress(material: Material) -> Picture | None:
    """Length, KL and losses."""
    curves = [Curve(name, name, stage=SUPERVISED if name == "loss" else None) for name in UNITS]
    return _picture(
        material.curves,
        curves,
        name="training",
        title="Length, divergence and loss over the steps",
        units=UNITS,
    )


def _picture(
    runs: Sequence[RunCurves], curves: Sequence[Curve], *, name: str, title: str, units: dict[str, str]
) -> Picture | None:
    drawn = [
        curve for curve in curves if any(np.isfinite(run.points(curve)[1]).any() for run in runs if run.rows)
    ]
    if not drawn:
        return None
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.9 + 1.25 * len(drawn)))
        panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        for axes, curve in zip(panels, drawn, strict=True):
            axes.set_title(f"{TITLES.get(curve.metric, curve.metric)}, {units[curve.metric]}")
            if curve.metric == "length/mean":
                _band(axes, runs)
            for place, run in enumerate(runs):
                _line(axes, run, curve, place)
            if units[curve.metric] == "share":
                axes.set_ylim(-0.04, 1.04)
        for place, run in enumerate(runs):
            _stages(list(panels), run, place, len(runs) == 1)
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        if len(runs) > 1 or curve_has_band(drawn, runs):
            handles, labels = _legend(list(panels))
            figure.legend(handles, labels, loc="outside upper left", ncols=2)
    said = [_said(run, curve, len(runs) > 1) for curve in drawn for run in runs]
    return Picture(
        name,
        title,
        "Means of the first and the last tenth of each stage’s steps: " + "; ".join(filter(None, said)) + ".",
        f"Line charts over the training steps of {listed([short(run.name) for run in runs])}: "
        + ", ".join(TITLES.get(curve.metric, curve.metric) for curve in drawn),
        figure,
    )


def curve_has_band(curves: Sequence[Curve], runs: Sequence[RunCurves]) -> bool:
    """Whether the asked length is drawn, and has to be in the legend."""
    return any(curve.metric == "length/mean" for curve in curves) and any(run.target for run in runs)


def _line(axes: Axes, run: RunCurves, curve: Curve, place: int) -> None:
    steps, values = run.points(curve)
    if not np.isfinite(values).any():
        return
    style = look(place)
    smooth = len(steps) >= SMOOTHED_FROM
    few = len(steps) <= FEW_POINTS
    axes.plot(
        steps,
        values,
        color=style.colour,
        linestyle=style.dash,
        linewidth=0.8 if smooth else 1.4,
        alpha=0.4 if smooth else 1,
        marker=style.marker if few else "",
        markersize=3.5,
        label="_" if smooth else short(run.name),
        gid=f"{place}/{curve.metric}",
    )
    if smooth:
        window = len(steps) // 40 * 2 + 1
        axes.plot(
            steps,
            running_mean(values, window),
            color=style.colour,
            linestyle=style.dash,
            linewidth=1.7,
            label=f"{short(run.name)}, mean of {window} steps",
        )


def _band(axes: Axes, runs: Sequence[RunCurves]) -> None:
    for target, tolerance in sorted({(run.target, run.tolerance) for run in runs if run.target is not None}):
        assert target is not None
        axes.axhspan(
            target - tolerance,
            target + tolerance,
            color=light("band"),
            linewidth=0,
            label=f"asked for: {target} ± {tolerance}",
        )


def _stages(panels: Sequence[Axes], run: RunCurves, place: int, named: bool) -> None:
    """A dashed line where a stage begins, and its name over the first panel's curves."""
    stages = run.stages()
    colour = light("muted") if named else look(place).colour
    for number, (stage, after) in enumerate(stages):
        if number:
            for axes in panels:
                axes.axvline(after + 0.5, color=colour, linewidth=0.8, linestyle=(0, (4, 3)))
        if named and len(stages) > 1:
            start = after + 0.5 if number else min(row["step"] for row in run.rows)
            late = start > LATE * max(row["step"] for row in run.rows)
            label = panels[0].annotate(
                f"{stage} ▸",
                (start, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3 if late else 3, 3),
                textcoords="offset points",
                ha="right" if late else "left",
                va="bottom",
                color=colour,
                fontsize=8.5,
            )
            label.set_in_layout(False)  # it stands between title and axes, where there is room
    if named and len(stages) > 1:
        panels[0].set_title(panels[0].get_title(loc="left"), pad=16)


def _legend(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _said(run: RunCurves, curve: Curve, several: bool) -> str:
    """From where to where it went in each stage."""
    parts = []
    for stage in dict.fromkeys(str(row.get("stage")) for row in run.rows):
        if curve.stage not in (None, stage):
            continue
        _, values = run.points(Curve(curve.metric, curve.label, stage))
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        few = max(round(ENDS * len(values)), 1)
        parts.append(f"{stage} {plain(values[:few].mean())} → {plain(values[-few:].mean())}")
    if not parts:
        return ""
    who = f" ({short(run.name)})" if several else ""
    return f"{TITLES.get(curve.metric, curve.metric)}{who}: {', '.join(parts)}"
