"""Which of two summaries is better, asked in both orders. Never imports mlx.

Judges favour a place (Zheng et al. 2023, arXiv:2306.05685, 3.3): a summary wins only when it is preferred wherever it
stands; everything else is a tie. How often the place decided is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_sumrl.config import JudgingConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.judge import Found
from mlx_sumrl.judging.questions import Inquiry
from mlx_sumrl.judging.replies import Preference
from mlx_sumrl.judging.rows import Judged, JudgedText

Outcome = Literal["win", "tie", "loss"]


def pairs_of(ours: Judged, theirs: Judged) -> list[tuple[JudgedText, JudgedText]]:
    """The rows of both.

    Raises `UserError` when they are not of the same documents in the same order.
    """
    if len(ours.texts) != len(theirs.texts):
        raise UserError(
            f"{ours.path} has {len(ours.texts)} rows and {theirs.path} has {len(theirs.texts)}: they are compared row "
            "by row, so evaluate both on the same rows"
        )
    for one, other in zip(ours.texts, theirs.texts, strict=True):
        same = one.document == other.document or not (one.document and other.document)
        if one.id != other.id or not same:
            raise UserError(
                f"row {one.id!r} of {ours.path} stands beside row {other.id!r} of {theirs.path}, which is another "
                "document: evaluate both on the same rows"
            )
    return list(zip(ours.texts, theirs.texts, strict=True))


def pair_inquiries(
    ours: JudgedText, theirs: JudgedText, config: JudgingConfig
) -> list[tuple[Inquiry, Inquiry]]:
    """For each round: ours shown first, and theirs shown first."""
    if ours.unusable or theirs.unusable:
        return []
    return [
        (
            Inquiry(ours.id, "pair", ours.document, (ours.summary, theirs.summary), number),
            Inquiry(ours.id, "pair", ours.document, (theirs.summary, ours.summary), number),
        )
        for number in range(config.rounds)
    ]


@dataclass(slots=True)
class PairedRow:
    """What the judge prefers."""

    id: str
    replies: list[tuple[Preference, Preference]] = field(default_factory=list)
    """For each round what was preferred, A being shown first: ours is A in the first, B in the second."""
    unscored: Counter[str] = field(default_factory=Counter)
    """Reason -> questions that gave no preference."""

    @property
    def outcomes(self) -> list[Outcome]:
        """For each round, whether ours won."""
        return [_outcome(*one) for one in self.replies]

    @property
    def outcome(self) -> Outcome | None:
        """The one that more rounds have than its opposite; None where no round gave one."""
        if not self.replies:
            return None
        balance = self.outcomes.count("win") - self.outcomes.count("loss")
        return "win" if balance > 0 else "loss" if balance < 0 else "tie"


def _outcome(ours_first: Preference, theirs_first: Preference) -> Outcome:
    if (ours_first, theirs_first) == ("A", "B"):
        return "win"
    return "loss" if (ours_first, theirs_first) == ("B", "A") else "tie"


def paired_row(ours: JudgedText, theirs: JudgedText, found: Found, config: JudgingConfig) -> PairedRow:
    """The row of one pair."""
    row = PairedRow(ours.id)
    if unusable := ours.unusable or theirs.unusable:
        row.unscored[unusable] += 1
    for both in pair_inquiries(ours, theirs, config):
        first, second = (found.readings.get(one) for one in both)
        if isinstance(first, str) and isinstance(second, str):
            row.replies.append((first, second))
        for one in both:
            if one in found.unscored:
                row.unscored[found.unscored[one]] += 1
    return row


def pairwise_summary(rows: Sequence[PairedRow]) -> dict[str, Any]:
    """Counts over the rows, and what the place had to do with it.

    ``win``, ``tie``, ``loss``; ``win_rate`` (a tie is half a win); ``p_value`` of the exact sign test on wins against
    losses, None without any; ``first_preferred``: share of preferences, ties left out, that went to the summary shown
    first, 0.5 for a judge that does not mind; ``order_decided``: share of pairs of replies that preferred the same
    place in both orders.
    """
    from scipy.stats import binomtest  # takes a second to import

    outcomes = Counter(row.outcome for row in rows if row.outcome is not None)
    total, decided = outcomes.total(), outcomes["win"] + outcomes["loss"]
    replies = [one for row in rows for one in row.replies]
    preferred = [one for both in replies for one in both if one != "tie"]
    same_place = [both for both in replies if both[0] == both[1] != "tie"]
    return {
        "rows": len(rows),
        "scored": total,
        **{name: outcomes[name] for name in ("win", "tie", "loss")},
        "win_rate": (outcomes["win"] + outcomes["tie"] / 2) / total if total else None,
        "p_value": float(binomtest(outcomes["win"], decided).pvalue) if decided else None,
        "first_preferred": preferred.count("A") / len(preferred) if preferred else None,
        "order_decided": len(same_place) / len(replies) if replies else None,
        "unscored": dict(sum((row.unscored for row in rows), Counter())),
    }
