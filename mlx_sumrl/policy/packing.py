"""Rows of prompt and completion laid out so that little is computed twice and little for nothing.

A prompt that several completions follow is computed once, by itself; its completions follow it in segments of like
length. In pieces, a segment has `POSITIONS` at most: more rows than that go into several, and a longer row is a chain
of them, each following the one before. So what lives at once while a segment is computed does not grow with the
batch, and with the length of a row only as attention's scores do; which costs up to a fifth more time. What is
computed beyond real tokens is padding, at most `PADDING` of it all. The last token of a completion predicts nothing
that is trained, so it is never read.

Invariant: log-probabilities come back as [B, T] in the order in which the rows were given, whatever the layout.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

Row = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of the completion that follows it."""

PADDING = 0.045
"""Most of what rows take that may be padding."""
POSITIONS = 192
"""Of a segment at most, padding counted, where rows are laid out in pieces."""
SHORT = 8
"""Positions of padding that there may be in any case: segments of a token each would not be faster."""


@dataclass(frozen=True)
class Segment:
    """Rows of like length that run through the model as one array."""

    tokens_BL: mx.array
    """int32, padded on the right with 0."""
    after: int | None = None
    """The segment, of a single row, that all of these rows follow; None where rows begin here."""
    followed: bool = False
    """Whether other segments follow this one."""


@dataclass(frozen=True)
class PackedRows:
    """B rows, T tokens in their longest completion, N completion tokens in all."""

    segments: tuple[Segment, ...]
    """Prompts before what follows them."""
    positions_N: mx.array
    """int32, where the hidden state that predicts each completion token is, segments one after the other."""
    targets_N: mx.array
    """int32, the completion tokens, row by row."""
    places_BT: mx.array
    """int32, index into N of each row's tokens; 0 at padding."""
    mask_BT: mx.array
    """float32, 1 at real completion tokens."""
    useful: int
    """Token positions that have to be computed."""
    stop_ids: tuple[int, ...] = ()
    """K tokens whose log-probabilities are asked for at each position too: `positions_N` and `targets_N` then hold the
    completion tokens, and each of these at all of their positions after them, (1 + K) N in all."""

    @property
    def computed(self) -> int:
        """Token positions that are computed, padding counted."""
        return sum(int(segment.tokens_BL.size) for segment in self.segments)

    def by_row(self, values_N: mx.array) -> mx.array:
        """Values of completion tokens [N] as [B, T], 0 at padding; with `stop_ids`, of [(1 + K) N] as [1 + K, B, T]."""
        if not self.stop_ids:
            return values_N[self.places_BT] * self.mask_BT
        values_KN = values_N.reshape(1 + len(self.stop_ids), -1)
        return values_KN[:, self.places_BT] * self.mask_BT

    @property
    def without_stops(self) -> PackedRows:
        """The same rows, of which only the completion tokens are asked for."""
        N = self.targets_N.size // (1 + len(self.stop_ids))
        return replace(self, positions_N=self.positions_N[:N], targets_N=self.targets_N[:N], stop_ids=())


def pack(
    rows: Sequence[Row], share_prompt: bool, in_pieces: bool = False, stop_ids: Sequence[int] = ()
) -> PackedRows:
    """Lay rows out; ``share_prompt`` computes prompts that several rows have in common once.

    ``stop_ids``: see `PackedRows.stop_ids`.

    ``in_pieces``: in segments of `POSITIONS` at most, for what is computed segment by segment.

    Raises ValueError for an empty prompt or completion, or no rows.
    """
    if not rows or any(not prompt or not completion for prompt, completion in rows):
        raise ValueError("a batch needs at least one row, and every row a prompt and a completion")
    segments: list[Segment] = []
    starts = np.zeros(len(rows), np.int64)
    """Position of the hidden state that predicts a row's second completion token."""
    firsts = np.zeros(len(rows), np.int64)
    """Position of the one that predicts its first."""
    computed = useful = 0
    most = POSITIONS if in_pieces else sys.maxsize

    def chain(ids: Sequence[int], after: int | None, followed: bool = False) -> int:
        """Add a row by itself; its last segment."""
        nonlocal computed, useful
        pieces = np.array_split(np.asarray(ids, np.int32), -(-len(ids) // most))
        for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
            segments.append(Segment(mx.array(piece[None]), after, followed or left > 0))
            after = len(segments) - 1
        computed, useful = computed + len(ids), useful + len(ids)
        return len(segments) - 1

    def lay(chosen: list[int], read: list[Sequence[int]], after: int | None) -> Iterator[tuple[int, int]]:
        """Add segments for these rows; each row with the position where its segment has it."""
        nonlocal computed, useful
        for bucket in _cut(buckets([len(ids) for ids in read]), read, most):
            if len(bucket) == 1:
                yield chosen[bucket[0]], computed
                chain(read[bucket[0]], after)
                continue
            tokens = np.zeros((len(bucket), max(len(read[i]) for i in bucket)), np.int32)
            for line, i in enumerate(bucket):
                tokens[line, : len(read[i])] = read[i]
                yield chosen[i], computed + line * tokens.shape[1]
                useful += len(read[i])
            segments.append(Segment(mx.array(tokens), after))
            computed += tokens.size

    alone: list[int] = []
    for prompt, members in _by_prompt(rows, share_prompt):
        if len(members) == 1:
            alone += members
            continue
        place = chain(prompt, None, followed=True)
        firsts[members] = computed - 1
        # A completion of one token is predicted by the prompt alone.
        longer = [i for i in members if len(rows[i][1]) > 1]
        for row, position in lay(longer, [rows[i][1][:-1] for i in longer], place):
            starts[row] = position
    for row, position in lay(alone, [[*rows[i][0], *rows[i][1][:-1]] for i in alone], None):
        firsts[row] = position + len(rows[row][0]) - 1
        starts[row] = firsts[row] + 1
    return _packed(rows, tuple(segments), firsts, starts, useful, stop_ids)


def learning(rows: PackedRows, learned: Sequence[Sequence[bool]]) -> PackedRows:
    """The same rows, of whose completion tokens only those that are ``learned`` (row by row) count.

    The others are read as before, and no log-probability is computed of them: it is 0, and so is their mask.
    """
    keep = np.concatenate([np.asarray(row, bool) for row in learned])
    if keep.all():
        return rows
    real = np.array(rows.mask_BT) > 0
    mask = np.zeros(real.shape, bool)
    mask[real] = keep
    places = np.zeros(real.shape, np.int32)
    places[mask] = np.arange(keep.sum())
    kept = mx.array(np.flatnonzero(keep).astype(np.int32))
    return replace(
        rows,
        positions_N=rows.positions_N[kept],
        targets_N=rows.targets_N[kept],
        places_BT=mx.array(places),
        mask_BT=mx.array(mask.astype(np.float32)),
    )


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of like lengths together, the longest first: few buckets, of which at most `PADDING` is padding.

    Starts with one and splits where that saves most, since a bucket more costs time, too.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    long = [lengths[i] for i in order]
    read = np.concatenate([[0], np.cumsum(long)])
    parts = [(0, len(order))] if order else []

    def split(part: tuple[int, int]) -> tuple[int, int]:
        """(positions saved, where) of the best split of a part."""
        start, end = part
        return max(((long[start] - long[at]) * (end - at), at) for at in range(start + 1, end))

    while parts:
        computed = sum(long[start] * (end - start) for start, end in parts)
        if computed - read[-1] <= max(PADDING * computed, SHORT):
            break
        saved, at, part = max((*split(part), part) for part in parts if part[1] - part[0] > 1)
        if saved == 0:
            break
        parts.remove(part)
        parts += [(part[0], at), (at, part[1])]
    return [order[start:end] for start, end in sorted(parts)]


def _cut(parts: list[list[int]], read: list[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Buckets, the longest row first, of ``most`` positions or a single row."""
    for part in parts:
        fit = max(most // len(read[part[0]]), 1)
        count = -(-len(part) // fit)
        yield from (indices.tolist() for indices in np.array_split(np.array(part), count))


def micro_batches(rows: Sequence[Row], share_prompt: bool, tokens: int) -> list[list[int]]:
    """Indices of the rows in parts that need about ``tokens`` positions each at most, and at least a row.

    Rows that share a prompt stay together where they fit, since the prompt is computed once for each part.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    if share_prompt:
        order = [i for _, members in _by_prompt(rows, True) for i in members]
    parts: list[list[int]] = []
    used = 0
    prompt: Sequence[int] | None = None
    """The prompt that the part has already."""
    for i in order:
        own = len(rows[i][1]) - 1
        cost = own if share_prompt and prompt == rows[i][0] else own + len(rows[i][0])
        if not parts or used + cost > tokens:
            parts.append([])
            used, cost = 0, own + len(rows[i][0])
        parts[-1].append(i)
        used, prompt = used + cost, rows[i][0]
    return parts


def _by_prompt(rows: Sequence[Row], share_prompt: bool) -> list[tuple[Sequence[int], list[int]]]:
    """Prompts and the rows that have them, in order of their first; without sharing each row by itself."""
    if not share_prompt:
        return [(prompt, [i]) for i, (prompt, _) in enumerate(rows)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, _) in enumerate(rows):
        groups.setdefault(tuple(prompt), []).append(i)
    return list(groups.items())


def _packed(
    rows: Sequence[Row],
    segments: tuple[Segment, ...],
    firsts: np.ndarray,
    starts: np.ndarray,
    useful: int,
    stop_ids: Sequence[int],
) -> PackedRows:
    lengths = np.array([len(completion) for _, completion in rows])
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    steps = np.arange(lengths.max())[None, :]
    mask = steps < lengths[:, None]
    positions = np.where(steps == 0, firsts[:, None], starts[:, None] + steps - 1)
    stops = np.asarray(stop_ids, np.int32)
    return PackedRows(
        segments=segments,
        positions_N=mx.array(np.tile(positions[mask].astype(np.int32), 1 + len(stop_ids))),
        targets_N=mx.array(
            np.concatenate([*(np.asarray(c, np.int32) for _, c in rows), np.repeat(stops, mask.sum())])
        ),
        places_BT=mx.array(np.where(mask, offsets[:, None] + steps, 0).astype(np.int32)),
        mask_BT=mx.array(mask.astype(np.float32)),
        useful=useful,
        stop_ids=tuple(stop_ids),
    )
