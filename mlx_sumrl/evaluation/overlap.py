"""ROUGE-1, -2 and -L of a summary against its reference, F1 and recall.

Recall is reported beside F1 because a length that is asked for may be far from that of the references: a
64-token summary of something a person put in 32 loses precision by its length alone, and recall does not.
"""

from __future__ import annotations

from functools import cache

from rouge_score.rouge_scorer import RougeScorer

from mlx_sumrl.rewards.overlap import rouge_scorer

_KINDS = ("rouge1", "rouge2", "rougeL")
ROUGE_NAMES = (*_KINDS, *(f"{kind}_recall" for kind in _KINDS))
"""Keys of `rouge`: F1 under the bare name, recall with a suffix."""


@cache
def _scorer() -> RougeScorer:
    return rouge_scorer(*_KINDS)


def rouge(text: str, reference: str) -> dict[str, float]:
    """ROUGE F1 and recall (Lin 2004) with Porter stemming, keys `ROUGE_NAMES`, values in [0, 1].

    Latin words as rouge-score splits them, Chinese, Japanese, Korean and Thai by character; see
    `mlx_sumrl.rewards.overlap.RougeTokenizer`. ROUGE-L takes each text as one sequence, without splitting it
    into sentences.
    """
    scores = _scorer().score(reference, text)
    return {kind: float(scores[kind].fmeasure) for kind in _KINDS} | {
        f"{kind}_recall": float(scores[kind].recall) for kind in _KINDS
    }
