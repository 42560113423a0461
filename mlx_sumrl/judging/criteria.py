"""What a summary is judged by. Never imports mlx.

After G-Eval (Liu et al. 2023, arXiv:2303.16634): each criterion has a definition and evaluation steps, and is scored
from 1 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from mlx_sumrl.config import Criterion

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
LOWEST, HIGHEST = 1, 5


@dataclass(frozen=True, slots=True)
class Rubric:
    """A criterion as the judge reads it."""

    definition: str
    steps: tuple[str, ...]


RUBRICS: dict[Criterion, Rubric] = {
    "faithfulness": Rubric(
        "Everything that the summary says is said in the text or follows from it. Nothing is made up, and names, "
        "numbers and who did what are right. What the summary leaves out does not count here.",
        (
            "Take the summary's statements one by one.",
            "Find for each the place in the text that supports it.",
            "Count statements that the text contradicts or does not support, and weigh how much they mislead.",
            "5: all are supported. 3: one minor error. 1: it is mostly unsupported, or says nothing.",
        ),
    ),
    "coverage": Rubric(
        "The summary tells what matters most in the text. Details that a reader could do without may be missing.",
        (
            "List the main points of the text.",
            "Check which of them the summary tells, correctly.",
            "Weigh each missing point by how much a reader would need it.",
            "5: all main points are there. 3: about half of them. 1: none.",
        ),
    ),
    "conciseness": Rubric(
        "The summary spends no words on repetition, side issues, filler or remarks about itself. Being short is no "
        "merit by itself where nothing is left out of it that could have been said in fewer words.",
        (
            "Look for statements that are repeated, in the same or in other words.",
            "Look for details and filler that could go without loss of a main point.",
            "Judge which share of the words could be saved.",
            "5: none. 3: about a third. 1: nearly all.",
        ),
    ),
    "clarity": Rubric(
        "The summary is well written: grammatical, whole sentences in a sensible order, understandable without the "
        "text.",
        (
            "Read the summary by itself.",
            "Look for broken grammar, sentences that are cut off, and words or names that cannot be understood.",
            "Check that each sentence follows from the one before it.",
            "5: it reads easily throughout. 3: it can be understood with effort. 1: it cannot be understood.",
        ),
    ),
}


def unit(value: float) -> float:
    """A score from 1 to 5 as one from 0 to 1."""
    return (value - LOWEST) / (HIGHEST - LOWEST)
