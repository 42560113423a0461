"""A figure with its words, and the three ways it is kept: inlined in the page, as SVG and as PNG beside it.

Invariant: an inlined SVG has no id that another one has, no colour that is not the page's, no address, and begins with
its title and what it shows, for whoever cannot see it. The same figure gives the same bytes. Never imports mlx.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_sumrl.reporting.json_files import replacing
from mlx_sumrl.reporting.report.palette import COLOURS, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESOLUTION = 160
"""Dots per inch of the PNG."""
FONTS = "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

_VARIABLE = {colour.light: f"var(--{name})" for name, colour in COLOURS.items()}


@dataclass(frozen=True)
class Picture:
    """One figure of the report."""

    name: str
    """Of its files, and before its ids in the page."""
    title: str
    caption: str
    """What to see in it, from the numbers it was drawn of."""
    alt: str
    """What is drawn, for who cannot see it."""
    figure: Figure
    wide: bool = False
    """Small on a telephone: is wider than it there, and scrolls."""

    def svg(self) -> str:
        """The SVG for the page: colours as CSS variables, ids with `name` before them."""
        drawn = self.bytes("svg").decode()
        drawn = drawn[drawn.index("<svg") :]
        box = re.search(r'viewBox="([^"]+)"', drawn)
        assert box is not None
        inside = drawn[drawn.index(">") + 1 :]
        inside = re.sub(r"<metadata>.*?</metadata>", "", inside, count=1, flags=re.DOTALL)
        # It would hold for the whole page.
        inside = re.sub(r"<style[^>]*>.*?</style>", "", inside, flags=re.DOTALL)
        inside = re.sub(r'\bid="([^"]*)"', lambda found: f'id="{self.name}-{found[1]}"', inside)
        inside = re.sub(
            r'(?:xlink:)?href="#([^"]*)"', lambda found: f'href="#{self.name}-{found[1]}"', inside
        )
        inside = re.sub(r"url\(#([^)]*)\)", lambda found: f"url(#{self.name}-{found[1]})", inside)
        inside = re.sub(r"#[0-9a-f]{6}\b(?=[;\"'])", lambda found: _VARIABLE.get(found[0], found[0]), inside)
        inside = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS.replace('"', "'"), inside)
        words = f"{self.name}-title {self.name}-desc"
        return (
            f'<svg viewBox="{box[1]}" role="img" aria-labelledby="{words}">'
            f'<title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-desc">{escape(self.alt)}</desc>{inside.strip()}'
        )

    def bytes(self, suffix: str) -> bytes:
        """The file's content; ``suffix`` is ``svg`` or ``png``."""
        content = io.BytesIO()
        metadata = (
            dict.fromkeys(("Date", "Creator", "Format", "Type")) if suffix == "svg" else {"Software": None}
        )
        with drawing():
            self.figure.savefig(content, format=suffix, metadata=metadata, dpi=RESOLUTION)
        written = content.getvalue()
        if suffix == "svg":
            # The document type names a file on a server, which some readers would fetch.
            start, end = written.index(b"<!DOCTYPE"), written.index(b"<svg")
            written = _without_names((written[:start] + written[end:]).decode()).encode()
        return written

    def save(self, folder: Path) -> list[Path]:
        """Write NAME.svg and NAME.png into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{self.name}.{suffix}" for suffix in ("svg", "png")]
        for file in files:
            with replacing(file) as held:
                held.write(self.bytes(file.suffix[1:]))
        return files


def _without_names(svg: str) -> str:
    """Without the ids that nothing refers to: some are there several times, which an id may not be."""
    referred = {*re.findall(r'href="#([^"]*)"', svg), *re.findall(r"url\(#([^)]*)\)", svg)}
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", svg)
