"""Where JSON objects and lists begin and end in a text that comes piece by piece. Never imports mlx.

Brackets and strings are all that is looked at, so a value that is nearly JSON (a trailing comma, a bare word) has an
end too. Bytes, because tokens end inside of characters: in UTF-8 no part of another character is ever a bracket or
a quotation mark.

Invariant: of a valid JSON object or list, the end is the byte after its closing bracket, however it is cut in pieces.
"""

from __future__ import annotations

_CLOSES = {ord("}"): ord("{"), ord("]"): ord("[")}
_QUOTE, _BACKSLASH = ord('"'), ord("\\")


class JsonScanner:
    """Reads up to the end of the first value."""

    def __init__(self, opening: bytes = b"{[") -> None:
        """`opening`: the brackets that a value may begin with; all before the first of them is passed over."""
        self._opening = opening
        self._open: list[int] = []
        self._in_string = False
        self._escaped = False
        self.begun = False
        """Whether the value has begun."""
        self.complete = False
        """Whether it has ended; nothing more is looked at then."""

    def feed(self, piece: bytes) -> int:
        """How many bytes of the piece were read: all, or those up to and with the value's closing bracket."""
        if self.complete:
            return 0
        for read, byte in enumerate(piece, start=1):
            self._take(byte)
            if self.complete:
                return read
        return len(piece)

    def _take(self, byte: int) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif byte == _BACKSLASH:
                self._escaped = True
            elif byte == _QUOTE:
                self._in_string = False
        elif not self.begun:
            if byte in self._opening:
                self.begun = True
                self._open.append(byte)
        elif byte == _QUOTE:
            self._in_string = True
        elif byte in b"{[":
            self._open.append(byte)
        elif byte in _CLOSES and _CLOSES[byte] in self._open:
            # What was left open inside ends with what it stands in; a bracket that closes nothing is passed over.
            while self._open.pop() != _CLOSES[byte]:
                pass
            self.complete = not self._open


def value_spans(text: bytes, opening: bytes = b"{[") -> tuple[list[tuple[int, int]], int | None]:
    """First byte of each complete value of a text, and the one after its last; and where one begins that never ends."""
    spans: list[tuple[int, int]] = []
    at = 0
    while True:
        begin = min((place for one in opening if (place := text.find(one, at)) >= 0), default=None)
        if begin is None:
            return spans, None
        scanner = JsonScanner(opening)
        at = begin + scanner.feed(text[begin:])
        if not scanner.complete:
            return spans, begin
        spans.append((begin, at))
