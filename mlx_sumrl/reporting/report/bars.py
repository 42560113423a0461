"""Groups of horizontal bars, with the number at the end of each. Never imports mlx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlx_sumrl.reporting.report.palette import WIDTH, drawing, light, look
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.wording import listed, plain, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bars(
    values: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    *,
    name: str,
    title: str,
    caption: str,
    unit: str,
    halves: Mapping[str, Sequence[float]] | None = None,
    scale: float = 100,
) -> Picture:
    """Horizontal bars, a group for each label [N] and a bar in it for each subject; ``halves`` are half intervals."""
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 0.9 + len(labels) * (0.16 + 0.2 * len(values))))
        axes = figure.subplots()
        fill(axes, values, labels, name, halves, scale)
        axes.set_xlabel(unit)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return Picture(name, title, caption, f"Bar chart of {listed(labels)} for {listed(list(values))}", figure)


def fill(
    axes: Axes,
    values: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    name: str,
    halves: Mapping[str, Sequence[float]] | None = None,
    scale: float = 100,
) -> None:
    """Draw them into axes."""
    thick = 0.8 / len(values)
    finite = [value for one in values.values() for value in one if np.isfinite(value)]
    for place, (who, numbers) in enumerate(values.items()):
        style = look(place)
        at = np.arange(len(labels)) + (place - (len(values) - 1) / 2) * thick
        scaled = scale * np.asarray(numbers, np.float64)
        spread = scale * np.asarray(halves[who], np.float64) if halves else np.zeros(len(at))
        axes.barh(
            at,
            np.nan_to_num(scaled),
            thick * 0.92,
            color=style.colour,
            hatch=style.hatch,
            label=short(who),
            gid=f"{name}-{who}",
        )
        for y, value, half in zip(at, scaled, spread, strict=True):
            if not np.isfinite(value):
                continue
            if half:
                _whisker(axes, y, value, half)
            axes.annotate(
                plain(float(value)),
                (value + half, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    top = scale * max(finite, default=1.0)
    axes.set_xlim(min(0.0, scale * min(finite, default=0.0)), top * 1.18 or 1)
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _whisker(axes: Axes, y: float, value: float, half: float) -> None:
    axes.errorbar(value, y, xerr=half, color=light("ink"), linewidth=1, capsize=2, linestyle="none")
