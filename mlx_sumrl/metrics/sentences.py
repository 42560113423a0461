"""Text -> sentences, by rules: no corpus, no model. Never imports mlx.

Invariant: the sentences hold the text's characters in their order; only white space around a sentence is lost.

A sentence ends with its line, after ``.``, ``!``, ``?`` or an ellipsis that white space and a beginning follow (a
capital, a digit, a quote, a letter of a script without capitals), and after Chinese and Japanese ``。！？`` whatever
follows. It does not end after a title (``Dr.``), a single capital (``J. Smith``), or ``e.g.``; after ``U.S.``,
``a.m.`` or ``Inc.`` only where the next word often begins a sentence (the rule of Moses' splitter and of pysbd).
"""

from __future__ import annotations

import re

import regex

from mlx_sumrl.metrics.words import words

_CLOSING = r"\"'”’»)\]）】」』"  # noqa: RUF001
END_MARKS = ".!?…。！？｡।॥۔؟"  # noqa: RUF001
_END = regex.compile(rf"(?:[.!?…।॥۔؟]+[{_CLOSING}]*(?=\s)|[。！？｡]+[{_CLOSING}]*)\s*")  # noqa: RUF001
_BEGINNING = regex.compile(r"[\"'“‘«(\[¿¡「『#@*\-–—•]*[\p{Lu}\p{Lt}\p{Lo}\p{Nd}]")  # noqa: RUF001
_LAST_WORD = regex.compile(r"[\p{L}\p{M}.]+\.$")

_NEVER_LAST = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "gen", "col", "lt", "sgt", "capt", "cmdr", "adm", "maj"),
        *("sen", "rep", "gov", "pres", "hon", "rev", "fr", "messrs", "mme", "mlle", "sr", "sra", "hr"),
        *("e.g", "i.e", "vs", "v", "cf", "viz", "al", "approx", "ca", "fig", "figs", "eq", "sec", "ch"),
        *("nos", "vol", "pp", "ed", "eds", "mt", "ft", "bzw", "z.b", "d.h"),
    )
)
"""Abbreviations that something always follows, without their last dot."""
_MAY_BE_LAST = frozenset(
    (
        *(
            "etc",
            "jr",
            "inc",
            "ltd",
            "co",
            "corp",
            "bros",
            "llc",
            "plc",
            "ave",
            "blvd",
            "rd",
            "no",
            "est",
            "dept",
        ),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    )
)
"""Abbreviations that may end a sentence, as do those with dots inside (``U.S.``, ``p.m.``)."""
_STARTERS = frozenset(
    (
        *("the", "a", "an", "this", "that", "these", "those", "he", "she", "it", "they", "we", "i", "you"),
        *("his", "her", "its", "their", "our", "my", "your", "there", "here", "in", "on", "at", "after"),
        *("before", "when", "while", "if", "but", "and", "so", "however", "as", "for", "then", "what", "who"),
        *("why", "how", "where", "although", "because", "meanwhile", "yesterday", "today", "since", "no"),
    )
)
"""Words that often begin a sentence and hardly ever follow an abbreviation with a capital."""
_MARKS_IN_A_ROW = re.compile(rf"[{END_MARKS}](?:\s*[{END_MARKS}])+")
_ROWS = frozenset(("...", "……", "?!", "!?", "？！", "！？"))  # noqa: RUF001
_SMALL_BEGINNING = regex.compile(r"[\"'“‘«(\[¿¡「『*\-–—•]*\p{Ll}")  # noqa: RUF001
_OPENING = {'"': '"', "'": "'", "”": "“", "’": "‘", "»": "«", ")": "(", "]": "[", "）": "（", "】": "【"}  # noqa: RUF001
_OPENING |= {"」": "「", "』": "『"}
_NUMBERED = re.compile(r"\s*\(?\d{1,3}\.$")


def sentences(text: str) -> list[str]:
    """The sentences of ``text`` in order, without white space around them; an empty list for a blank text."""
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            if _is_end(line[start : match.end()].rstrip(), line[match.end() :]):
                found.append(line[start : match.end()].strip())
                start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _is_end(sentence: str, rest: str) -> bool:
    """Whether a sentence that ends in an end mark really ends there, ``rest`` being what stands after it."""
    bare = sentence.rstrip(_CLOSING.replace("\\", ""))
    if bare[-1:] in "。！？｡":  # noqa: RUF001
        return True
    if not _BEGINNING.match(rest):
        return False
    if not bare.endswith(".") or bare.endswith(".."):
        return True
    if _NUMBERED.fullmatch(bare):  # the number of an item of a list
        return False
    word = _LAST_WORD.search(bare)
    if word is None:  # a number, a closing mark
        return True
    abbreviation = word[0][:-1].lower()
    if _never_last(word[0]):
        return False
    if _may_be_last(abbreviation):
        following = re.search(r"\w+", rest)
        number = abbreviation == "no" and following is not None and following[0][0].isdigit()
        return not number and following is not None and following[0].lower() in _STARTERS
    return True


def _never_last(word: str) -> bool:
    bare = word[:-1].lower()
    return bare in _NEVER_LAST or (len(bare) == 1 and word[0].isupper() and word != "I.")


def _may_be_last(abbreviation: str) -> bool:
    return abbreviation in _MAY_BE_LAST or "." in abbreviation


def is_whole(text: str, min_words: int) -> bool:
    """Whether ``text`` is whole sentences, one or more, and nothing else.

    Each ends with an end mark and has ``min_words`` words or more, together with what it quotes. None is made of
    fragments with dots between them (``It works. the method. it is.``): a small letter follows an abbreviation, an
    ellipsis and a quotation, and no other end. Nor are there rows of end marks other than ``...`` and ``?!``.
    """
    found = _with_quotations(sentences(text))
    in_a_row = set(_MARKS_IN_A_ROW.findall(text))
    return (
        bool(found)
        and in_a_row <= _ROWS
        and not any(_SMALL_BEGINNING.match(sentence) for sentence in found[1:])
        and all(_is_sentence(one, min_words) for one in found)
    )


def _with_quotations(found: list[str]) -> list[str]:
    """Those that end in a closing mark together with what follows: ``"Late?" Anna asked.`` is one sentence."""
    together: list[str] = []
    for sentence in found:
        if together and together[-1][-1] in _CLOSING:
            together[-1] += " " + sentence
        else:
            together.append(sentence)
    return together


def _is_sentence(sentence: str, min_words: int) -> bool:
    return ends_sentence(sentence) and len(words(sentence)) >= min_words and not _is_broken(sentence)


def _is_broken(sentence: str) -> bool:
    """Whether a small letter follows an end mark that ends neither an abbreviation nor an ellipsis nor a quotation."""
    for match in _END.finditer(sentence):
        before, after = sentence[: match.end()].rstrip(), sentence[match.end() :]
        goes_on = before.endswith(("..", "…")) or _closes_quotation(before) or _NUMBERED.fullmatch(before)
        if not after[:1].islower() or goes_on:
            continue
        word = _LAST_WORD.search(before)
        if word is None or not (_never_last(word[0]) or _may_be_last(word[0][:-1].lower())):
            return True
    return False


def _closes_quotation(before: str) -> bool:
    opening = _OPENING.get(before[-1])
    if opening is None:
        return False
    return regex.search(rf"(?:^|[\s\p{{P}}]){regex.escape(opening)}(?=\S)", before[:-1]) is not None


def ends_sentence(text: str) -> bool:
    """Whether ``text`` ends where a sentence does: with an end mark, whatever closes behind it."""
    bare = text.rstrip().rstrip(_CLOSING.replace("\\", "")).rstrip()
    return bare[-1:] in END_MARKS and bare != ""
