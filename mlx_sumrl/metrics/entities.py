"""Which names, numbers and quoted titles of one text another one mentions. Never imports mlx.

A heuristic without a model, made for news and dialogue: an entity is

- a run of capitalised words that does not only stand where a sentence begins (``of``, ``the``, ``de`` and the like may
  stand inside it: ``Bank of England``),
- a number, a date or a time in digits (``1,250``, ``3.5%``, ``12/05/2024``, ``14:30``), or
- what stands in quotes, up to six words that begin with a capital and end in no mark (which speech does), or in 「」
  and 《》.

Names in a script without capitals are seen only in quotes, German nouns are all names to it, and ``Obama`` does not
count as a mention of ``Barack Obama``. Good for comparing systems on the same rows, not as a truth about one row.
"""

from __future__ import annotations

from functools import lru_cache

import regex

from mlx_sumrl.metrics.sentences import sentences
from mlx_sumrl.metrics.words import words

_CAPITALISED = r"\p{Lu}[\p{L}\p{M}\p{N}'’\-]*(?:\.\p{Lu})*"  # noqa: RUF001
_INSIDE = r"(?:of|the|de|del|della|di|da|van|von|der|den|la|le|du|and|&)"
_NAME = regex.compile(rf"{_CAPITALISED}(?:\s+(?:{_INSIDE}\s+){{0,2}}{_CAPITALISED})*")
_NUMBER = regex.compile(
    r"(?<![\p{Latin}\p{Greek}\p{Cyrillic}\p{N}])\d+(?:[.,:/\-]\d+)*(?![\p{Latin}\p{Greek}\p{Cyrillic}\p{N}])"
)
_QUOTED = regex.compile(r"[\"“«]([^\"“”«»]{1,80})[\"”»]|[「『《]([^」』》]{1,40})[」』》]")
# After these a sentence begins inside another: what follows a colon, a dash, an opening quote or bracket.
_INNER_BEGINNING = regex.compile(r"(?:^|[:;\-–—\"“”«‘(\[*•#]\s*)$")  # noqa: RUF001
_NO_NAMES = frozenset(
    (
        *("i", "the", "a", "an", "this", "that", "these", "those", "he", "she"),
        *("it", "they", "we", "you", "his", "her", "its", "their", "our", "my", "your", "there"),
        *("here", "in", "on", "at", "to", "for", "from", "by", "with", "after", "before", "when", "while"),
        *("if", "but", "and", "or", "so", "however", "as", "then", "what", "who", "why", "how", "where"),
        *("although", "because", "since", "no", "not", "yes", "ok", "okay", "oh", "well", "is", "are"),
        *("was", "were", "do", "does", "did", "can", "could", "will", "would", "all", "some", "many", "one"),
        *("mr", "mrs", "ms", "miss", "dr", "don", "let", "hello", "hi", "hey", "please", "thanks", "good"),
    )
)
"""Capitalised where a sentence begins, and in titles, and no name by themselves."""
_CONTRACTION = regex.compile(r"['’](?:s|m|re|ve|ll|d|t)$")  # noqa: RUF001
_POSSESSIVE = regex.compile(r"['’]s$")  # noqa: RUF001
_GROUPING = regex.compile(r"(?<=\d),(?=\d{3}(?:\D|$|\d{3}))")
LONGEST_QUOTE = 6
"""Words of a quotation that may still be a title or a name."""


@lru_cache(maxsize=1024)
def entities(text: str) -> frozenset[tuple[str, ...]]:
    """The entities of a text by the rules above, each as its words, lower-cased, without ``'s``, digits ungrouped."""
    quoted = [match for match in _QUOTED.finditer(text) if match[2] is not None or _is_title(match[1])]
    found = [match[1] or match[2] for match in quoted]
    for match in reversed(quoted):  # its capitals are no names of their own
        text = f"{text[: match.start()]} , {text[match.end() :]}"
    found += [name for sentence in sentences(text) for name in _names(sentence)]
    found += [match[0] for match in _NUMBER.finditer(text)]
    return frozenset(entity for one in found if (entity := _plain(one)))


def entity_coverage(text: str, source: str) -> float | None:
    """Share of the different `entities` of ``source`` (a document or a reference) whose words stand in ``text`` in a
    row, whatever their case, in [0, 1]; None where ``source`` has none."""
    wanted = entities(source)
    if not wanted:
        return None
    said = _plain(text)
    longest = max(map(len, wanted))
    runs = {said[at : at + length] for length in range(1, longest + 1) for at in range(len(said))}
    return sum(entity in runs for entity in wanted) / len(wanted)


def _names(sentence: str) -> list[str]:
    names = []
    for match in _NAME.finditer(sentence):
        pieces = match[0].split()
        while pieces and _CONTRACTION.sub("", pieces[0].lower()) in _NO_NAMES:  # The White House, How's Mary
            pieces.pop(0)
        name = " ".join(pieces)
        if not name:
            continue
        begins = _INNER_BEGINNING.search(sentence[: match.start()]) is not None
        # One capital where a sentence begins says nothing; a second word or capital, or a digit, does.
        plain = (
            name == match[0] and len(pieces) == 1 and not any(not one.islower() for one in _letters(name[1:]))
        )
        if not (begins and plain):
            names.append(name)
    return names


def _is_title(quoted: str) -> bool:
    """Whether it is short and begins with a capital, and is not speech, which ends in a mark."""
    return quoted[:1].isupper() and quoted[-1] not in ".,!?…" and len(words(quoted)) <= LONGEST_QUOTE


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _plain(text: str) -> tuple[str, ...]:
    """`words`, without possessive endings and the commas that group digits."""
    return tuple(_GROUPING.sub("", _POSSESSIVE.sub("", word)) for word in words(text))
