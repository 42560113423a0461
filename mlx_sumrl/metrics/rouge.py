"""ROUGE-1, -2, -L and -Lsum of a text against its reference (Lin 2004, "ROUGE: A Package for Automatic Evaluation of
Summaries"), F1 and recall, by rouge-score with Porter stemming.

Recall is reported beside F1 because a length that is asked for may be far from that of the references: a
64-token summary of something a person put in 32 loses precision by its length alone, and recall does not.

rouge-score's own tokenizer keeps ``[a-z0-9]+`` and drops everything else, so a Chinese or Russian summary has
no tokens and always scores 0. `RougeTokenizer` adds the other scripts and changes nothing about Latin text:
whatever the text, its Latin tokens are exactly those of rouge-score (for which an accented letter separates
words), so scores of English text are comparable with published ones.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from mlx_sumrl.metrics.sentences import sentences
from mlx_sumrl.metrics.unspaced import MARKS, UNSPACED, UNSPACED_CHARACTER

_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ROUGE_NAMES = (*_KINDS, *(f"{kind}_recall" for kind in _KINDS))
"""Keys of `rouge`: F1 under the bare name, recall with a suffix."""

# Latin letters beyond a-z, and numeric symbols such as superscripts: separators for rouge-score, and so here.
_LATIN_OR_SYMBOL = (
    "\u0080-\u02ff\u1d00-\u1dbf\u1e00-\u1eff\u2000-\u2c7f\ua720-\ua7ff\uab30-\uab6f\ufb00-\ufb06"
)
_OTHER_LETTER = rf"[^\W_\x00-\x7f{_LATIN_OR_SYMBOL}{UNSPACED}]"
_TOKEN_RE = re.compile(rf"[a-z0-9]+|{UNSPACED_CHARACTER}|{_OTHER_LETTER}(?:{_OTHER_LETTER}|[{MARKS}])*")

_STEMMER = PorterStemmer()


@lru_cache(maxsize=2**16)
def _stem(word: str) -> str:
    # A group repeats the words of its reference and of its neighbours: stemming is the costly part of ROUGE.
    return str(_STEMMER.stem(word))


class RougeTokenizer:
    """rouge-score's default tokenizer with stemming, and beyond it: other alphabets by word, CJK by
    character.

    Text is lower-cased. Latin words of more than three characters are stemmed (Porter), as rouge-score does.
    """

    def tokenize(self, text: str) -> list[str]:
        """Tokens of ``text`` in order; an empty list where it has no letter and no digit."""
        tokens: list[str] = _TOKEN_RE.findall(text.lower())
        return [_stem(token) if len(token) > 3 and token.isascii() else token for token in tokens]


def rouge_scorer(*kinds: str) -> RougeScorer:
    """A rouge-score scorer (``rouge1``, ``rouge2``, ``rougeL``; ``rougeLsum`` of lines), stemming, `RougeTokenizer`."""
    return RougeScorer(list(kinds), tokenizer=RougeTokenizer())


@cache
def _scorer() -> RougeScorer:
    return rouge_scorer(*_KINDS[:3])


@cache
def _summary_scorer() -> RougeScorer:
    return rouge_scorer("rougeLsum")


def rouge(text: str, reference: str) -> dict[str, float]:
    """ROUGE F1 and recall (Lin 2004) with Porter stemming, keys `ROUGE_NAMES`, values in [0, 1].

    Latin words as rouge-score splits them, Chinese, Japanese, Korean and Thai by character; see
    `RougeTokenizer`. ROUGE-L takes each text as one sequence; ROUGE-Lsum sentence by sentence (`sentences`): for each
    sentence of the reference the union of what it has in common with each of the text's.
    """
    scores = _scorer().score(reference, text)
    scores |= _summary_scorer().score(*("\n".join(sentences(one)) for one in (reference, text)))
    return {kind: float(scores[kind].fmeasure) for kind in _KINDS} | {
        f"{kind}_recall": float(scores[kind].recall) for kind in _KINDS
    }
