"""Texts put before the judge as data: fenced by marks that they cannot hold. Never imports mlx.

Invariant: the mark of a request is in none of its texts. It is a hash of them, of the seed and of which request it
is: nobody can write a text that holds its own mark, and the same question always has the same mark, so that its
answer is found again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

MARK_DIGITS = 20
"""Hexadecimal digits: 80 bits."""
_CONTROL = re.compile(
    r"<(?=[|\uff5c])"  # <|im_end|> and its like
    r"|<(?=/?(?:s|bos|eos|pad|unk|think|start_of_turn|end_of_turn|start_of_image)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
    r"|<(?=<SYS>>|</SYS>>)"
)


def without_control_tokens(text: str) -> str:
    """Written forms of a chat template's control tokens with a space put into them.

    Servers turn `<|im_end|>` in a message into the token that ends it: a summary that holds it would speak for the
    user, or for the judge itself.
    """
    return _CONTROL.sub(lambda match: f"{match[0]} ", text)


def mark_of(texts: Sequence[str], *also: object) -> str:
    """The mark of a request that holds ``texts``; ``also`` tells it from other requests with the same texts."""
    content = "\0".join([*map(str, also), *(hashlib.sha256(_bytes(text)).hexdigest() for text in texts)])
    for count in range(1000):
        mark = hashlib.sha256(f"{count}\0{content}".encode()).hexdigest()[:MARK_DIGITS]
        if not any(mark in text.lower() for text in texts):
            return mark
    raise AssertionError("a thousand hashes are in the texts that they are hashes of")


def fenced(name: str, text: str, mark: str) -> str:
    """The text between two lines that hold the mark."""
    return f"[BEGIN {name} {mark}]\n{text}\n[END {name} {mark}]"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
