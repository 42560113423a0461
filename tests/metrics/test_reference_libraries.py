"""ROUGE, METEOR, BLEU and chrF of 500 real rows against rouge-score, nltk and sacrebleu, each called directly."""

from __future__ import annotations

import json

import pytest
import sacrebleu
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer

from mlx_sumrl.metrics.bleu import bleu, bleu_tokenizer
from mlx_sumrl.metrics.chrf import chrf
from mlx_sumrl.metrics.meteor import meteor
from mlx_sumrl.metrics.rouge import rouge
from mlx_sumrl.metrics.sentences import sentences


@pytest.fixture(scope="module")
def pairs(shared) -> list[tuple[str, str]]:
    """A text and its reference: another row's summary, its own dialogue's beginning, itself, and nothing."""
    with (shared / "data" / "dialogsum.validation.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:500]
    assert len(rows) == 500
    made = []
    for at, row in enumerate(rows):
        texts = (
            rows[at - 1]["summary"],
            row["dialogue"][:250],
            row["dialogue"].split(":")[1],
            row["summary"],
        )
        made.append((texts[at % 4] if at else "", row["summary"]))
    return made


def test_rouge(pairs):
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    theirs = RougeScorer(kinds, use_stemmer=True)
    several = 0
    for text, reference in pairs:
        lines = ["\n".join(sentences(one)) for one in (reference, text)]
        expected = theirs.score(reference, text) | {"rougeLsum": theirs.score(*lines)["rougeLsum"]}
        found = rouge(text, reference)
        for kind in kinds:
            assert found[kind] == pytest.approx(expected[kind].fmeasure, abs=1e-9)
            assert found[f"{kind}_recall"] == pytest.approx(expected[kind].recall, abs=1e-9)
        several += found["rougeLsum"] != found["rougeL"]
    assert several > 50  # else sentences made no difference


@pytest.mark.usefixtures("wordnet")
def test_meteor(pairs):
    for text, reference in pairs:
        expected = single_meteor_score(
            wordpunct_tokenize(reference.lower()), wordpunct_tokenize(text.lower())
        )
        assert meteor(text, reference) == pytest.approx(expected, abs=1e-9)


def test_bleu_and_chrf(pairs):
    for text, reference in pairs:
        theirs = sacrebleu.sentence_bleu(text, [reference], smooth_method="exp", tokenize="13a")
        assert bleu(text, reference) == pytest.approx(theirs.score / 100, abs=1e-9)
        assert chrf(text, reference) == pytest.approx(
            sacrebleu.sentence_chrf(text, [reference]).score / 100, abs=1e-9
        )
    assert all(bleu(text, text) == pytest.approx(1.0) for text, _ in pairs if text)


def test_bleu_by_hand():
    # the cat sat on a mat / the cat sat on the mat: 5 of 6, 3 of 5, 2 of 4, 1 of 3; as long as each other.
    assert bleu("the cat sat on a mat", "the cat sat on the mat") == pytest.approx(
        (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )
    # Two words: only orders 1 and 2 count; the reference is one longer, so exp(1 - 3/2).
    assert bleu("red fox", "red fox ran") == pytest.approx(2.718281828459045 ** (1 - 3 / 2))
    # No pair in common: its precision counts as 1/2 of 1 (the first order without a match); 1 of 2 words.
    assert bleu("red cat", "red fox") == pytest.approx((1 / 2 * 1 / 2) ** 0.5)
    assert bleu("", "red fox") == 0.0


@pytest.mark.parametrize(
    ("reference", "tokenizer"),
    [
        ("The cat sat.", "13a"),
        ("The word 猫 means cat.", "13a"),
        ("北京今天下雨，气温 20 度。", "zh"),  # noqa: RUF001
        ("今日は東京で雨が降った。", "char"),
        ("วันนี้ฝนตกที่กรุงเทพ", "char"),
        ("Сегодня в Москве дождь.", "13a"),
        ("오늘 서울에 비가 온다.", "13a"),
        ("", "13a"),
    ],
)
def test_tokenizers_by_script(reference, tokenizer):
    assert bleu_tokenizer(reference) == tokenizer
    expected = sacrebleu.sentence_bleu(reference[1:], [reference], tokenize=tokenizer).score / 100
    assert bleu(reference[1:], reference) == pytest.approx(expected, abs=1e-9)
