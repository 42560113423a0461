"""What became of the records of a file of predictions and of their references. Never imports mlx.

Invariant: every record of either file is scored, or counted under a reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mlx_sumrl.errors import UserError

_SHOWN = 3
"""Ids that are named for each reason."""


@dataclass(slots=True)
class Account:
    """What became of the records of both files."""

    predictions: int = 0
    """Records of the file."""
    references: int = 0
    unused_predictions: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> ids of records that are not scored."""
    unused_references: dict[str, list[str]] = field(default_factory=dict)
    wrong_kind: Counter[str] = field(default_factory=Counter)
    """Field -> valid answers whose value is not of the kind that the references' are: scored as if it were missing."""
    columns_left_out: list[str] = field(default_factory=list)
    """Columns of the predictions that are no field of the references."""

    def describe(self) -> str:
        """For people."""
        said = []
        for name, total, unused in (
            ("predictions", self.predictions, self.unused_predictions),
            ("references", self.references, self.unused_references),
        ):
            left = sum(map(len, unused.values()))
            text = f"{total - left} of {total} {name} are used"
            said.append(f"{text}; not used: {reasons(unused)}" if unused else text)
        for name, count in self.wrong_kind.items():
            said.append(f"{count} answers have something in {name} that is not what references have: missing")
        if self.columns_left_out:
            said.append(f"columns that references do not have: {', '.join(self.columns_left_out)}")
        return ". ".join(said) + "."

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "predictions": self.predictions,
            "references": self.references,
            "unused_predictions": self.unused_predictions,
            "unused_references": self.unused_references,
            "wrong_kind": dict(self.wrong_kind),
            "columns_left_out": self.columns_left_out,
        }

    def check(self, share: float) -> None:
        """Raises `UserError` where more than this share of either file's records is not scored."""
        for option, total, unused in (
            ("predictions", self.predictions, self.unused_predictions),
            ("references", self.references, self.unused_references),
        ):
            left = sum(map(len, unused.values()))
            if left > share * total:
                raise UserError(
                    f"{left} of {total} {option} cannot be used ({reasons(unused)}), and max_unmatched_share allows "
                    f"{share:.1%}: mend them, or raise --max_unmatched_share"
                )


def refuse(unused: dict[str, list[str]], reason: str, row: str) -> None:
    """Count a record that is not scored."""
    unused.setdefault(reason, []).append(row)


def reasons(unused: dict[str, list[str]]) -> str:
    """``3 x no such reference (a, b, c), ...``."""
    return ", ".join(
        f"{len(ids)} x {reason} ({', '.join(ids[:_SHOWN])}{', ...' if len(ids) > _SHOWN else ''})"
        for reason, ids in unused.items()
    )
