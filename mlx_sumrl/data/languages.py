"""Which language a text is in. Never imports mlx, and needs no network.

Invariant: the same text gets the same answer, in any order of calls and on any machine.

The detector is py3langid (naive Bayes over byte n-grams, a retrained fork of langid.py: Lui and Baldwin, 2012).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNDETERMINED = "und"
"""ISO 639-2's code for a text whose language cannot be told."""
# Written the same way as Mandarin, so that headlines are taken for them one time in six.
_WRITTEN_AS_CHINESE = frozenset(("wuu", "yue"))
LOOKED_AT = 1000
"""Characters at the beginning of a text that decide."""
SURE = 0.5
"""Confidence from which a text counts as being in the language that was found."""
_EAST_ASIAN = frozenset(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"))
"""First words of the Unicode names of letters that Japanese mixes."""


def language_of(text: str) -> tuple[str, float]:
    """ISO 639 code of a text's language (`en`, `zh`, `de`, ...) and how sure that is, 0 to 1.

    Chinese of any kind is `zh`. ``("und", 0.0)`` where there is no letter. A text of one or two words is a
    guess, which its confidence says; close relatives (Russian and Ukrainian, Czech and Slovak) share theirs.
    """
    head = text[:LOOKED_AT]
    if not any(character.isalpha() for character in head):
        return UNDETERMINED, 0.0
    code, confidence = _detector().classify(head)
    return str(code), float(confidence)


def keeps_language(text: str, document: str) -> bool:
    """Whether ``text`` is in the language of ``document``.

    A text that is too short or too mixed to tell (confidence below `SURE`) is taken to be as long as most of its
    letters are of the document's script: ``harmonic acoustic model`` may be English, and is no Chinese. A text without
    a letter is in no language and never kept one; a document without a letter has none to keep, and any text does.
    """
    own, _ = _remembered(document[:LOOKED_AT])
    if own == UNDETERMINED:
        return True
    found, confidence = language_of(text)
    if found == UNDETERMINED:
        return False
    return found == own or (confidence < SURE and _script(text) == _script(document))


@lru_cache(maxsize=64)
def _remembered(head: str) -> tuple[str, float]:
    # A document is asked about once for each completion of its group.
    return language_of(head)


def _script(text: str) -> str:
    """That of most of its letters: LATIN, CYRILLIC, CJK (kana too), HANGUL, ..."""
    names = Counter(
        unicodedata.name(letter, "").split(" ")[0] for letter in text[:LOOKED_AT] if letter.isalpha()
    )
    counts = Counter[str]()
    for name, count in names.items():
        counts["CJK" if name in _EAST_ASIAN else name] += count
    return counts.most_common(1)[0][0]


@cache
def _detector() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second to load, so only when asked

    # An identifier of its own: the module's global one is anybody's to restrict to other languages.
    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    detector.set_languages(set(detector.labels) - _WRITTEN_AS_CHINESE)
    return detector
