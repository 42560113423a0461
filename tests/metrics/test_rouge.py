"""ROUGE by hand, and against rouge-score with its own tokenizer on real rows."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from mlx_sumrl.metrics.rouge import ROUGE_NAMES, rouge


def test_by_hand():
    # Text: a b c d; reference: a b x d y y. Unigrams in common a, b, d; bigrams: ab; subsequence: a b d.
    found = rouge("a b c d", "a b x d y y")
    assert found == pytest.approx(
        {
            "rouge1": 2 * 3 / (4 + 6),
            "rouge2": 2 * 1 / (3 + 5),
            "rougeL": 2 * 3 / (4 + 6),
            "rougeLsum": 2 * 3 / (4 + 6),
            "rouge1_recall": 3 / 6,
            "rouge2_recall": 1 / 5,
            "rougeL_recall": 3 / 6,
            "rougeLsum_recall": 3 / 6,
        }
    )
    assert set(ROUGE_NAMES) == set(found)


def test_recall_ignores_what_is_said_besides():
    found = rouge("red fox and much more besides", "red fox")
    assert found["rouge1_recall"] == found["rouge2_recall"] == found["rougeL_recall"] == 1.0
    assert found["rouge1"] == pytest.approx(2 * 2 / (6 + 2))


def test_chinese_by_character():
    # 北京下雨 and 北京有雨: 3 of 4 characters, bigram 北京 of 3, subsequence 北京雨.
    found = rouge("北京下雨", "北京有雨")
    assert (found["rouge1"], found["rouge2"], found["rougeL"]) == pytest.approx((3 / 4, 1 / 3, 3 / 4))


def test_real_english_equals_rouge_score(dialogues):
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for row in dialogues:
        text = row["dialogue"][:300]
        expected = theirs.score(row["summary"], text)
        found = rouge(text, row["summary"])
        for kind, value in expected.items():
            assert found[kind] == value.fmeasure
            assert found[f"{kind}_recall"] == value.recall
