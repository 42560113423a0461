"""The curricula that the recipes bring along, as plain option values.

Staged: the length until most completions have it, then quality, paid only where the length is kept. Joint: both
from the first step. Either way the second half of the job never undoes the first: outside the band quality is worth
nothing, and the length reward still says which way is back.

Repetition is paid for in every stage. Without it both rewards are won by text that no one wants: the length by
dots and loops, and then ROUGE, which sees no punctuation, by the words most often matched (seen on DialogSum: ROUGE-L
rose to 1.15 times the length-matched baseline's while METEOR fell to 0.79 of it).
"""

from __future__ import annotations

from typing import Any

STAGED: list[dict[str, Any]] = [
    {
        "name": "length",
        "steps": 150,
        "rewards": [{"kind": "length"}, {"kind": "repetition"}, {"kind": "rougeL", "weight": 0.0}],
        "until": {"metric": "length/within", "at_least": 0.9, "steps": 5},
    },
    {
        "name": "quality",
        "steps": 150,
        "reference": "fresh",
        "rewards": [
            {"kind": "length"},
            {"kind": "repetition"},
            {"kind": "within", "weight": 0.0},
            {"kind": "rougeL", "weight": 2.0, "gate": {"reward": "within"}},
        ],
    },
]
"""Length first, then quality behind a gate."""

JOINT: list[dict[str, Any]] = [
    {
        "name": "joint",
        "steps": 300,
        "rewards": [
            {"kind": "length"},
            {"kind": "repetition"},
            {"kind": "within", "weight": 0.0},
            {"kind": "rougeL", "weight": 2.0, "gate": {"reward": "within"}},
        ],
    },
]
"""Length and quality together for as many steps as both stages have."""
