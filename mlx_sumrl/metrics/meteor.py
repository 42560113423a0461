"""METEOR (Lavie and Agarwal 2007) by nltk: unigrams matched exactly, by stem, and by WordNet synonym.

Needs the WordNet corpus on disk and never looks for it anywhere else: where it is missing, there is no METEOR
and a reason why, at once.

nltk stems every word anew and looks every unmatched one up in WordNet's files. The completions of a group share
most of their words with each other and with their reference, so both are remembered by word; the matching and the
score stay nltk's own.

nltk's WordNet reader turns from a stand-in into itself at first use and then seeks in file handles it keeps,
neither of which two threads may do at a time; one lock is held around both.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from zipfile import BadZipFile

import nltk.data
from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score

from mlx_sumrl.metrics.unspaced import space_characters

_LOCK = threading.Lock()
_WORDS = 2**16
"""Words that are remembered; a few megabytes."""
_UNREADABLE = (LookupError, OSError, ValueError, BadZipFile)
"""What nltk raises for a corpus that is missing or damaged."""


class _Stemmer:
    """nltk's Porter stemmer, each word once."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=_WORDS)(PorterStemmer().stem)


@dataclass(frozen=True, slots=True)
class _Lemma:
    word: str

    def name(self) -> str:
        return self.word


@dataclass(frozen=True, slots=True)
class _Synonyms:
    """All that nltk asks of a word's synsets, in one: the names of their lemmas, each once."""

    names: tuple[_Lemma, ...]

    def lemmas(self) -> tuple[_Lemma, ...]:
        return self.names


class _WordNet:
    """WordNet as nltk's METEOR uses it, less the synonyms that no word of a reference is: nltk goes through all of a
    word's to find one that is there."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted

    def synsets(self, word: str) -> tuple[_Synonyms, ...]:
        return (_Synonyms(tuple(map(_Lemma, _synonyms(word) & self.wanted))),)


@lru_cache(maxsize=_WORDS)
def _synonyms(word: str) -> frozenset[str]:
    """Lemmas of all synsets of a word; looked up once."""
    with _LOCK:
        return frozenset(lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas())


_STEMMER = _Stemmer()


def meteor_tokens(text: str) -> list[str]:
    r"""Lower-cased tokens: nltk's ``wordpunct_tokenize`` (``\w+|[^\w\s]+``), which needs no corpus.

    Punctuation is a token of its own. Chinese, Japanese, Korean and Thai are split into characters, since
    ``\w+`` would take a whole clause of them for one word.
    """
    tokens: list[str] = wordpunct_tokenize(space_characters(text.lower()))
    return tokens


def missing_wordnet() -> str | None:
    """`wordnet_problem`, for whoever goes on without METEOR."""
    problem = wordnet_problem()
    return None if problem is None else f"METEOR is left out because {problem}"


def wordnet_problem() -> str | None:
    """Load WordNet; None when it is there, else what is wrong and how to mend it, as the end of a sentence.

    Looks in the folders of ``NLTK_DATA`` (as it is now, not as it was when nltk was imported) and of
    ``nltk.data.path``. A failure is not remembered: mend it and call again.
    """
    with _LOCK:
        _look_where_told()
        try:
            wordnet.ensure_loaded()
            wordnet.synsets("summary")  # a damaged archive shows only when something is read
        except _UNREADABLE as error:
            # nltk's own message for a missing corpus is a page long.
            cause = (
                "is not on this machine" if isinstance(error, LookupError) else f"cannot be read ({error})"
            )
            return (
                f"the WordNet corpus {cause}: run "
                "`python -m nltk.downloader wordnet`, or set NLTK_DATA to a folder that holds "
                "corpora/wordnet.zip."
            )
    return None


def wordnet_is_there() -> bool:
    """Whether the corpus is on this machine, looked for as `wordnet_problem` does but not loaded, which takes 2 s."""
    with _LOCK:
        _look_where_told()
        for name in ("corpora/wordnet", "corpora/wordnet.zip"):
            with contextlib.suppress(*_UNREADABLE):
                nltk.data.find(name)
                return True
    return False


def _look_where_told() -> None:
    for folder in reversed(os.environ.get("NLTK_DATA", "").split(os.pathsep)):
        expanded = os.path.expanduser(folder)
        if expanded and expanded not in nltk.data.path:
            nltk.data.path.insert(0, expanded)


def meteor(text: str, reference: str) -> float:
    """METEOR of a summary against its reference, in [0, 1]; nltk's parameters (alpha .9, beta 3, gamma .5).

    Raises:
        LookupError: WordNet is missing; ask `missing_wordnet` first.
    """
    tokens, words = _of_reference(reference)
    return float(single_meteor_score(tokens, meteor_tokens(text), stemmer=_STEMMER, wordnet=words))


@lru_cache(maxsize=64)
def _of_reference(reference: str) -> tuple[tuple[str, ...], _WordNet]:
    """Its tokens, and the synonyms that may be among them; it is compared with every completion of its group."""
    tokens = tuple(meteor_tokens(reference))
    # Synonyms are looked for when stems have been: among what is then left as stems.
    return tokens, _WordNet(frozenset((*tokens, *map(_STEMMER.stem, tokens))))
