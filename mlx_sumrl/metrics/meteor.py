"""METEOR (Lavie and Agarwal 2007) by nltk: unigrams matched exactly, by stem, and by WordNet synonym.

Needs the WordNet corpus on disk and never looks for it anywhere else: where it is missing, there is no METEOR
and a reason why, at once.

nltk's WordNet reader turns from a stand-in into itself at first use and then seeks in file handles it keeps,
neither of which two threads may do at a time; one lock is held around both.
"""

from __future__ import annotations

import os
import threading
from zipfile import BadZipFile

import nltk.data
from nltk.corpus import wordnet
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score

from mlx_sumrl.metrics.rouge import space_characters

_LOCK = threading.Lock()


def meteor_tokens(text: str) -> list[str]:
    r"""Lower-cased tokens: nltk's ``wordpunct_tokenize`` (``\w+|[^\w\s]+``), which needs no corpus.

    Punctuation is a token of its own. Chinese, Japanese, Korean and Thai are split into characters, since
    ``\w+`` would take a whole clause of them for one word.
    """
    tokens: list[str] = wordpunct_tokenize(space_characters(text.lower()))
    return tokens


def missing_wordnet() -> str | None:
    """Load WordNet; None when it is there, else one sentence that says why not and how to mend it.

    Looks in the folders of ``NLTK_DATA`` (as it is now, not as it was when nltk was imported) and of
    ``nltk.data.path``. A failure is not remembered: mend it and call again.
    """
    with _LOCK:
        for folder in reversed(os.environ.get("NLTK_DATA", "").split(os.pathsep)):
            expanded = os.path.expanduser(folder)
            if expanded and expanded not in nltk.data.path:
                nltk.data.path.insert(0, expanded)
        try:
            wordnet.ensure_loaded()
            wordnet.synsets("summary")  # a damaged archive shows only when something is read
        except (LookupError, OSError, ValueError, BadZipFile) as error:
            # nltk's own message for a missing corpus is a page long.
            cause = (
                "is not on this machine" if isinstance(error, LookupError) else f"cannot be read ({error})"
            )
            return (
                f"METEOR is left out because the WordNet corpus {cause}: run "
                "`python -m nltk.downloader wordnet`, or set NLTK_DATA to a folder that holds "
                "corpora/wordnet.zip."
            )
    return None


def meteor(text: str, reference: str) -> float:
    """METEOR of a summary against its reference, in [0, 1]; nltk's parameters (alpha .9, beta 3, gamma .5).

    Raises:
        LookupError: WordNet is missing; ask `missing_wordnet` first.
    """
    with _LOCK:
        return float(single_meteor_score(meteor_tokens(reference), meteor_tokens(text)))
