"""ROUGE-L against an independent longest common subsequence, and the tokenizer against rouge-score's own."""
# ruff: noqa: RUF001 - other scripts are what is tested

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from mlx_sumrl.config import LengthConfig, StageConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.meteor import meteor_tokens
from mlx_sumrl.metrics.rouge import RougeTokenizer
from mlx_sumrl.metrics.unspaced import space_characters
from mlx_sumrl.rewards import OverlapReward, build_rewards, overlap


def f1(candidate: list[str], reference: list[str]) -> float:
    """ROUGE-L F1 from the definition, by recursion rather than by table."""

    @cache
    def common(i: int, j: int) -> int:
        if i == len(candidate) or j == len(reference):
            return 0
        if candidate[i] == reference[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    hits = common(0, 0)
    return 2 * hits / (len(candidate) + len(reference)) if hits else 0.0


def test_small_case_by_hand(completion, group):
    # "the cat sat on the mat" and "the cat lay on a mat" share the-cat-on-mat: 4 of 6 words on both sides.
    groups = [
        group(
            completion(text="The cat sat on the mat."),
            completion(text="the cat lay on a mat"),
            completion(text="Nothing at all!"),
            completion(text=""),
            reference="the cat lay on a mat",
        )
    ]
    np.testing.assert_allclose(OverlapReward("rougeL", "rougeL")(groups), [[4 / 6, 1.0, 0.0, 0.0]])


def test_stems_match(completion, group):
    # jump-ed and jump-s share a stem; dog-s has four letters and is stemmed, cat has three and is not.
    groups = [group(completion(text="dogs jumped"), reference="dog jumps")]
    assert OverlapReward("rougeL", "rougeL")(groups) == 1.0


def test_real_english_equals_rouge_score_and_an_independent_lcs(completion, group, dialogues):
    texts = [row["dialogue"][:300] for row in dialogues]
    references = [row["summary"] for row in dialogues]
    groups = [
        group(completion(text=text), completion(text=other), reference=reference)
        for text, other, reference in zip(texts, references[1:] + references[:1], references, strict=True)
    ]
    ours_PG = OverlapReward("rougeL", "rougeL")(groups)

    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    tokenizer = DefaultTokenizer(use_stemmer=True)
    for p, one in enumerate(groups):
        for g, answer in enumerate(one.completions):
            assert ours_PG[p, g] == theirs.score(one.example.reference, answer.text)["rougeL"].fmeasure
            expected = f1(tokenizer.tokenize(answer.text), tokenizer.tokenize(one.example.reference))
            assert ours_PG[p, g] == pytest.approx(expected, abs=1e-12)
    assert 0.05 < ours_PG.mean() < 0.6


@pytest.mark.parametrize(
    "text",
    [
        "It's Sarah’s 2nd café—naïve, Œuvre, ﬁne x² ½ µ ™ _under_score_",
        "e\u0301te\u0301 İstanbul Kelvin\u212a",  # combining accents; letters whose lower case is ASCII
        "#Person2# will be running; the dogs' houses were relational, 3.14 per cent!",
    ],
)
def test_latin_text_is_split_and_stemmed_as_rouge_score_does(text):
    assert RougeTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@given(st.text())
def test_latin_tokens_of_any_text_are_those_of_rouge_score(text):
    latin = [token for token in RougeTokenizer().tokenize(text) if token.isascii()]
    assert latin == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("我爱北京，天安门。", ["我", "爱", "北", "京", "天", "安", "门"]),
        ("iPhone15发布", ["iphone15", "发", "布"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("한국어 요약", ["한", "국", "어", "요", "약"]),
        ("Это краткое изложение.", ["это", "краткое", "изложение"]),
        ("Η γάτα", ["η", "γάτα"]),
        ("यह हिंदी है", ["यह", "हिंदी", "है"]),  # vowel signs stay with their word
        ("ที่", ["ที่"]),  # one consonant with its vowel and tone signs
        ("abcдом", ["abc", "дом"]),
        ("…！？", []),
    ],
)
def test_other_scripts(text, tokens):
    assert RougeTokenizer().tokenize(text) == tokens


def test_chinese_scores_by_character_where_rouge_score_has_nothing(completion, group, chinese):
    by_hand = group(completion(text="北京今天下雨"), reference="今天北京有雨")
    # 今天-雨 (or 北京-雨) in order: 3 of 6 characters on both sides.
    assert OverlapReward("rougeL", "rougeL")([by_hand]) == pytest.approx(0.5)

    groups = [group(completion(text=row["document"][:40]), reference=row["summary"]) for row in chinese]
    tokenize = RougeTokenizer().tokenize
    expected = [[f1(tokenize(g.completions[0].text), tokenize(g.example.reference))] for g in groups]
    np.testing.assert_allclose(OverlapReward("rougeL", "rougeL")(groups), expected)
    assert RougeScorer(["rougeL"], use_stemmer=True).score("今天", "今天")["rougeL"].fmeasure == 0


def test_spacing_touches_only_unspaced_scripts():
    assert space_characters("Hello, wörld! 42") == "Hello, wörld! 42"
    assert space_characters("在Python中").split() == ["在", "Python", "中"]


@pytest.mark.usefixtures("wordnet")
def test_every_kind_is_its_library_called_directly(completion, group, dialogues):
    """On English rows, whose tokens are the libraries' own, to 1e-12."""
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    truths = {
        **{
            kind: partial(lambda kind, a, b: rouge.score(b, a)[kind].fmeasure, kind)
            for kind in rouge.rouge_types
        },
        "meteor": lambda a, b: single_meteor_score(meteor_tokens(b), meteor_tokens(a)),
        "bleu": lambda a, b: sacrebleu.sentence_bleu(a, [b], smooth_method="exp").score / 100,
        "chrf": lambda a, b: sacrebleu.sentence_chrf(a, [b]).score / 100,
    }
    references = [row["summary"] for row in dialogues]
    texts = [row["dialogue"][:200] for row in dialogues]
    groups = [
        group(completion(text=a), completion(text=a[:60]), reference=b)
        for a, b in zip(texts, references, strict=True)
    ]
    for kind, truth in truths.items():
        expected = [[truth(a, b), truth(a[:60], b)] for a, b in zip(texts, references, strict=True)]
        np.testing.assert_allclose(OverlapReward(kind, kind)(groups), expected, atol=1e-12, err_msg=kind)
    # ROUGE-Lsum: rouge-score's own takes each line for a sentence.
    lines = "One cat sat here\nTwo dogs ran away"
    [[found]] = OverlapReward("x", "rougeLsum")(
        [group(completion(text="Two dogs ran away. One cat sat here."), reference=lines.replace("\n", ". "))]
    )
    assert found == 1.0


def test_without_wordnet_a_run_ends_before_it_begins(monkeypatch):
    monkeypatch.setattr(
        overlap, "wordnet_problem", lambda: "the WordNet corpus is not on this machine: run it"
    )
    stage = StageConfig.model_validate(
        {"name": "s", "steps": 1, "rewards": [{"kind": "meteor", "name": "m"}]}
    )
    with pytest.raises(
        UserError, match="reward 'm' is METEOR, and the WordNet corpus is not on this machine: run it"
    ):
        build_rewards(stage, LengthConfig())
