"""Numbers and names as captions, tables and axes write them. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_sumrl.metrics.catalogue import CATALOGUE

LONGEST = 26
"""Characters of a name in a legend or beside an axis."""


def title_of(metric: str) -> str:
    """As people call it."""
    known = CATALOGUE.get(metric)
    return known.title if known else metric.replace("_", " ")


def is_share(metric: str) -> bool:
    """Whether it is in [0, 1], and written in percent."""
    known = CATALOGUE.get(metric)
    return known is not None and known.low == 0 and known.high == 1


def unit_of(metric: str) -> str:
    """As an axis has it."""
    known = CATALOGUE.get(metric)
    if known is None:
        return f"in {metric.rpartition('/')[0] or metric}’s own unit"
    return {"length": "in the unit of lengths", "words": "words"}.get(known.unit, known.unit)


def number(value: float | None, metric: str = "", digits: int = 1) -> str:
    """Percent for what is a share, else as it is; three significant digits where it is small."""
    if value is None:
        return "–"
    if is_share(metric):
        return f"{100 * value:.{digits}f}".replace("-", "−")
    return plain(value)


def plain(value: float) -> str:
    """Three digits that count, without an exponent for everyday sizes."""
    size = abs(value)
    text = f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"
    return "0" if size == 0 else text.replace("-", "−")


def percent(value: float) -> str:
    """A share in words: "92 %"."""
    return f"{100 * value:.0f} %"


def short(name: str, longest: int = LONGEST) -> str:
    """Cut where it is too long for a legend."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
