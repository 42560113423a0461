"""Headers: what the reference library writes passes, and what lies does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cluster.safetensors_header import HeaderError, read_header
from tests.cluster.running_worker import floats, safetensors

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def written(path: Path, header: Any, data: bytes = floats(1, 2), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_the_reference_library_s_file_passes(tmp_path: Path) -> None:
    arrays = {
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.zeros((0, 4), np.float16),
        "scalar": np.array(3, np.int64),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in found.items()} == {
        "b.weight": ("F32", (2, 3)),
        "a": ("F16", (0, 4)),
        "scalar": ("I64", ()),
    }


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**GOOD["a"], **changes}}


LIES: dict[str, Any] = {
    "longer than the file": entry(data_offsets=[0, 800], shape=[200]),
    "before the data": entry(data_offsets=[-8, 0]),
    "backwards": entry(data_offsets=[8, 0]),
    "shape of more": entry(shape=[3]),
    "dtype of more": entry(dtype="F64"),
    "unknown dtype": entry(dtype="PICKLE"),
    "dtype no text": entry(dtype=["F32"]),
    "huge shape": entry(shape=[1 << 62, 1 << 62]),
    "negative shape": entry(shape=[-2]),
    "fractional shape": entry(shape=[2.0]),
    "true as a size": entry(shape=[2, True]),
    "many dimensions": entry(shape=[2] + [1] * 100),
    "gap": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "overlap": {**GOOD, "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "trailing bytes": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    "no tensors but bytes": {},
    "extra key": entry(module="os"),
    "missing key": {"a": {"dtype": "F32", "shape": [2]}},
    "list": [],
    "tensor is a list": {"a": []},
    "metadata no text": {**GOOD, "__metadata__": {"a": 1}},
    "metadata a list": {**GOOD, "__metadata__": []},
    "not JSON": b"{" * 20,
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"\xff": 1}',
    "twice": b'{"a": %b, "a": %b}' % ((json.dumps(GOOD["a"]).encode(),) * 2),
    "NaN": entry(shape=[float("nan")]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    assert read_header(written(tmp_path / "good.safetensors", GOOD))["a"].shape == (2,)
    with pytest.raises(HeaderError, match=r"lie\.safetensors"):
        read_header(written(tmp_path / "lie.safetensors", LIES[lie]))


@pytest.mark.parametrize("length", [0, 1, 1000, 1 << 40, (1 << 64) - 1])
def test_a_header_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(HeaderError):
        read_header(written(tmp_path / "x.safetensors", GOOD, length=length))


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(HeaderError):
        read_header(path)


@given(st.data())
def test_one_changed_byte_never_passes_what_the_reference_refuses(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(safetensors({"a": ("F32", [2], floats(1, 2)), "b": ("F16", [3], b"123456")}))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    path.write_bytes(whole)
    try:
        ours = set(read_header(path))
    except HeaderError:
        return
    try:
        with safe_open(path, "np") as file:
            theirs = set(file.keys())
    except SafetensorError as error:
        raise AssertionError(f"the reference refuses what passed: {error}") from error
    assert ours == theirs
