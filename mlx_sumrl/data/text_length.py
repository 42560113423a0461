"""How long a text is, as a reader counts: in words, characters, sentences or bullets. Never imports mlx.

Invariant: the length of a text does not depend on how its characters are encoded (composed or not), nor on white
space before and after it.
"""

from __future__ import annotations

import re
import unicodedata

import regex

from mlx_sumrl.config import LengthUnit
from mlx_sumrl.metrics.sentences import sentences as split_sentences

_INVISIBLE = frozenset(("Cc", "Cf"))
"""Categories of characters that nobody sees: zero-width spaces, soft hyphens, direction marks, control codes."""
_UNSPACED_OR_PIECE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]|[^\s\p{Han}\p{Hiragana}\p{Katakana}]+")
# A number counts as a bullet with a dot or a parenthesis after it. The marks that are also ordinary punctuation
# need a space, as in Markdown; the others, and 1、 of Chinese lists, do not.
_BULLET = re.compile(
    r"\s*(?:[-*+–—]\s+|\(?\d{1,3}[.)](?:\s+|(?=[\u3400-\u9fff]))"  # noqa: RUF001
    r"|[（(]?\d{1,3}[、．）]|[•‣◦▪●○■□·・]\s*)(.*)"  # noqa: RUF001
)


def text_length(text: str, unit: LengthUnit) -> int:
    """``text`` in words (`words`), characters (`characters`), sentences (`sentences`) or bullets (`bullets`).

    Raises:
        ValueError: for tokens, which only the model that wrote the text can count.
    """
    match unit:
        case "words":
            return words(text)
        case "characters":
            return characters(text)
        case "sentences":
            return sentences(text)
        case "bullets":
            return bullets(text)
        case "tokens":
            raise ValueError("tokens are counted in token ids, not in text")


def words(text: str) -> int:
    """Words as word processors count them.

    What stands between spaces is one where it has a letter or a digit: ``well-known`` and ``3.5%`` are one word each,
    a dash by itself is none. Chinese and Japanese have no spaces between words: each of their characters (Han and
    kana) counts as one. Thai, Lao, Khmer and Burmese have none either, and a whole clause of them counts as one word:
    ask for characters there.
    """
    pieces = _UNSPACED_OR_PIECE.findall(unicodedata.normalize("NFC", text))
    return sum(any(character.isalnum() for character in piece) for piece in pieces)


def characters(text: str) -> int:
    r"""Characters as a reader counts them: extended grapheme clusters (Unicode Standard Annex 29), punctuation too.

    An accented letter is one however it is encoded, and so is an emoji made of several code points. A run of white
    space counts as one, as it looks in print, and none before and after the text; invisible characters do not count.
    """
    clusters = regex.findall(r"\X", " ".join(text.split()))
    return sum(any(unicodedata.category(one) not in _INVISIBLE for one in cluster) for cluster in clusters)


def sentences(text: str) -> int:
    """Sentences with a letter or a digit, as `mlx_sumrl.metrics.sentences` finds them: a line without an end mark is
    one too."""
    found = split_sentences(unicodedata.normalize("NFC", text))
    return sum(any(map(str.isalnum, sentence)) for sentence in found)


def bullets(text: str) -> int:
    """Lines, at any indentation, that begin with a bullet (- * + • – ...) or a number (``1.``, ``2)``, ``3、``) and go
    on with at least one letter or digit."""
    return len(bullet_texts(text))


def bullet_texts(text: str) -> list[str]:
    """What stands in the lines that `bullets` counts, without the bullet or number."""
    found = (_BULLET.match(line) for line in text.splitlines())
    return [match[1] for match in found if match is not None and any(map(str.isalnum, match[1]))]
