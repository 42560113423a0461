"""Records of what changed: there and back, sizes known by hand, and bytes that are none refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.changed_values import (
    COUNTS,
    LENGTH,
    SAME,
    SPARSE,
    WHOLE,
    NotAPatchError,
    decoded,
    encoded,
)

TYPES = [np.dtype(name) for name in ("<u1", "<u2", "<u4", "<u8")]


def there_and_back(base: np.ndarray, new: np.ndarray) -> bytes:
    record, changed = encoded(base, new)
    assert changed == np.count_nonzero(base != new)
    back = decoded(base.copy(), record, len(new), new.dtype)
    assert back.dtype == new.dtype
    np.testing.assert_array_equal(back, new)
    assert len(record) <= 1 + new.nbytes
    return record


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    dtype = draw(st.sampled_from(TYPES))
    size = draw(st.integers(1, 2000))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = generator.integers(0, 2 ** (8 * dtype.itemsize) - 1, size, dtype, endpoint=True)
    new = base.copy()
    share = draw(st.sampled_from([0, 0.001, 0.05, 0.5, 1]))
    moved = generator.random(size) < share
    if draw(st.booleans()):  # small changes of either sign, or anything
        new[moved] += generator.integers(-2, 3, moved.sum()).astype(dtype)
    else:
        new[moved] = generator.integers(0, 2 ** (8 * dtype.itemsize) - 1, moved.sum(), dtype, endpoint=True)
    return base, new


@given(pairs())
def test_there_and_back(pair: tuple[np.ndarray, np.ndarray]) -> None:
    there_and_back(*pair)
    _, new = pair
    record, changed = encoded(None, new)
    assert changed == len(new)
    np.testing.assert_array_equal(decoded(None, record, len(new), new.dtype), new)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 1021])
def test_gaps_around_what_a_byte_holds(gap: int, dtype: np.dtype) -> None:
    base = np.zeros(3000, dtype)
    for places in ([gap], [gap, 2 * gap + 1], [2999 - gap], [2999]):
        new = base.copy()
        new[places] = 1
        record = there_and_back(base, new)
        assert record[0] == SPARSE


def test_extreme_patterns() -> None:
    """Of bfloat16: both zeros, both infinities, quiet and signalling NaN with payloads, the smallest, all bits."""
    odd = np.array([0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF, 1, 0x8001], "<u2")
    for old in odd:
        base = np.full(4000, old)
        new = base.copy()
        new[100 : 100 + len(odd)] = odd
        there_and_back(base, new)


def test_what_is_the_same_is_one_byte() -> None:
    base = np.arange(5000, dtype="<u2")
    assert encoded(base, base.copy()) == (bytes([SAME]), 0)


def test_what_has_no_pattern_is_sent_whole() -> None:
    generator = np.random.default_rng(0)
    base, new = (generator.integers(0, 2**16, 5000, "<u2") for _ in range(2))
    record = there_and_back(base, new)
    assert (record[0], len(record)) == (WHOLE, 1 + 2 * 5000)


def test_a_usual_step_comes_near_the_entropy() -> None:
    """7 % of places at random, changes of one unit: log2 of the binomial, and a bit for each sign."""
    generator = np.random.default_rng(0)
    size, share = 1 << 20, 0.07
    base = generator.integers(0, 2**16, size, "<u2")
    new = base.copy()
    moved = generator.random(size) < share
    new[moved] += np.where(generator.random(moved.sum()) < 0.5, 1, -1).astype("<u2")
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) + share
    assert len(there_and_back(base, new)) < 1.1 * entropy * size / 8


BASE = np.arange(1000, dtype="<u2")
NEW = BASE.copy()
NEW[[3, 400, 999]] += 1
RECORD, _ = encoded(BASE, NEW)


def squeezed(plain: bytes) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeezer.compress(plain) + squeezer.flush()


def record_of(changed: int, gap_bytes: int, *streams: bytes) -> bytes:
    head = bytes([SPARSE]) + COUNTS.pack(changed, gap_bytes)
    return head + b"".join(LENGTH.pack(len(one)) for one in streams) + b"".join(streams)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\x07",
        RECORD[:-1],
        RECORD + b"\0",
        RECORD[:5],
        bytes([SAME]) + b"\0",
        bytes([WHOLE]) + bytes(1999),
        bytes([WHOLE]) + bytes(2001),
        record_of(1001, 1001, *[squeezed(bytes(1001))] * 3),  # more changes than values
        record_of(1, 5000, *[squeezed(bytes(1))] * 3),  # more gap bytes than there can be
        record_of(2, 2, squeezed(bytes([250, 255])), *[squeezed(bytes(2))] * 2),  # one change, not two
        record_of(4, 4, squeezed(bytes([254] * 4)), *[squeezed(bytes(4))] * 2),  # past the end
        record_of(1, 1, squeezed(bytes(1)), squeezed(bytes(2)), squeezed(bytes(1))),  # a plane too long
        record_of(1, 1, squeezed(bytes(1)), squeezed(b""), squeezed(bytes(1))),
        record_of(1, 1, squeezed(bytes(1)) + b"more", *[squeezed(bytes(1))] * 2),
        record_of(1, 1, b"\xff\xff\xff", *[squeezed(bytes(1))] * 2),
        bytes([SPARSE]) + COUNTS.pack(1, 1) + struct.pack("<III", 2**31, 0, 0),
    ],
)
def test_bytes_that_are_no_record(record: bytes) -> None:
    with pytest.raises(NotAPatchError):
        decoded(BASE.copy(), record, len(BASE), BASE.dtype)


def test_a_change_to_nothing() -> None:
    for record in (RECORD, bytes([SAME])):
        with pytest.raises(NotAPatchError, match="does not have"):
            decoded(None, record, len(BASE), BASE.dtype)


@given(st.binary(max_size=200), st.integers(0, len(RECORD)))
def test_damage_is_an_error_or_an_array_of_the_same_size(noise: bytes, at: int) -> None:
    """Nothing else may come of it: other values are for the fingerprint to find."""
    for record in (noise, RECORD[:at] + noise, RECORD[:at] + noise + RECORD[at + len(noise) :]):
        try:
            back = decoded(BASE.copy(), record, len(BASE), BASE.dtype)
        except NotAPatchError:
            continue
        assert (back.shape, back.dtype) == (BASE.shape, BASE.dtype)


def test_a_bomb_is_not_unpacked() -> None:
    """256 MB of zeros in a quarter of one: refused without being made."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(256)) + squeezer.flush()
    assert len(bomb) < 0.3e6
    tracemalloc.start()
    for record in (
        record_of(1, 1, bomb, *[squeezed(bytes(1))] * 2),
        record_of(1, 1, squeezed(bytes(1)), bomb, squeezed(bytes(1))),
    ):
        with pytest.raises(NotAPatchError, match="should"):
            decoded(BASE.copy(), record, len(BASE), BASE.dtype)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
