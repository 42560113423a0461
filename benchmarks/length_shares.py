"""What of a policy's answers is within a tolerance of a target, with intervals. Never imports mlx."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, Self

from statsmodels.stats.multitest import multipletests

from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.statistics.shares import mcnemar_test, paired_share_interval, share_interval


@dataclass(frozen=True, slots=True)
class Answer:
    """One summary."""

    id: str
    length: int
    """In tokens, without the stop token."""
    stopped: bool
    """By itself, not by the limit."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far from the target still counts: tokens, or a share of the target."""

    amount: float
    percent: bool = False

    @classmethod
    def read(cls, text: str) -> Self:
        """``5`` or ``8%``, as an option's type."""
        try:
            found = cls(float(text.removesuffix("%")), text.endswith("%"))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no tolerance: give tokens (5) or percent (8%)"
            ) from None
        if not found.percent and not found.amount.is_integer():
            raise argparse.ArgumentTypeError(f"{text} is no whole number of tokens")
        if not 0 <= found.amount < 1e6 or (found.percent and found.amount >= 100):
            raise argparse.ArgumentTypeError(f"{text} is no tolerance: an empty summary would be within")
        return found

    def tokens(self, target: int) -> int:
        """Of a target, rounded down: what is further off than the share is not within."""
        return int(self.amount * target // 100) if self.percent else int(self.amount)

    def said(self, target: int) -> str:
        """``5``, or ``8 % = 5``."""
        return f"{self.amount:g} % = {self.tokens(target)}" if self.percent else f"{self.amount:g}"


def pass_rates(
    answers: Mapping[str, Mapping[int, Sequence[Answer]]], tolerances: Sequence[Tolerance], confidence: float
) -> list[dict[str, Any]]:
    """For each target and tolerance each policy's share within, as plain values; of two policies also the second's
    share minus the first's, over the same rows, with McNemar's p corrected (Holm) for all that are in the report.

    ``answers``: policy -> target -> one answer per row. The share with tolerance 0 is `exact`.

    Raises:
        UserError: the policies did not answer the same rows.
    """
    names = list(answers)
    targets = list(answers[names[0]])
    found: list[dict[str, Any]] = []
    differences = []
    for target in targets:
        listed = {name: answers[name][target] for name in names}
        if len({tuple(one.id for one in rows) for rows in listed.values()}) > 1:
            raise UserError(
                f"the models were not asked the same rows for {target} tokens: give both the same room"
            )
        entry: dict[str, Any] = {"target": target, "lengths": {}, "tolerances": []}
        for name, rows in listed.items():
            lengths = [one.length for one in rows]
            unfinished = fmean(not one.stopped for one in rows)
            entry["lengths"][name] = {
                "mean": fmean(lengths),
                "spread": pstdev(lengths),
                "unfinished": unfinished,
            }
        for tolerance in tolerances:
            most = tolerance.tokens(target)
            passed = {
                name: [float(is_within(one, target, most)) for one in rows] for name, rows in listed.items()
            }
            line: dict[str, Any] = {
                "tolerance": most,
                "said": tolerance.said(target),
                "within": {name: _share(values, confidence) for name, values in passed.items()},
            }
            if len(names) == 2:
                before, after = (passed[name] for name in names)
                low, high = paired_share_interval(before, after, confidence)
                test = mcnemar_test(before, after)
                share = fmean(after) - fmean(before)
                line["difference"] = {"share": share, "low": low, "high": high, "p": test.p}
                differences.append(line["difference"])
            entry["tolerances"].append(line)
        found.append(entry)
    if differences:
        corrected = multipletests([one["p"] for one in differences], method="holm")[1]
        for one, p in zip(differences, corrected, strict=True):
            one["p_holm"] = float(p)
    return found


def is_within(answer: Answer, target: int, tolerance: int) -> bool:
    """It stopped by itself, at most so many tokens from the target."""
    return answer.stopped and abs(answer.length - target) <= tolerance


def _share(values: Sequence[float], confidence: float) -> dict[str, float]:
    low, high = share_interval(int(sum(values)), len(values), confidence)
    return {"share": fmean(values), "low": low, "high": high}
