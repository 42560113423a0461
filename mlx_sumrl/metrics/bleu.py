"""BLEU of one text (Papineni et al. 2002), by sacrebleu. Never imports mlx.

BLEU was made for a corpus; of one sentence it has no 4-gram in common more often than not, and its value is then all
smoothing. sacrebleu's own is taken: `BLEU_SMOOTHING`, and n-grams longer than the text left out (effective order).
"""

from __future__ import annotations

from functools import cache

import regex
from sacrebleu.metrics import BLEU

BLEU_SMOOTHING = "exp"
"""The precision of the k-th order without a match counts as 1 / (2^k · number of its n-grams): NIST's, "smoothing 3" of
Chen and Cherry 2014, and sacrebleu's default."""
_HAN = regex.compile(r"\p{Han}")
_UNSPACED = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_LETTER = regex.compile(r"\p{L}")


def bleu_tokenizer(reference: str) -> str:
    """sacrebleu's name of the tokenizer that a reference asks for.

    ``13a`` (mteval's) for text with spaces between words. Where more than half of the letters are of a script without:
    ``zh`` (Han by character, the rest as 13a) for Chinese, ``char`` for Japanese, Thai, Lao, Khmer and Burmese.
    """
    letters, han, others = (len(kind.findall(reference)) for kind in (_LETTER, _HAN, _UNSPACED))
    if 2 * (han + others) <= letters:
        return "13a"
    return "char" if others else "zh"


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU of a text against its reference, in [0, 1]: sacrebleu's score over 100, case kept.

    Up to 4-grams, brevity penalty, `BLEU_SMOOTHING`, `bleu_tokenizer`. 0 for an empty text.
    """
    return float(_metric(bleu_tokenizer(reference)).sentence_score(text, [reference]).score) / 100


@cache
def _metric(tokenizer: str) -> BLEU:
    return BLEU(effective_order=True, smooth_method=BLEU_SMOOTHING, tokenize=tokenizer)
