"""A judge's reply -> a score, a preference, or nothing. Never imports mlx.

Invariant: only a reply that has the form asked for, from its first character to its last but for space around it,
gives a number. Nothing is searched for inside a reply, and nothing but the reply is read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlx_sumrl.config import Criterion
from mlx_sumrl.data.reasoning import CLOSE, OPEN
from mlx_sumrl.judging.criteria import CRITERIA, HIGHEST, LOWEST

Preference = Literal["A", "B", "tie"]
Tokens = Sequence[tuple[str | None, Sequence[tuple[str, float]]]]
"""For each token of a reply: the token, if known, and likely tokens with their log-probabilities, best first."""
_DIGIT = re.compile(rf"[{LOWEST}-{HIGHEST}]")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_SPACES = "\u0120\u2581\u010a \t\r\n"
"""Space as it is, and as tokenizers write it, of which some servers show the raw tokens."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One score."""

    value: float
    """From 1 to 5."""
    mass: float | None
    """Probability, in [0, 1], that the judge gave to the five digits together as far as it was told; None where the
    score is the digit as written."""


def digit_in(text: str, tokens: Tokens | None) -> Verdict | None:
    """The score in a reply that is a single digit.

    Where the alternatives to the digit's token are known, it is ``sum(d * p(d)) / sum(p(d))`` over the digits 1 to 5
    among them (G-Eval, equation 1, made to sum to one). After a thought it is the digit as written: what was thought
    has decided it.
    """
    answer, thought = _after_thought(text)
    if answer is None or _DIGIT.fullmatch(answer) is None:
        return None
    likely = None if thought or not tokens else _at_digit(answer, tokens)
    if likely is None:
        return Verdict(float(answer), None)
    probabilities = dict.fromkeys(range(LOWEST, HIGHEST + 1), 0.0)
    for token, logprob in likely:
        written = token.strip(_SPACES)
        if _DIGIT.fullmatch(written):
            probabilities[int(written)] += math.exp(min(logprob, 0.0))
    mass = sum(probabilities.values())
    if mass <= 0.0:
        return Verdict(float(answer), None)
    value = sum(digit * probability for digit, probability in probabilities.items()) / mass
    return Verdict(min(max(value, LOWEST), HIGHEST), min(mass, 1.0))


def scores_in(text: str) -> dict[Criterion, Verdict] | None:
    """The scores in a reply that is a JSON object of the four criteria and nothing else, or one in a code fence."""
    answer, _ = _after_thought(text)
    if answer is None:
        return None
    if fence := _FENCED.fullmatch(answer):
        answer = fence[1]
    try:
        pairs = json.loads(answer, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs) or sorted(name for name, _ in pairs) != sorted(CRITERIA):
        return None
    given = dict(pairs)
    if not all(type(value) is int and LOWEST <= value <= HIGHEST for value in given.values()):
        return None
    return {criterion: Verdict(float(given[criterion]), None) for criterion in CRITERIA}


def preference_in(text: str) -> Preference | None:
    """What a reply that is A, B or TIE prefers."""
    answer, _ = _after_thought(text)
    known: dict[str | None, Preference] = {"A": "A", "B": "B", "TIE": "tie"}
    return known.get(answer)


class _Pairs(list[tuple[str, Any]]):
    """An object as it was written, a name that is there twice included."""


def _after_thought(text: str) -> tuple[str | None, bool]:
    """What follows the thought, None where it never ends; and whether there was one."""
    thought, end, answer = text.rpartition(CLOSE)
    if not end and text.lstrip().startswith(OPEN):
        return None, True
    return answer.strip(), bool(thought.strip().removeprefix(OPEN).strip())


def _at_digit(digit: str, tokens: Tokens) -> Sequence[tuple[str, float]] | None:
    """What was likely at the token that wrote the digit; None where that cannot be told."""
    best = [likely for _, likely in tokens if likely and likely[0][0].strip(_SPACES) == digit]
    named = [likely for token, likely in tokens if likely and token and token.strip(_SPACES) == digit]
    # Some servers name another token than the one drawn, so the most likely one comes first.
    return best[-1] if best else named[-1] if named else None
