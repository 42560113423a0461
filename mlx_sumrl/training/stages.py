"""The curricula that the recipes bring along, as plain option values.

Staged: the length alone until most completions have it, then quality, paid only where the length is kept. Joint:
both from the first step. Either way the second half of the job never undoes the first: outside the band quality is
worth nothing, and the length reward still says which way is back.
"""

from __future__ import annotations

from typing import Any

STAGED: list[dict[str, Any]] = [
    {
        "name": "length",
        "steps": 150,
        "rewards": [{"kind": "length"}, {"kind": "rougeL", "weight": 0.0}],
        "until": {"metric": "length/within", "at_least": 0.9, "steps": 5},
    },
    {
        "name": "quality",
        "steps": 150,
        "rewards": [
            {"kind": "length"},
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
            {"kind": "within", "weight": 0.0},
            {"kind": "rougeL", "weight": 2.0, "gate": {"reward": "within"}},
        ],
    },
]
"""Length and quality together for as many steps as both stages have."""
