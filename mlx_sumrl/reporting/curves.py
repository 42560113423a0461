"""A run's numbers as pictures: losses, rewards, lengths over the steps; one run, or several in the same axes.

Invariant: every line is the metric as metrics.jsonl has it, step by step; a number that was not finite is a gap. A
metric that no run has takes no room. Nothing here changes matplotlib's global state. Never imports mlx.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.drawing import drawn_in
from mlx_sumrl.reporting.json_files import replacing, rows
from mlx_sumrl.reporting.run_folder import METRICS, read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
FEW_POINTS = 30
"""Lines with no more have a mark at each."""
SMOOTHED_FROM = 60
"""Noisy lines with as many points get a running mean, over a twentieth of them."""
BEGINNING = 0.1
"""Share of the steps in which a loss may fall from far above all that comes later, and is not followed there."""
FAR = 1.5
"""Times the later highest loss from which that is so."""
LONGEST_NAME = 30
"""Characters of a run's name in a legend."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Told apart by people who confuse red and green (Okabe and Ito 2008)."""
DASHES = ("-", "--", ":", "-.")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Curve:
    """One metric in a panel."""

    metric: str
    label: str
    stage: str | None = None
    """Only in rows of this stage."""


@dataclass(frozen=True)
class Panel:
    """Axes, and what is drawn in them."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    height: float = 1.0
    """Beside the other panels'."""
    share: bool = False
    """From 0 to 1."""
    asked_length: bool = False
    """Shows the length asked for."""
    noisy: bool = False
    """Each step has other rows: a running mean shows where it goes."""
    falls: bool = False
    """Its beginning would flatten all the rest."""


PANELS = (
    Panel(
        "Loss",
        "nats per token",
        (
            Curve("loss", "training batches", stage="sft"),
            Curve("evaluation/train_loss", "training rows, measured alike"),
            Curve("evaluation/loss", "held-out rows"),
        ),
        height=1.6,
        falls=True,
    ),
    Panel(
        "Decisions about stopping", "share right", (Curve("stopping/right", "stopping/right"),), share=True
    ),
    Panel("Reward", "per completion", (Curve("reward/mean", "reward/mean"),), noisy=True),
    Panel(
        "Within the asked length",
        "share",
        (Curve("length/within", "length/within"), Curve("reasoning/unfinished", "reasoning/unfinished")),
        share=True,
        noisy=True,
    ),
    Panel("Length", "tokens", (Curve("length/mean", "length/mean"),), asked_length=True, noisy=True),
    Panel("KL to the reference", "nats per token", (Curve("kl", "kl"),), noisy=True),
    Panel("Gradient norm", "", (Curve("grad_norm", "grad_norm"),), noisy=True),
    Panel("Learning rate", "", (Curve("learning_rate", "learning_rate"),), height=0.5),
)


@dataclass(frozen=True)
class RunCurves:
    """What is drawn of a run."""

    name: str
    rows: Sequence[dict[str, Any]]
    """The lines of metrics.jsonl."""
    target: int | None = None
    """Tokens asked for; None where no length was, or several were."""
    tolerance: int = 0

    def points(self, curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values of a metric [N], NaN where the value was not finite; [0] where no row has it."""
        found = [
            (row["step"], row[curve.metric])
            for row in self.rows
            if curve.metric in row and curve.stage in (None, row.get("stage"))
        ]
        steps = np.array([step for step, _ in found], np.float64)
        return steps, np.array([math.nan if value is None else value for _, value in found], np.float64)

    def stages(self) -> list[tuple[str, float]]:
        """Each stage's name and the step after which it began."""
        begun: list[tuple[str, float]] = []
        for row in self.rows:
            if not begun or begun[-1][0] != row.get("stage"):
                begun.append((str(row.get("stage")), max(row["step"] - 1, 0)))
        return begun


def read_curves(path: Path, name: str | None = None) -> RunCurves:
    """The run in a folder, whether it has ended or not.

    Raises:
        UserError: the folder holds no run, or one without a step.
    """
    if not (path / METRICS).is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        runs = sorted(str(one) for one in beside if (one / METRICS).is_file())
        hint = f"there are {', '.join(runs[:5])}" if runs else "name the folder of a run, as runs/NAME"
        raise UserError(f"{path} holds no run that has taken a step ({METRICS} is missing); {hint}")
    options = read_record(path)["options"]
    found = [row for _, row in rows(path / METRICS) if row is not None and isinstance(row.get("step"), int)]
    length = LengthConfig.model_validate(options.get("length") or {})
    # Supervised runs have a length too; nobody's answers are held to it.
    if "stages" not in options or length.targets:
        return RunCurves(name or path.name, found)
    return RunCurves(name or path.name, found, length.target, length.allowed)


def draw(runs: Sequence[RunCurves]) -> Figure:
    """The runs' curves; each line's ``gid`` is its metric, with the run's name before it where there are several.

    Raises:
        UserError: no run has a number that can be drawn.
    """
    panels = [panel for panel in PANELS if any(_drawable(run, one) for run in runs for one in panel.curves)]
    if not panels:
        raise UserError(
            f"there is nothing to draw: no step of {', '.join(run.name for run in runs)} has a finite number in it"
        )
    with drawn_in(STYLE):
        from matplotlib.figure import Figure

        heights = [panel.height for panel in panels]
        tall = 1.0 + 1.7 * sum(heights)
        figure = Figure(figsize=(10, tall), facecolor="white")
        axes = figure.subplots(
            len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights, "hspace": 0.45}
        )[:, 0]
        figure.subplots_adjust(left=0.09, right=0.72, top=1 - 0.75 / tall, bottom=0.5 / tall)
        for panel, below in zip(panels, axes, strict=True):
            _fill(below, panel, runs)
        for place, run in enumerate(runs):
            _mark_stages(
                list(axes), run, COLOURS[place % len(COLOURS)] if len(runs) > 1 else "#555555", len(runs) == 1
            )
        axes[-1].set_xlabel("step")
        figure.suptitle(
            ", ".join(_short(run.name) for run in runs),
            x=0.09,
            y=1 - 0.25 / tall,
            ha="left",
            va="center",
            fontsize=12,
        )
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write it as SVG or PNG; the file is complete or not there, and refers to nothing outside itself."""
    drawn = io.BytesIO()
    suffix = path.suffix[1:]
    with drawn_in(STYLE):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if suffix == "svg" else None
        figure.savefig(drawn, format=suffix, metadata=metadata, dpi=120)
    content = drawn.getvalue()
    if suffix == "svg":
        # The document type names a file on a server, which some readers would fetch.
        start, end = content.index(b"<!DOCTYPE"), content.index(b"<svg")
        content = content[:start] + content[end:]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def _fill(axes: Axes, panel: Panel, runs: Sequence[RunCurves]) -> None:
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    if panel.share:
        axes.set_ylim(-0.03, 1.03)
    several = len(runs) > 1
    if panel.asked_length:
        _band(axes, runs)
    for place, run in enumerate(runs):
        for number, curve in enumerate(panel.curves):
            if not _drawable(run, curve):
                continue
            label = curve.label
            if several:
                label = _short(run.name) + (f": {curve.label}" if len(panel.curves) > 1 else "")
            _line(
                axes,
                *run.points(curve),
                label=label,
                gid=f"{run.name}/{curve.metric}" if several else curve.metric,
                color=COLOURS[(place if several else number) % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)] if several else "-",
                noisy=panel.noisy,
            )
            if curve.metric == "evaluation/loss":
                _lowest(axes, run, curve, several)
    if panel.falls:
        _follow_the_end(axes, panel, runs)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.05), borderaxespad=0)


def _line(
    axes: Axes,
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    label: str,
    gid: str,
    color: str,
    linestyle: str,
    noisy: bool,
) -> None:
    marker = "o" if len(steps) <= FEW_POINTS else ""
    smooth = noisy and len(steps) >= SMOOTHED_FROM
    axes.plot(
        steps,
        values,
        label="_" if smooth else label,
        gid=gid,
        color=color,
        linestyle=linestyle,
        marker=marker,
        markersize=3,
        linewidth=1.4 if marker else 0.8 if smooth else 1.0,
        alpha=0.35 if smooth else 1,
    )
    if smooth:
        window = len(steps) // 40 * 2 + 1
        axes.plot(
            steps,
            running_mean(values, window),
            label=f"{label}, mean of {window}",
            gid=f"{gid}/mean",
            color=color,
            linestyle=linestyle,
            linewidth=1.6,
        )


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the ``window`` (odd) values around each [N], fewer at the ends, without those that are not finite; NaN
    of none."""
    finite = np.isfinite(values)
    ones = np.ones(window)
    half = window // 2
    sums = np.convolve(np.where(finite, values, 0.0), ones)[half : half + len(values)]
    counts = np.convolve(finite.astype(np.float64), ones)[half : half + len(values)]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _follow_the_end(axes: Axes, panel: Panel, runs: Sequence[RunCurves]) -> None:
    """Leave the beginning above the axes where it is far above the rest."""
    drawn = [run.points(curve) for run in runs for curve in panel.curves]
    last = max(float(steps[-1]) for steps, _ in drawn if len(steps))
    everything = np.concatenate([values[np.isfinite(values)] for _, values in drawn])
    later = np.concatenate(
        [values[(steps >= BEGINNING * last) & np.isfinite(values)] for steps, values in drawn]
    )
    if len(later) and later.max() > 0 and everything.max() > FAR * later.max():
        axes.set_ylim(top=1.08 * later.max(), bottom=min(0.0, everything.min()) - 0.03 * later.max())
        axes.set_title(
            f"{panel.title} (the first {BEGINNING:.0%} of the steps begin above, at {everything.max():.3g})"
        )


def _lowest(axes: Axes, run: RunCurves, curve: Curve, several: bool) -> None:
    """A ring around the lowest held-out loss: from there on, what is learned is learned by heart."""
    steps, values = run.points(curve)
    at = int(np.nanargmin(values))
    axes.plot(
        steps[at : at + 1],
        values[at : at + 1],
        linestyle="",
        marker="o",
        markersize=9,
        markerfacecolor="none",
        color="#222222",
        gid=f"{run.name}/lowest" if several else "lowest",
        label=f"{_short(run.name) + ': ' if several else ''}lowest, {values[at]:.4g} at step {steps[at]:.0f}",
    )


def _band(axes: Axes, runs: Sequence[RunCurves]) -> None:
    for target, tolerance in sorted({(run.target, run.tolerance) for run in runs if run.target is not None}):
        assert target is not None
        axes.axhspan(target - tolerance, target + tolerance, color="#009e73", alpha=0.15, linewidth=0)
        axes.axhline(
            target, color="#009e73", linewidth=0.8, linestyle="--", label=f"asked for: {target} ± {tolerance}"
        )


def _mark_stages(panels: Sequence[Axes], run: RunCurves, color: str, named: bool) -> None:
    stages = run.stages()
    if len(stages) < 2:
        return
    for number, (name, after) in enumerate(stages):
        if number:
            for axes in panels:
                axes.axvline(after + 0.5, color=color, linewidth=0.8, linestyle=(0, (4, 3)), gid="stage")
        if named:
            panels[0].annotate(
                name,
                (after + 0.5 if number else after, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -1),
                textcoords="offset points",
                va="top",
                color=color,
                fontsize=8,
            )


def _drawable(run: RunCurves, curve: Curve) -> bool:
    return bool(np.isfinite(run.points(curve)[1]).any())


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
