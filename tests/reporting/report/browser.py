"""The machine's own Chromium, without a window; and how well text stands off its background in it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HIDE = "svg text { visibility: hidden !important }"

# Each element with text of its own that can be seen, its colour, and the first opaque colour below it.
TEXTS = """() => {
  const found = [];
  for (const one of document.querySelectorAll('body *')) {
    if (one.closest('svg') || !one.checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})) continue;
    const own = [...one.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join(' ').trim();
    if (!own) continue;
    let below = one;
    while (below && getComputedStyle(below).backgroundColor.match(/rgba\\(.*, 0\\)/)) below = below.parentElement;
    const ground = getComputedStyle(below || document.body).backgroundColor;
    found.push([own.slice(0, 60), getComputedStyle(one).color, ground]);
  }
  return found;
}"""

# Each text of each figure, its colour, and where it is on the page.
LABELS = """() => [...document.querySelectorAll('figure svg text')].map(text => {
  const box = text.getBoundingClientRect(), frame = text.closest('svg').getBoundingClientRect();
  return {
    text: text.textContent, colour: getComputedStyle(text).fill, figure: text.closest('figure').id,
    left: box.left + scrollX, top: box.top + scrollY, right: box.right + scrollX, bottom: box.bottom + scrollY,
    outside: Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom),
    size: parseFloat(getComputedStyle(text).fontSize) * frame.width / text.closest('svg').viewBox.baseVal.width,
  };
})"""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where the machine has none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def rgb(colour: str) -> np.ndarray:
    """[3] in 0 to 255, of what getComputedStyle says."""
    return np.array([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]])


def contrast(one: np.ndarray, two: np.ndarray) -> float:
    """WCAG 2's contrast of two colours [3] in 0 to 255, from 1 to 21."""
    parts = np.stack([one, two]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    dark, light = np.sort(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return float((light + 0.05) / (dark + 0.05))


def label_contrasts(page: Any) -> list[tuple[str, float]]:
    """Each label in a figure with its contrast to what is really painted below it: the page without its labels is
    photographed, and the middle colour of the label's box is taken."""
    from PIL import Image

    labels = page.evaluate(LABELS)
    style = page.add_style_tag(content=HIDE)
    painted = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"), np.float64)
    style.evaluate("element => element.remove()")
    found = []
    for label in labels:
        left, top = int(label["left"]), int(label["top"])
        box = painted[top : int(label["bottom"]) + 1, left : int(label["right"]) + 1].reshape(-1, 3)
        if len(box):  # those scrolled out of their figure are looked at in a wider window
            found.append(
                (
                    f"{label['figure']}: {label['text']}",
                    contrast(rgb(label["colour"]), np.median(box, axis=0)),
                )
            )
    return found
