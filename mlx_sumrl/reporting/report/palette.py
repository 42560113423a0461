"""The colours of the report, each with a value for light and one for dark pages, and the style figures are drawn in.

Invariant: every colour in a figure is a light value of `COLOURS`, and no two names share one. So a drawn figure can
be kept as it is (PNG, SVG beside the page) or have each value replaced by its CSS variable, which follows the page.
Nothing is told by colour alone: what is first, second, third has its own marker, dash and hatch too. Never imports mlx.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from mlx_sumrl.reporting.drawing import drawn_in


@dataclass(frozen=True, slots=True)
class Colour:
    """One colour as pages have it."""

    light: str
    dark: str


COLOURS = {
    "ink": Colour("#1d2430", "#e8eaee"),
    "muted": Colour("#525c6b", "#aab3c1"),
    "page": Colour("#f4f5f7", "#11141a"),
    "card": Colour("#fefefe", "#1a1f28"),
    "rule": Colour("#dfe2e8", "#353d4a"),
    "axis": Colour("#8a93a1", "#717c8d"),
    "link": Colour("#0b5cad", "#7cc0ff"),
    "band": Colour("#bfe3d4", "#1f4d3f"),
    "good": Colour("#00694d", "#4fd6a7"),
    "bad": Colour("#a83c00", "#ff9d66"),
    "series1": Colour("#0067a9", "#5fb4f2"),
    "series2": Colour("#c24c00", "#ff9054"),
    "series3": Colour("#00795a", "#41cf9f"),
    "series4": Colour("#9b3f8c", "#e693d6"),
    "series5": Colour("#8f6400", "#efc24d"),
    "series6": Colour("#2d7f9e", "#93dcf5"),
    "series7": Colour("#606774", "#b9c0cc"),
}
"""Text (ink, muted, link, good, bad) stands 4.5 : 1 off page and card, series 3 : 1. The series are Okabe and Ito's
(2008) hues, told apart by people who confuse red and green, darkened or lightened until they do."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
HATCHES = ("", "///", "..", "\\\\\\", "xx", "---", "++")
SERIES = 7

WIDTH = 5.4
"""Inches across, each 96 pixels of a page; narrow, so that letters stay readable on a telephone."""


def light(name: str) -> str:
    """The colour to draw with."""
    return COLOURS[name].light


@dataclass(frozen=True, slots=True)
class Look:
    """How the n-th of several things is drawn."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]
    hatch: str


def look(place: int) -> Look:
    """Colours repeat after seven; then markers, dashes and hatches have moved on by one."""
    shift = place + place // SERIES
    return Look(
        light(f"series{place % SERIES + 1}"),
        MARKERS[shift % SERIES],
        DASHES[shift % SERIES],
        HATCHES[shift % SERIES],
    )


STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "axes.edgecolor": light("axis"),
    "axes.facecolor": "none",
    "axes.labelcolor": light("ink"),
    "axes.titlecolor": light("ink"),
    "figure.facecolor": light("card"),
    "figure.edgecolor": light("card"),
    "figure.constrained_layout.use": True,
    "savefig.facecolor": light("card"),
    "grid.color": light("rule"),
    "grid.linewidth": 0.7,
    "hatch.color": light("card"),
    "hatch.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.labelcolor": light("ink"),
    "lines.linewidth": 1.5,
    "patch.edgecolor": light("card"),
    "text.color": light("ink"),
    "text.parse_math": False,  # names are people's, and may hold dollar signs
    "xtick.color": light("axis"),
    "ytick.color": light("axis"),
    "xtick.labelcolor": light("ink"),
    "ytick.labelcolor": light("ink"),
}


def drawing() -> AbstractContextManager[None]:
    """In the report's own style, see `drawn_in`."""
    return drawn_in(STYLE)


def css_variables() -> str:
    """The colours as CSS declarations for ``:root``, which follow its ``color-scheme``."""
    return "\n".join(
        f"  --{name}: light-dark({colour.light}, {colour.dark});" for name, colour in COLOURS.items()
    )


def css_light_variables() -> str:
    """The light values alone, for browsers that do not know ``light-dark()``."""
    return "\n".join(f"  --{name}: {colour.light};" for name, colour in COLOURS.items())
