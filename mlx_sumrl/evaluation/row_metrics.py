"""One text beside its references and its document -> every number of it that needs nothing else. Never imports mlx."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import SENTENCE_WORDS
from mlx_sumrl.data.languages import keeps_language
from mlx_sumrl.metrics.bleu import bleu
from mlx_sumrl.metrics.chrf import chrf
from mlx_sumrl.metrics.distinct import distinct
from mlx_sumrl.metrics.entities import entity_coverage
from mlx_sumrl.metrics.extractiveness import compression, coverage, density, novelty
from mlx_sumrl.metrics.meteor import meteor
from mlx_sumrl.metrics.rouge import ROUGE_NAMES, rouge
from mlx_sumrl.metrics.sentences import ends_sentence, is_whole

Metrics = dict[str, float | None]
Combine = Literal["best", "mean"]
"""What becomes of a metric where a row has several references."""

BERTSCORE_NAMES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
REFERENCE_METRICS = (*ROUGE_NAMES, "meteor", "bleu", "chrf", "entity_coverage")
"""Those that look at a reference: with several, each is computed against each, and combined by itself. BERTScore is one
of them, too."""
DOCUMENT_METRICS = (
    *("compression", "coverage", "density", "novelty_1", "novelty_2", "novelty_3"),
    *("distinct_1", "distinct_2", "language_kept", "ends_sentence", "whole_sentences"),
)
"""Those that look at the text, or at the text and its document."""


class PairScorer(Protocol):
    """As `mlx_sumrl.metrics.bertscore.BertScorer`."""

    def score(self, texts: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """Precision, recall and F1 of N pairs [N, 3]."""
        ...


@dataclass(frozen=True, slots=True)
class Scoring:
    """How rows are scored."""

    references: Combine = "best"
    """Of several references of a row. ``best``: the highest of each metric. ``mean``: its mean."""
    bertscore: PairScorer | None = None
    """Gives `BERTSCORE_NAMES`, which are left out without it."""


def combined(values: Iterable[float | None], how: Combine) -> float | None:
    """One value of a metric from those against each reference; None where none of them has one."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return max(known) if how == "best" else fmean(known)


def reference_metrics(text: str, references: Sequence[str], how: Combine, *, wordnet: bool) -> Metrics:
    """`REFERENCE_METRICS` of a text against one or more references; ``meteor`` is None without WordNet."""

    def one(reference: str) -> Metrics:
        return {
            **rouge(text, reference),
            "meteor": meteor(text, reference) if wordnet else None,
            "bleu": bleu(text, reference),
            "chrf": chrf(text, reference),
            "entity_coverage": entity_coverage(text, reference),
        }

    each = [one(reference) for reference in references]
    return {name: combined((found[name] for found in each), how) for name in REFERENCE_METRICS}


def document_metrics(text: str, document: str) -> Metrics:
    """`DOCUMENT_METRICS` of a text; what an empty one cannot have is None."""
    return {
        "compression": compression(text, document),
        "coverage": coverage(text, document),
        "density": density(text, document),
        **{f"novelty_{n}": novelty(text, document, n) for n in (1, 2, 3)},
        **{f"distinct_{n}": distinct([text], n) for n in (1, 2)},
        "language_kept": float(keeps_language(text, document)),
        "ends_sentence": float(ends_sentence(text)),
        "whole_sentences": float(is_whole(text, SENTENCE_WORDS)),
    }


def bertscores(texts: Sequence[str], references: Sequence[Sequence[str]], scoring: Scoring) -> list[Metrics]:
    """`BERTSCORE_NAMES` of N texts, each against its own references; empty without a scorer."""
    if scoring.bertscore is None:
        return [{} for _ in texts]
    pairs = [(text, one) for text, own in zip(texts, references, strict=True) for one in own]
    scores = iter(scoring.bertscore.score([text for text, _ in pairs], [one for _, one in pairs]).tolist())
    rows = []
    for own in references:
        against = [next(scores) for _ in own]
        rows.append(
            {
                name: combined((one[at] for one in against), scoring.references)
                for at, name in enumerate(BERTSCORE_NAMES)
            }
        )
    return rows
