"""What became of the rows of a source: how many are used, which are not, and why.

Invariant: `used` plus the counts of `unusable` is `total`; no row is left out of the account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

SHOWN = 3
"""Row ids kept for each reason."""


@dataclass(frozen=True, slots=True)
class RowReport:
    """The account of one source."""

    source: str
    """The file or dataset."""
    total: int
    """Rows read."""
    used: int
    """Rows that became examples."""
    unusable: Mapping[str, int]
    """Reason -> rows."""
    first_ids: Mapping[str, tuple[str, ...]]
    """Reason -> the first rows it met, at most `SHOWN`."""
    truncated: int
    """Examples whose document lost its end."""
    tokens_cut: int
    """Tokens that all documents together lost."""
    shortest: int
    """Tokens of the shortest prompt, after truncation; 0 without examples."""
    median: float
    """Tokens of the prompt in the middle, after truncation."""
    longest: int
    """Tokens of the longest prompt, after truncation."""

    @property
    def unusable_share(self) -> float:
        """Share of the rows, 0 to 1, that did not become examples."""
        return (self.total - self.used) / self.total if self.total else 0.0

    def describe_unusable(self) -> str:
        """``2 x the line is not JSON (a.jsonl:3, a.jsonl:9), 1 x ...``, the commonest reason first."""
        return ", ".join(
            f"{count} x {reason} ({', '.join(self.first_ids[reason])}{', ...' if count > SHOWN else ''})"
            for reason, count in sorted(self.unusable.items(), key=lambda item: -item[1])
        )

    def describe(self) -> str:
        """The account as one paragraph for people."""
        text = f"{self.used} of {self.total} rows of {self.source} are used"
        if self.unusable:
            text += f"; not used: {self.describe_unusable()}"
        if self.used:
            text += (
                f". Prompts have {self.shortest} to {self.longest} tokens (median {self.median:g}); "
                f"{self.truncated} documents lost their end"
            )
            if self.truncated:
                text += f" ({self.tokens_cut} tokens)"
        return text + "."


@dataclass(slots=True)
class RowCounter:
    """Counts row after row; `report` gives the account."""

    source: str
    prompt_tokens: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    reasons: dict[str, list[str]] = field(default_factory=dict)

    def use(self, tokens: int, cut: int) -> None:
        """One example with `tokens` prompt tokens after losing `cut` of them."""
        self.prompt_tokens.append(tokens)
        self.cuts.append(cut)

    def refuse(self, row_id: str, reason: str) -> None:
        """One row that cannot be used."""
        self.reasons.setdefault(reason, []).append(row_id)

    def report(self) -> RowReport:
        """The account so far."""
        return RowReport(
            source=self.source,
            total=len(self.prompt_tokens) + sum(map(len, self.reasons.values())),
            used=len(self.prompt_tokens),
            unusable={reason: len(ids) for reason, ids in self.reasons.items()},
            first_ids={reason: tuple(ids[:SHOWN]) for reason, ids in self.reasons.items()},
            truncated=sum(cut > 0 for cut in self.cuts),
            tokens_cut=sum(self.cuts),
            shortest=min(self.prompt_tokens, default=0),
            median=median(self.prompt_tokens) if self.prompt_tokens else 0,
            longest=max(self.prompt_tokens, default=0),
        )
