"""Languages: sentences whose language is known, and real rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mlx_sumrl.data.languages import keeps_language, language_of


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The cat sat on the mat and looked out of the window.", "en"),
        ("Die Katze saß auf der Matte und sah aus dem Fenster.", "de"),
        ("Le chat était assis sur le tapis et regardait par la fenêtre.", "fr"),
        ("这样不好", "zh"),
        ("女子用板车拉九旬老母环游中国1年走2万4千里", "zh"),  # taken for Wu unless that is Chinese too
        ("东京奥运会延期举行", "zh"),
        ("東京は日本の首都です。", "ja"),
        ("El gato estaba sentado en la alfombra y miraba por la ventana.", "es"),
    ],
)
def test_known_sentences(text: str, code: str) -> None:
    found, confidence = language_of(text)
    assert found == code
    assert 0.5 < confidence <= 1


@pytest.mark.parametrize("text", ["", " \n", "123 456", "?!…", "😀"])
def test_nothing_to_tell_from(text: str) -> None:
    assert language_of(text) == ("und", 0.0)


def test_broken_unicode_is_no_error() -> None:
    code, _ = language_of("half a pair \ud83d of an emoji in the text")
    assert code == "en"


def test_the_same_in_any_order() -> None:
    texts = ["Hello, how are you today?", "Guten Morgen, wie geht es dir?", "你好今天怎么样"]
    once = [language_of(text) for text in texts]
    assert [language_of(text) for text in reversed(texts)] == once[::-1]


@pytest.mark.parametrize(
    ("file", "column", "code", "share"),
    [
        ("lcsts.sample.jsonl", "document", "zh", 1.0),
        ("lcsts.sample.jsonl", "summary", "zh", 0.99),
        ("dialogsum.train.jsonl", "dialogue", "en", 1.0),
        ("dialogsum.train.jsonl", "summary", "en", 0.99),
        ("tldr.train.jsonl", "summary", "en", 0.99),
    ],
)
def test_real_rows(
    shared_rows: Callable[[str, int], list[dict[str, Any]]], file: str, column: str, code: str, share: float
) -> None:
    counts = Counter(language_of(row[column])[0] for row in shared_rows(file, 500))
    print(file, column, counts.most_common(4))
    assert counts[code] >= share * 500


CHINESE = "今年的经济增长超过了去年，许多分析师对此感到意外，他们认为出口的恢复是主要原因。"  # noqa: RUF001
ENGLISH = "The economy grew faster than in the year before, which surprised many analysts, who name exports."


@pytest.mark.parametrize(
    ("text", "document", "kept"),
    [
        ("经济增长超预期", CHINESE, True),
        ("The economy grew more than expected.", CHINESE, False),
        ("harmonic acoustic model", CHINESE, False),  # no language for sure, but surely no Chinese
        ("harmonic acoustic model", ENGLISH, True),
        ("Die Wirtschaft wuchs schneller als im Jahr zuvor.", ENGLISH, False),
        ("经济", ENGLISH, False),
        ("... !!", ENGLISH, False),
        ("", CHINESE, False),
        ("anything at all", "123 456", True),
    ],
)
def test_kept(text: str, document: str, kept: bool) -> None:
    assert keeps_language(text, document) is kept


def test_real_summaries_keep_their_document_s_language_and_no_other_s(
    shared_rows: Callable[[str, int], list[dict[str, Any]]],
) -> None:
    chinese, english = (shared_rows(f"{name}.jsonl", 500) for name in ("lcsts.sample", "scitldr.train"))
    own = sum(keeps_language(row["summary"], row["document"]) for row in chinese)
    other = sum(keeps_language(e["summary"], c["document"]) for c, e in zip(chinese, english, strict=True))
    back = sum(keeps_language(c["summary"], e["document"]) for c, e in zip(chinese, english, strict=True))
    at_home = sum(keeps_language(row["summary"], row["document"]) for row in english)
    print(f"kept of 500: zh-zh {own}, zh-en {other}, en-zh {back}, en-en {at_home}")
    assert (own, other, back, at_home) == (500, 0, 0, 500)
