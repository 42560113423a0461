"""A long text -> overlapping chunks of so many tokens at most. Never imports mlx.

Invariant: no text is lost. The first chunk begins where the text does, each of the others after the beginning of the
one before and not after its end, the last one ends where the text does; each ends later than the one before.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from mlx_sumrl.data.encoding import Span

PARAGRAPH, SENTENCE, WORD, TOKEN = 3, 2, 1, 0
"""How good a place to cut is: before a paragraph; before a sentence or a line; before a word; between tokens."""
# A paragraph ends with an empty line. A sentence ends with its mark, whatever closes a quotation after it, and white
# space; a Chinese or Japanese one needs no space. An abbreviation is taken for an end too: no harm for a cut.
_PLACES = (
    (re.compile(r"\n[^\S\n]*\n\s*"), PARAGRAPH),
    (re.compile(r"\n\s*|[.!?…]+[\"'”’»)\]]*\s+|[。！？；]+[”’」』）]*\s*"), SENTENCE),  # noqa: RUF001
    (re.compile(r"\s+"), WORD),
)
NEAR = (0.75, 0.5)
"""The end of a sentence or paragraph to end a chunk with is looked for beyond these shares of its room, in turn."""
TRIED = 8
"""Sizes of chunks that are compared."""


def chunk_spans(text: str, tokens: Sequence[Span], longest: int, overlap: int) -> list[Span]:
    """Chunks of ``text`` as spans of characters, each of at most ``longest`` of its ``tokens`` (spans too, in order).

    As few as can be; of those the ones with most cuts between sentences; of those the ones most alike in length. A
    chunk ends at the best place (paragraph, sentence, word) near the end of its room. The next one begins at the best
    place within the last ``overlap`` tokens of it, the earliest of those where several are as good; that is its very
    end where nothing before is as good a place.

    Raises:
        ValueError: an overlap that is not shorter than a chunk, or a single character of more than ``longest`` tokens.
    """
    if not 0 <= overlap < longest:
        raise ValueError(f"chunks of {longest} tokens cannot overlap by {overlap}")
    cutter = _Cutter(text, tokens)
    best = cutter.spans(longest, overlap)
    # A short last chunk says little by itself: with less room each, chunks are more alike.
    even = (len(tokens) + (len(best) - 1) * overlap) // len(best)
    for room in range(longest, max(even, overlap), -max((longest - even) // TRIED, 1)):
        try:
            tried = cutter.spans(room, overlap)
        except ValueError:
            break
        if (len(tried), -cutter.sentences(tried)) <= (len(best), -cutter.sentences(best)):
            best = tried
    return best


class _Cutter:
    """The places of one text where it may be cut."""

    def __init__(self, text: str, tokens: Sequence[Span]) -> None:
        self.end = len(text)
        self._starts = [start for start, end in tokens if end > start]
        self._ends = [end for start, end in tokens if end > start]
        ranks = dict.fromkeys([*self._starts, *self._ends], TOKEN)
        for pattern, rank in reversed(_PLACES):
            ranks |= dict.fromkeys((match.end() for match in pattern.finditer(text)), rank)
        ranks = {place: rank for place, rank in ranks.items() if 0 < place < self.end}
        self._places = [*sorted(ranks), self.end]
        self._ranks = [*(ranks[place] for place in self._places[:-1]), PARAGRAPH]

    def spans(self, longest: int, overlap: int) -> list[Span]:
        """See `chunk_spans`; the last chunk may be a short one."""
        spans: list[Span] = []
        start, done = 0, 0
        while not spans or done < self.end:
            end = self._chunk_end(start, done, longest)
            if end is None and start < done:
                start = done  # what is repeated leaves no room for anything new
                continue
            if end is None:
                raise ValueError(f"a character at {start} is written in more than {longest} tokens")
            spans.append((start, end))
            done = end
            if done < self.end:
                start = self._next_start(start, end, overlap)
        return spans

    def sentences(self, spans: Sequence[Span]) -> int:
        """Cuts between sentences or paragraphs."""
        inner = [start for start, _ in spans[1:]] + [end for _, end in spans[:-1]]
        return sum(self._ranks[bisect_left(self._places, place)] >= SENTENCE for place in inner)

    def _count(self, start: int, end: int) -> int:
        """Tokens of which at least a part is in between."""
        return max(bisect_left(self._starts, end) - bisect_right(self._ends, start), 0)

    def _chunk_end(self, start: int, done: int, longest: int) -> int | None:
        """The best place after ``done`` that the chunk has room for."""
        first = bisect_right(self._places, done)
        last = bisect_right(self._places, longest, lo=first, key=lambda place: self._count(start, place))
        if last == len(self._places):
            return self.end
        if last == first:
            return None
        chosen: list[tuple[int, int]] = []
        for share in NEAR:
            near = bisect_left(
                self._places,
                share * longest,
                lo=first,
                hi=last - 1,
                key=lambda place: self._count(start, place),
            )
            chosen.append(max((self._ranks[i], self._places[i]) for i in range(near, last)))
            if chosen[-1][0] >= SENTENCE:
                return chosen[-1][1]
        return chosen[0][1]

    def _next_start(self, start: int, end: int, overlap: int) -> int:
        """The best place in the last ``overlap`` tokens of the chunk."""
        last = bisect_left(self._places, end)
        first = bisect_left(
            self._places,
            -overlap,
            lo=bisect_right(self._places, start),
            hi=last,
            key=lambda place: -self._count(place, end),
        )
        candidates = range(first, last + 1)
        return self._places[max(candidates, key=lambda i: (self._ranks[i], -i))]
