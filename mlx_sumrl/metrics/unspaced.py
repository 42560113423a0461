"""Scripts written without spaces between words, in which a character counts as a word. Never imports mlx."""

from __future__ import annotations

import re
import unicodedata

# Scripts written without spaces between words, and Hangul, whose words carry their particles: one character
# is one token, as in the character ROUGE that Chinese summarisation reports (LCSTS, Hu et al. 2015).
UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # Hangul
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029"  # radicals and marks of Han
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uffdc"  # kana, bopomofo, half-width kana and jamo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
# Vowel signs and the like belong to the character before them, but are not \w in Python's re.
MARKS = "".join(
    chr(code) for code in range(0x0300, 0x10000) if unicodedata.category(chr(code)).startswith("M")
)
UNSPACED_CHARACTER = rf"(?!\W)[{UNSPACED}][{MARKS}]*"
_UNSPACED_RE = re.compile(UNSPACED_CHARACTER)


def space_characters(text: str) -> str:
    """Put spaces around each character of a script written without them (Han, kana, Hangul, Thai, ...).

    Makes such text fit for any tokenizer that looks for spaces; leaves all other text as it is.
    """
    return _UNSPACED_RE.sub(r" \g<0> ", text)
