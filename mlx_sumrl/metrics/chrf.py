"""chrF of one text (Popović 2015), by sacrebleu. Never imports mlx."""

from __future__ import annotations

from functools import cache

from sacrebleu.metrics import CHRF


def chrf(text: str, reference: str) -> float:
    """chrF2 of a text against its reference, in [0, 1]: sacrebleu's sentence score over 100.

    F-score of character n-grams up to 6 without white space, recall weighing twice (beta 2), no words. Needs no
    tokenizer, so it is the same for every language.
    """
    return float(_metric().sentence_score(text, [reference]).score) / 100


@cache
def _metric() -> CHRF:
    return CHRF()
