"""Rows, fields, texts and baselines of structured answers, by hand."""

from __future__ import annotations

import io
import json
from typing import Any

import nltk.translate.meteor_score
import pytest
from rich.console import Console
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu

from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.structured_baselines import ALWAYS_EMPTY, CONSTANT, baseline_answers
from mlx_sumrl.evaluation.structured_fields import field_kind, field_scores
from mlx_sumrl.evaluation.structured_scores import (
    LIST_METRICS,
    numeric_errors,
    score_answers,
    score_baselines,
)
from mlx_sumrl.evaluation.structured_table import field_tables, summary_table
from mlx_sumrl.metrics.meteor import meteor_tokens

REFERENCES: list[dict[str, Any]] = [
    {"score": 2, "tags": ["a", "b"], "names": [], "hot": True, "summary": ""},
    {"score": 4, "tags": ["a"], "names": [], "hot": False, "summary": "The cat sat on the mat."},
    {"score": 9, "tags": ["c", "a"], "names": ["x"], "hot": True, "summary": ""},
]
ANSWERS: list[dict[str, Any] | None] = [
    {"score": 3, "tags": ["a", "z"], "names": [], "hot": True, "summary": ""},
    {"score": 4, "tags": ["a"], "names": ["y"], "hot": True, "summary": "A cat sat on a mat."},
    None,
]
PLAIN = MatchingConfig()


def test_every_number_by_hand() -> None:
    found = score_answers(REFERENCES, ANSWERS, PLAIN)
    tags, names, score = (found.fields[name] for name in ("tags", "names", "score"))
    # tags: rows 1/2, 1, 0 each way, and 1/3, 1, 0 of either; right 2, said 3, expected 5
    assert (tags.precision_mean, tags.recall_mean, tags.f1_mean) == pytest.approx((1.5 / 3,) * 3)
    assert tags.jaccard_mean == pytest.approx((1 / 3 + 1) / 3)
    assert (tags.precision, tags.recall, tags.f1, tags.jaccard) == pytest.approx((2 / 3, 2 / 5, 4 / 8, 2 / 6))
    assert (tags.exact, tags.answered, tags.both_empty) == pytest.approx((1 / 3, 2 / 3, 0))
    # names: agreement on empties, something where nothing is expected, nothing usable
    assert (names.precision_mean, names.f1_mean, names.jaccard_mean) == pytest.approx((1 / 3,) * 3)
    assert (names.exact, names.both_empty, names.f1) == pytest.approx((1 / 3, 1 / 3, 0))
    assert score.numbers is not None
    assert (score.exact, score.numbers.mae, score.numbers.answered) == pytest.approx((1 / 3, 0.5, 2 / 3))
    assert score.numbers.r2 == pytest.approx(1 - 1 / 2)  # of 2 and 4: their mean is 3
    assert found.fields["hot"].exact == pytest.approx(1 / 3)
    assert found.fields["summary"].exact == pytest.approx(1 / 3)
    assert {name: field.kind for name, field in found.fields.items()} == {
        "score": "number",
        "tags": "list",
        "names": "list",
        "hot": "boolean",
        "summary": "text",
    }
    summary = {name: found.summary[name] for name in ("rows", "valid", "exact_match", "precision", "jaccard")}
    assert summary == pytest.approx(
        {
            "rows": 3,
            "valid": 2 / 3,
            "exact_match": 0,
            "precision": (1.5 / 3 + 1 / 3) / 2,
            "jaccard": ((1 / 3 + 1) / 3 + 1 / 3) / 2,
        }
    )


def test_each_row_and_error_is_kept() -> None:
    found = score_answers(REFERENCES, ANSWERS, PLAIN)
    first = {name: value for name, value in found.metrics[0].items() if not name.startswith("summary/")}
    assert first == pytest.approx(
        {
            "valid": 1,
            "exact_match": 0,
            **dict.fromkeys(("precision", "recall", "f1"), (1 / 2 + 1) / 2),
            "jaccard": (1 / 3 + 1) / 2,
            "score/exact": 0,
            "score/error": 1,
            "score/absolute_error": 1,
            "tags/exact": 0,
            **{f"tags/{name}": 1 / 2 for name in ("precision", "recall", "f1")},
            "tags/jaccard": 1 / 3,
            "names/exact": 1,
            **{f"names/{name}": 1 for name in ("precision", "recall", "f1", "jaccard")},
            "hot/exact": 1,
        }
    )
    assert found.metrics[2]["score/error"] is None
    assert found.metrics[2]["valid"] == 0
    assert found.metrics[2]["summary/exact"] == 0  # a missing text is no empty one
    errors = numeric_errors(["r1", "r2", "r3"], found)["score"]
    assert [(one["id"], one["said"], one["expected"], one["error"]) for one in errors] == [
        *(("r1", 3, 2, 1), ("r2", 4, 4, 0)),
    ]
    content = json.loads(json.dumps(found.to_json()))
    assert content["fields"]["score"]["errors"] == [1, 0]
    assert content["fields"]["tags"]["f1"] == pytest.approx(1 / 2)
    assert content["fields"]["summary"]["text"]["rows"] == 1


def test_texts_are_what_the_packages_say(wordnet: None) -> None:
    text = score_answers(REFERENCES, ANSWERS, PLAIN).texts["summary"]
    said, expected = "A cat sat on a mat.", "The cat sat on the mat."
    kinds = ("rouge1", "rouge2", "rougeL")
    rouge = RougeScorer(kinds, use_stemmer=True).score(expected, said)
    for kind in kinds:
        assert text.metrics[kind] == pytest.approx(rouge[kind].fmeasure)
        assert text.metrics[f"{kind}_recall"] == pytest.approx(rouge[kind].recall)
    tokens = meteor_tokens(expected), meteor_tokens(said)
    assert text.metrics["meteor"] == pytest.approx(nltk.translate.meteor_score.single_meteor_score(*tokens))
    bleu = sentence_bleu(said, [expected], smooth_method="exp", use_effective_order=True)
    assert text.metrics["bleu"] == pytest.approx(bleu.score / 100)
    assert (text.rows, text.empty_references, text.both_empty) == pytest.approx((1, 2 / 3, 2 / 3))
    assert (text.words, text.reference_words) == pytest.approx((6 / 3, 6 / 3))
    nothing = score_answers(REFERENCES, [{**REFERENCES[0], "summary": " "}] * 3, PLAIN).texts["summary"]
    assert set(nothing.metrics.values()) == {0.0}


def test_what_always_empty_gets(wordnet: None) -> None:
    """Lists: agreement where the reference is empty and nothing else; the mean number: R² 0."""
    found = score_baselines(REFERENCES, PLAIN)[ALWAYS_EMPTY]
    tags, names, score = (found.fields[name] for name in ("tags", "names", "score"))
    assert (tags.precision_mean, tags.recall_mean, tags.f1_mean, tags.jaccard_mean, tags.exact) == (0,) * 5
    assert (tags.precision, tags.recall, tags.f1) == (0, 0, 0)  # having said nothing is no precision
    shares = (names.precision_mean, names.recall_mean, names.f1_mean, names.jaccard_mean, names.exact)
    assert shares == pytest.approx((2 / 3,) * 5)
    assert names.both_empty == pytest.approx(2 / 3)
    assert names.f1 == 0
    assert score.numbers is not None
    assert (score.numbers.mae, score.numbers.r2) == pytest.approx(((3 + 1 + 4) / 3, 0))
    assert found.fields["hot"].exact == pytest.approx(1 / 3)
    assert found.fields["summary"].exact == pytest.approx(2 / 3)
    assert found.texts["summary"].metrics["rougeL"] == 0
    assert (found.summary["valid"], found.summary["f1"]) == pytest.approx((1, 1 / 3))


def test_what_a_constant_answer_gets() -> None:
    # tags: two of three references have two; a in all, then b before c. names: most have none.
    assert baseline_answers(REFERENCES)[CONSTANT] == {
        "score": 4,
        "tags": ["a", "b"],
        "names": [],
        "hot": True,
        "summary": "",
    }
    found = score_baselines(REFERENCES, PLAIN)[CONSTANT]
    assert found.fields["tags"].jaccard_mean == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert found.fields["tags"].f1 == pytest.approx(2 * 4 / (6 + 5))
    assert found.fields["score"].numbers is not None
    assert found.fields["score"].numbers.mae == pytest.approx(7 / 3)
    assert found.fields["hot"].exact == pytest.approx(2 / 3)


def test_baselines_leave_out_what_most_references_do() -> None:
    references = [{"a": 1, "b": None}, {"a": 2}, {"a": 2.0, "c": "x"}, ["whole"]]
    answers = baseline_answers(references)
    assert answers[ALWAYS_EMPTY] == {"a": pytest.approx(5 / 3)}
    assert answers[CONSTANT] == {"a": 2}
    assert baseline_answers([["p", "q"], ["q"], ["q"]]) == {
        ALWAYS_EMPTY: {"answer": []},
        CONSTANT: {"answer": ["q"]},
    }


def test_matching() -> None:
    references = [{"tags": ["Open AI", "Large language models"], "who": "ACME Corp."}]
    answers = [{"tags": ["open ai.", "language models"], "who": "acme corp"}]
    exact, normalised, soft = (
        field_scores(references, answers, matching=options)
        for options in (
            PLAIN,
            MatchingConfig(matching="normalised"),
            MatchingConfig(soft_fields=("tags",), soft_threshold=0.8),
        )
    )
    assert [(one["tags"].right, one["who"].right) for one in (exact, normalised, soft)] == [
        (0, 0),
        (1, 1),
        (2, 0),
    ]
    assert [one["tags"].matching for one in (exact, normalised)] == ["exact", "normalised"]
    assert soft["tags"].matching == "soft: ROUGE-L F1 of at least 0.8, one to one"
    # language models / Large language models: precision 2/2, recall 2/3, F1 exactly 0.8
    stricter = field_scores(
        references, answers, matching=MatchingConfig(soft_fields=("tags",), soft_threshold=0.81)
    )
    assert stricter["tags"].right == 1
    with pytest.raises(UserError, match=r"soft_fields has 'who', which is no list; .* are: tags"):
        score_answers(references, answers, MatchingConfig(soft_fields=("who",)))


def test_kinds() -> None:
    assert [
        field_kind(one) for one in ([1, 2.5, None], [True], [[], ["a"]], [""], [{}], [1, "1"], [1, True], [])
    ] == [
        *("number", "boolean", "list", "text", "other", "other", "other", "other"),
    ]
    huge = score_answers([{"n": 1}], [{"n": 10**400}], PLAIN).fields["n"]
    assert huge.numbers is not None
    assert huge.numbers.answered == 0


def test_long_names_cut_no_number() -> None:
    long = "a_field_with_a_name_that_takes_more_than_half_of_the_line"
    references = [{long: ["a"], "n": 4.0, "summary": "a b"}, {long: [], "n": 8.0, "summary": ""}]
    scores = {long * 2: score_answers(references, references, PLAIN), **score_baselines(references, PLAIN)}
    console = Console(width=80, record=True, file=io.StringIO())
    for table in (summary_table(scores), *field_tables(scores)):
        console.print(table)
    said = console.export_text()
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    assert said.count("100.0") >= 3 * len(LIST_METRICS)
    assert "-0.00" not in said
