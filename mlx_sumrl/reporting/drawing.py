"""How figures are drawn, whoever draws them: by matplotlib's defaults and a style of ours. Never imports mlx."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

BASE = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read out, takes a page's colours, and is small
    "svg.hashsalt": "mlx_sumrl",  # the same figure is the same file
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "legend.frameon": False,
}


@contextmanager
def drawn_in(style: Mapping[str, Any]) -> Iterator[None]:
    """matplotlib's defaults, `BASE` and ``style``, whatever the user has set, who gets it back. It says nothing
    meanwhile: the first time on a machine it would tell of its font cache in the middle of a run."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(BASE | dict(style))
            yield
    finally:
        logger.setLevel(level)
