"""Which language a text is in. Never imports mlx, and needs no network.

Invariant: the same text gets the same answer, in any order of calls and on any machine.

The detector is py3langid (naive Bayes over byte n-grams, a retrained fork of langid.py: Lui and Baldwin, 2012).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNDETERMINED = "und"
"""ISO 639-2's code for a text whose language cannot be told."""
# Written the same way as Mandarin, so that headlines are taken for them one time in six.
_WRITTEN_AS_CHINESE = frozenset(("wuu", "yue"))
LOOKED_AT = 1000
"""Characters at the beginning of a text that decide."""


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


@cache
def _detector() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second to load, so only when asked

    # An identifier of its own: the module's global one is anybody's to restrict to other languages.
    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    detector.set_languages(set(detector.labels) - _WRITTEN_AS_CHINESE)
    return detector
