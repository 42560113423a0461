"""Rows laid out in segments: every token is predicted from what came before it, and little is padding.

The truth: for each completion token the sequence that its hidden state has seen, read off the segments, against
the row's prompt and the completion so far.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.policy import packing
from mlx_sumrl.policy.packing import PADDING, SHORT, PackedRows, Row, buckets, micro_batches, pack

from .row_strategies import grouped_rows

few = settings(max_examples=150, deadline=None)


def seen_at(packed: PackedRows) -> list[tuple[int, ...]]:
    """What the hidden state at each position has seen, segments one after the other."""
    seen: list[tuple[int, ...]] = []
    for segment in packed.segments:
        before: list[int] = []
        after = segment.after
        while after is not None:
            prefix = packed.segments[after]
            assert prefix.followed
            [piece] = prefix.tokens_BL.tolist()
            before, after = piece + before, prefix.after
        for row in segment.tokens_BL.tolist():
            seen += [tuple(before + row[: end + 1]) for end in range(len(row))]
    return seen


def work(rows: Sequence[Row], share_prompt: bool) -> int:
    """Positions that have to be computed."""
    prompts = {tuple(prompt) for prompt, _ in rows} if share_prompt else [prompt for prompt, _ in rows]
    return sum(map(len, prompts)) + sum(len(completion) - 1 for _, completion in rows)


def packed_in(rows: list[Row], share_prompt: bool, positions: int) -> PackedRows:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "POSITIONS", positions)
        return pack(rows, share_prompt, in_pieces=True)


POSITIONS = st.sampled_from([1, 3, 16, 192])


@few
@given(rows=grouped_rows(completion=40), share_prompt=st.booleans(), positions=POSITIONS)
def test_each_token_is_predicted_from_what_came_before_it(
    rows: list[Row], share_prompt: bool, positions: int
) -> None:
    packed = packed_in(rows, share_prompt, positions)
    assert all(segment.tokens_BL.size <= positions for segment in packed.segments)
    expected = [((*p, *c[:t]), c[t]) for p, c in rows for t in range(len(c))]
    seen = seen_at(packed)
    assert len(seen) == packed.computed
    positions = packed.positions_N.tolist()
    assert [(seen[p], t) for p, t in zip(positions, packed.targets_N.tolist(), strict=True)] == expected
    # Back in the order of the rows: N different numbers each land in their own row and step.
    lengths = [len(completion) for _, completion in rows]
    numbers = np.arange(1, len(expected) + 1)
    table = np.zeros((len(rows), max(lengths)))
    for row, part in enumerate(np.split(numbers, np.cumsum(lengths)[:-1])):
        table[row, : len(part)] = part
    np.testing.assert_array_equal(packed.by_row(mx.array(numbers.astype(np.float32))), table)
    np.testing.assert_array_equal(packed.mask_BT, table > 0)


@few
@given(rows=grouped_rows(completion=40), share_prompt=st.booleans())
def test_what_is_computed(rows: list[Row], share_prompt: bool) -> None:
    packed = pack(rows, share_prompt)
    assert packed.useful == work(rows, share_prompt)
    assert packed.computed == sum(int(segment.tokens_BL.size) for segment in packed.segments)
    # Every position that is not padding is read by somebody: with what it has seen, or as a prompt's own token.
    wanted = {(*p, *c[:t]) for p, c in rows for t in range(len(c))}
    wanted |= {tuple(p[:end]) for p, _ in rows for end in range(1, len(p))}
    assert wanted <= set(seen_at(packed))
    for place, segment in enumerate(packed.segments):
        followed = any(other.after == place for other in packed.segments)
        alone = [c for p, c in rows if [*p] == segment.tokens_BL.tolist()[0]]
        assert segment.followed == (followed or (share_prompt and len(alone) > 1))
        assert segment.after is None or segment.after < place


@few
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_a_bucket_has_rows_of_like_length(lengths: list[int]) -> None:
    found = buckets(lengths)
    assert sorted(i for bucket in found for i in bucket) == list(range(len(lengths)))
    own = [[lengths[i] for i in bucket] for bucket in found]
    computed = sum(max(bucket) * len(bucket) for bucket in own)
    assert computed - sum(lengths) <= max(PADDING * computed, SHORT)
    # Sorted rows, cut: no bucket reaches into another.
    assert all(min(before) >= max(after) for before, after in pairwise(own))


def test_no_more_buckets_than_needed() -> None:
    assert len(buckets([64] * 9)) == 1
    assert len(buckets([64, 63, 62, 61])) == 1  # 6 of 256 is padding
    assert sorted(map(len, buckets([100, 99, 50, 49, 100, 50]))) == [3, 3]


def realistic(rng: np.random.Generator, groups: int, sizes: tuple[int, int]) -> list[Row]:
    rows: list[Row] = []
    for _ in range(groups):
        prompt = tuple(rng.integers(0, 290, rng.integers(50, 401)).tolist())
        for _ in range(rng.integers(sizes[0], sizes[1] + 1)):
            rows.append((prompt, tuple(rng.integers(0, 290, rng.integers(20, 91)).tolist())))
    return rows


@pytest.mark.parametrize(
    ("groups", "sizes", "share_prompt"),
    [(1, (8, 16), True), (4, (8, 16), True), (4, (8, 16), False), (16, (1, 1), False)],
    ids=["a group", "groups", "not shared", "supervised"],
)
def test_at_most_a_twentieth_is_padding(groups: int, sizes: tuple[int, int], share_prompt: bool) -> None:
    """Measured over these draws: 3.9 % at most with prompts shared, 4.5 % without; less in pieces."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(100):
        rows = realistic(rng, groups, sizes)
        for in_pieces in (True, False):
            packed = pack(rows, share_prompt, in_pieces)
            assert packed.useful == work(rows, share_prompt)
            shares.append(1 - packed.useful / packed.computed)
    assert 0 < max(shares) <= 0.05
    assert max(shares[::2]) <= max(shares[1::2])


def test_a_prompt_is_computed_once_for_its_group() -> None:
    rows = [((1, 2, 3), (4, 5, 6)), ((9,), (8, 7)), ((1, 2, 3), (6, 5, 4)), ((1, 2, 3), (7,))]
    packed = pack(rows, share_prompt=True)
    assert [segment.tokens_BL.tolist() for segment in packed.segments] == [
        [[1, 2, 3]],  # predicts 4, 6 and 7
        [[4, 5], [6, 5]],  # the last tokens predict nothing
        [[9, 8]],
    ]
    assert [segment.after for segment in packed.segments] == [None, 0, None]
    assert packed.positions_N.tolist() == [2, 3, 4, 7, 8, 2, 5, 6, 2]
    assert packed.targets_N.tolist() == [4, 5, 6, 8, 7, 6, 5, 4, 7]
    apart = pack(rows, share_prompt=False)
    assert apart.useful == 5 + 2 + 5 + 3 > packed.useful == 3 + 2 + 2 + 2


def test_a_long_row_is_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "POSITIONS", 4)
    packed = pack(
        [((1, 2, 3, 4, 5), (6, 7)), ((1, 2, 3, 4, 5), (8, 9, 10, 11, 12, 13))], True, in_pieces=True
    )
    assert [segment.tokens_BL.tolist() for segment in packed.segments] == [
        [[1, 2, 3]],
        [[4, 5]],
        [[8, 9, 10]],
        [[11, 12]],
        [[6]],
    ]
    assert [segment.after for segment in packed.segments] == [None, 0, 1, 2, 1]
    assert [segment.followed for segment in packed.segments] == [True, True, True, False, False]
    assert packed.positions_N.tolist() == [4, 10, 4, 5, 6, 7, 8, 9]


@few
@given(rows=grouped_rows(groups=5), share_prompt=st.booleans(), tokens=st.integers(1, 150))
def test_micro_batches(rows: list[Row], share_prompt: bool, tokens: int) -> None:
    parts = micro_batches(rows, share_prompt, tokens)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    for part in parts:
        assert part
        assert len(part) == 1 or work([rows[i] for i in part], share_prompt) <= tokens
    for part, following in itertools.pairwise(parts):  # none could have been larger
        assert work([rows[i] for i in [*part, following[0]]], share_prompt) > tokens
    if (
        share_prompt
    ):  # a group is cut only where a part is full: it comes in one piece, over neighbouring parts
        prompts = [rows[i][0] for part in parts for i in part]
        changes = sum(one != other for one, other in itertools.pairwise(prompts))
        assert changes == len(set(prompts)) - 1
    assert micro_batches(rows, share_prompt, work(rows, share_prompt)) == [
        [i for part in parts for i in part]
    ]


@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("rows", [[], [((), (1,))], [((1,), ())], [((1,), (2,)), ((1,), ())]])
def test_rows_that_make_no_sense(rows: list[Row], share_prompt: bool) -> None:
    with pytest.raises(ValueError, match="at least one row, and every row a prompt and a completion"):
        pack(rows, share_prompt)


def test_no_rows_no_micro_batches() -> None:
    assert micro_batches([], True, 10) == micro_batches([], False, 10) == []
