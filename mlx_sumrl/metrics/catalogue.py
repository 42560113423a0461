"""What each metric is called, says and ranges over: one entry for every number of an evaluation's rows and summary.
Never imports mlx.

Tables, comparisons and reports take titles, units and directions from here, and from nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "target"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a completion."""

    name: str
    """Its key in ``metrics`` of a row, and in ``summary``, where it is the mean over the rows.

    ``length`` and ``unfinished`` of a row are its ``length`` and its ``finish_reason``, and the mean length is
    ``length_mean``. ``distinct_*_all``, ``mae``, ``r2`` and those of fields are numbers of all rows together.
    """
    title: str
    """For people: a column, an axis."""
    unit: str
    """``share`` (of all, drawn as percent), ``score`` (no unit), ``length`` (in the evaluation's own unit), ``words``,
    or ``ratio``."""
    better: Better | None
    """``target``: the closer to what was asked for, the better. None: neither way by itself."""
    low: float | None
    high: float | None
    """What it can be at least and at most; None where there is no bound."""
    says: str
    """What it says, in one line."""


def _shares(better: Better | None, **entries: tuple[str, str]) -> list[Metric]:
    return [Metric(name, title, "share", better, 0.0, 1.0, says) for name, (title, says) in entries.items()]


def _scores(better: Better | None, **entries: tuple[str, str]) -> list[Metric]:
    return [Metric(name, title, "score", better, 0.0, 1.0, says) for name, (title, says) in entries.items()]


_LENGTH = [
    *_shares(
        "higher",
        within=("Within", "stopped by itself at the length asked for, give or take the tolerance"),
        exact=("Exact", "stopped by itself at exactly the length asked for"),
    ),
    Metric("length", "Length", "length", "target", 0.0, None, "how long it is"),
    Metric(
        "length_error",
        "Length error",
        "length",
        "target",
        None,
        None,
        "length minus target: below 0 is too short",
    ),
    *_shares("lower", unfinished=("Unfinished", "cut at the token limit")),
]

_OVERLAP = [
    *_scores(
        "higher",
        rouge1=("ROUGE-1", "words in common with the reference, F1"),
        rouge2=("ROUGE-2", "pairs of words in common with the reference, F1"),
        rougeL=("ROUGE-L", "longest common subsequence with the reference, F1"),
        rougeLsum=("ROUGE-Lsum", "longest common subsequences with the reference, sentence by sentence, F1"),
        rouge1_recall=("ROUGE-1 recall", "share of the reference's words that are in the summary"),
        rouge2_recall=("ROUGE-2 recall", "share of the reference's pairs of words that are in the summary"),
        rougeL_recall=("ROUGE-L recall", "share of the reference that is in the summary in the same order"),
        rougeLsum_recall=("ROUGE-Lsum recall", "the same, sentence by sentence"),
        meteor=(
            "METEOR",
            "words in common with the reference, stems and synonyms too, recall before precision",
        ),
        bleu=("BLEU", "runs of up to four words in common with the reference (sentence BLEU, smoothed)"),
        chrf=("chrF", "runs of up to six characters in common with the reference, recall before precision"),
    ),
    *(
        Metric(f"bertscore_{part}", f"BERTScore {title}", "score", "higher", -1.0, 1.0, says)
        for part, title, says in (
            ("precision", "precision", "how near the summary's tokens are to some token of the reference"),
            ("recall", "recall", "how near the reference's tokens are to some token of the summary"),
            ("f1", "F1", "nearness of summary and reference, token by token, in an encoder's vectors"),
        )
    ),
]

_EXTRACTION = [
    Metric(
        "compression",
        "Compression",
        "ratio",
        None,
        0.0,
        None,
        "words of the document per word of the summary",
    ),
    *_shares(
        None,
        coverage=("Coverage", "share of the summary's words that are in fragments copied from the document"),
        novelty_1=("Novel words", "share of the summary's words that the document does not have"),
        novelty_2=("Novel 2-grams", "share of the summary's pairs of words that the document does not have"),
        novelty_3=(
            "Novel 3-grams",
            "share of the summary's runs of three words that the document does not have",
        ),
    ),
    Metric(
        "density", "Density", "words", None, 0.0, None, "mean length of the copied fragment that a word is in"
    ),
]

_LANGUAGE = [
    *_shares(
        "lower", repetition=("Repetition", "share of the summary's 4-grams of tokens that stood in it before")
    ),
    *_shares(
        "higher",
        distinct_1=("Distinct words", "different words over all words"),
        distinct_2=("Distinct 2-grams", "different pairs of words over all pairs"),
        distinct_1_all=("Distinct words, all", "different words over all words of all summaries together"),
        distinct_2_all=("Distinct 2-grams, all", "the same of pairs: low where all summaries are alike"),
        entity_coverage=(
            "Entities",
            "share of the reference's names and numbers that are in the summary (heuristic)",
        ),
        language_kept=("Language kept", "written in the language of the document"),
        ends_sentence=("Ends a sentence", "the text ends where a sentence does"),
        whole_sentences=("Whole sentences", "no sentence is cut off, a fragment, or of a few words"),
    ),
    Metric(
        "perplexity",
        "Perplexity",
        "ratio",
        "lower",
        1.0,
        None,
        "per token, under a model that was not trained on rewards: high where the text is noise",
    ),
]

_JUDGE = [
    *_scores(
        "higher",
        judge_faithfulness=("Faithfulness", "a judge: says nothing that the document does not"),
        judge_coverage=("Judged coverage", "a judge: has the main points of the document"),
        judge_conciseness=("Conciseness", "a judge: wastes no words"),
        judge_clarity=("Clarity", "a judge: reads well"),
    ),
    Metric(
        "judge_composite", "Judge, composite", "score", "higher", 0.0, 4.0, "sum of a judge's four scores"
    ),
    *_shares("higher", judge_all=("All above 0.5", "all four of a judge's scores are above 0.5")),
]

_STRUCTURED = [
    *_shares(
        "higher",
        valid=("Valid JSON", "is JSON that meets the schema"),
        repaired=("Repaired", "is JSON that meets the schema once mended"),
        exact_match=("Exact match", "every field is exactly the reference's"),
    ),
    *_scores(
        "higher",
        precision=("Precision", "share of the items said that the reference has"),
        recall=("Recall", "share of the reference's items that are said"),
        f1=("F1", "items in common with the reference: harmonic mean of precision and recall"),
        jaccard=("Jaccard", "items in common over items of either"),
        field_f1_micro=("Field F1, micro", "F1 over the items of all fields together"),
        field_f1_macro=("Field F1, macro", "mean of the fields' F1"),
    ),
    Metric(
        "absolute_error",
        "Absolute error",
        "score",
        "lower",
        0.0,
        None,
        "how far a number is from the reference's",
    ),
    Metric("mae", "MAE", "score", "lower", 0.0, None, "mean absolute error of a number"),
    Metric(
        "r2",
        "R²",
        "score",
        "higher",
        None,
        1.0,
        "share of a number's variance that is predicted; 0 is the mean's",
    ),
]

CATALOGUE: dict[str, Metric] = {
    one.name: one for one in (*_LENGTH, *_OVERLAP, *_EXTRACTION, *_LANGUAGE, *_JUDGE, *_STRUCTURED)
}
"""Every metric by name, in the order of reports."""
