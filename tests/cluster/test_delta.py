"""Patches of whole weights: bit for bit, whatever the types, shapes and files; damaged or hostile ones refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cluster.delta import MARK, PATCH, Header, MadeFile, PatchError, Tensor, make_patch, rebuild
from cluster.weight_files import CHUNK, weights_fingerprint
from mlx_sumrl.errors import UserError

ROOT = Path(__file__).parents[2]
Raw = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Tensors by name: safetensors type, shape, bytes."""
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}


def write_raw(file: Path, tensors: Raw) -> None:
    """A safetensors file by hand, for types that numpy does not have."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        header[name], end = entry, end + len(data)  # type: ignore[assignment]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def read_raw(folder: Path) -> Raw:
    """All tensors of a folder, read by hand."""
    found: Raw = {}
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (8 + length + place for place in entry["data_offsets"])
            found[name] = (entry["dtype"], tuple(entry["shape"]), content[begin:end])
    return found


def folder_of(path: Path, *files: Raw) -> Path:
    path.mkdir(parents=True)
    for number, tensors in enumerate(files):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}.safetensors"
        write_raw(path / name, tensors)
    (path / "config.json").write_text('{"model_type": "made"}')
    (path / "tokenizer.json").write_text("{}")
    return path


def moved(data: bytes, width: int, generator: np.random.Generator, share: float) -> bytes:
    values = np.frombuffer(data, f"<u{width}").copy()
    which = generator.random(len(values)) < share
    values[which] += generator.integers(-1, 2, which.sum()).astype(values.dtype)
    return values.tobytes()


ODD = {
    "BF16": [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF, 0x0001],
    "F16": [0x0000, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF, 0x0001],
    "F32": [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 1],
}
"""Both zeros, both infinities, a quiet NaN, NaN with payloads, the smallest number."""


@st.composite
def versions(draw: st.DrawFn) -> tuple[list[Raw], list[Raw]]:
    """Two versions of weights, each in one to three files: tensors stay, change, come, go, change type or shape."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = st.sampled_from([(), (0,), (0, 4), (1,), (7,), (3, 5), (300, 4), (2, 0, 3), (5, 1, 3)])

    def tensor() -> tuple[str, tuple[int, ...], bytes]:
        dtype, shape = draw(st.sampled_from(sorted(WIDTHS))), draw(shapes)
        size = int(np.prod(shape, dtype=int))
        values = generator.integers(0, 2 ** (8 * WIDTHS[dtype]) - 1, size, f"<u{WIDTHS[dtype]}")
        values[generator.random(size) < 0.1] = draw(st.sampled_from(ODD[dtype]))
        return dtype, shape, values.tobytes()

    old: Raw = {}
    new: Raw = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6, unique=True)):
        fate = draw(st.sampled_from(["stays", "moves", "other", "comes", "goes"]))
        one = tensor()
        if fate != "comes":
            old[name] = one
        if fate == "stays":
            new[name] = one
        elif fate == "moves":
            new[name] = (*one[:2], moved(one[2], WIDTHS[one[0]], generator, draw(st.sampled_from([0.05, 1]))))
        elif fate in ("other", "comes"):
            new[name] = tensor()

    def spread(tensors: Raw) -> list[Raw]:
        files: list[Raw] = [{} for _ in range(draw(st.integers(1, 3)))]
        for name in draw(st.permutations(sorted(tensors))):
            files[draw(st.integers(0, len(files) - 1))][name] = tensors[name]
        return files

    return spread(old), spread(new)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(pair=versions())
def test_there_and_back(pair: tuple[list[Raw], list[Raw]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("versions")
    base, new = folder_of(folder / "base", *pair[0]), folder_of(folder / "new", *pair[1])
    summary = make_patch(base, new, folder / "patch")
    assert [path.name for path in (folder / "patch").iterdir()] == [PATCH]
    assert summary.bytes == (folder / "patch" / PATCH).stat().st_size
    assert summary.full_bytes == sum(file.stat().st_size for file in new.glob("*.safetensors"))
    assert summary.fingerprint == weights_fingerprint(new)
    rebuild(base, folder / "patch", folder / "out")
    assert read_raw(folder / "out") == read_raw(new)
    # The files themselves are as they were, those that go along are the base's, and nothing else is left over.
    for file in new.glob("*.safetensors"):
        assert (folder / "out" / file.name).read_bytes() == file.read_bytes()
    names = {path.name for path in new.iterdir()}
    index = {"model.safetensors.index.json"} if len(pair[1]) > 1 else set()
    assert {path.name for path in (folder / "out").iterdir()} == names | index
    assert sorted(path.name for path in folder.iterdir()) == ["base", "new", "out", "patch"]


def bfloat16(values: np.ndarray) -> bytes:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def two_versions(folder: Path, size: int = 20_000) -> tuple[Path, Path]:
    generator = np.random.default_rng(0)
    old, new = {}, {}
    for name in ("a", "b", "c"):
        data = bfloat16(0.02 * generator.standard_normal(size))
        old[name] = ("BF16", (size,), data)
        new[name] = ("BF16", (size,), moved(data, 2, generator, 0.07))
    return folder_of(folder / "base", old), folder_of(folder / "new", new)


def test_a_fingerprint_by_hand(tmp_path: Path) -> None:
    tensors: Raw = {"b": ("F32", (2,), bytes(range(8))), "a": ("BF16", (1, 2), b"abcd")}
    expected = hashlib.sha256(b'["a", "BF16", [1, 2]]\nabcd["b", "F32", [2]]\n' + bytes(range(8))).hexdigest()
    assert weights_fingerprint(folder_of(tmp_path / "one", tensors)) == expected
    files: list[Raw] = [{"b": tensors["b"]}, {"a": tensors["a"]}]
    assert weights_fingerprint(folder_of(tmp_path / "two", *files)) == expected
    for change in (("F16", (1, 2), b"abcd"), ("BF16", (2, 1), b"abcd"), ("BF16", (1, 2), b"abce")):
        other = folder_of(tmp_path / str(change), {**tensors, "a": change})
        assert weights_fingerprint(other) != expected


def test_more_than_one_piece_of_a_tensor(tmp_path: Path) -> None:
    base, new = two_versions(tmp_path, CHUNK + 12_345)
    summary = make_patch(base, new, tmp_path / "patch")
    rebuild(base, tmp_path / "patch", tmp_path / "out")
    assert read_raw(tmp_path / "out") == read_raw(new)
    share = summary.bytes / summary.full_bytes
    assert 0.02 < share < 0.035
    changed = sum(
        np.count_nonzero(
            np.frombuffer(read_raw(new)[n][2], "<u2") != np.frombuffer(read_raw(base)[n][2], "<u2")
        )
        for n in "abc"
    )
    assert summary.changed == changed / (3 * (CHUNK + 12_345))


def test_what_is_written_by_the_safetensors_library(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tensors = {name: generator.standard_normal((50, 60)).astype(np.float32) for name in ("x", "y")}
    for version in ("base", "new"):
        (tmp_path / version).mkdir()
        save_file(tensors, tmp_path / version / "model.safetensors", metadata={"format": "pt"})
        tensors = {name: array + np.float32(1e-6) for name, array in tensors.items()}
    make_patch(tmp_path / "base", tmp_path / "new", tmp_path / "patch")
    rebuild(tmp_path / "base", tmp_path / "patch", tmp_path / "out")
    back = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in load_file(tmp_path / "new" / "model.safetensors").items():
        np.testing.assert_array_equal(back[name].view(np.uint32), array.view(np.uint32))


def test_a_chain_of_versions(tmp_path: Path) -> None:
    """The rebuilt version is the base of the next."""
    generator = np.random.default_rng(1)
    held, newest = two_versions(tmp_path)
    for step in range(3):
        make_patch(held, newest, tmp_path / f"patch-{step}")
        rebuild(held, tmp_path / f"patch-{step}", tmp_path / f"rebuilt-{step}")
        assert weights_fingerprint(tmp_path / f"rebuilt-{step}") == weights_fingerprint(newest)
        tensors = {
            name: (dtype, shape, moved(data, 2, generator, 0.05))
            for name, (dtype, shape, data) in read_raw(newest).items()
        }
        held, newest = tmp_path / f"rebuilt-{step}", folder_of(tmp_path / f"new-{step}", tensors)


def test_only_plain_files_go_along(tmp_path: Path) -> None:
    base, new = two_versions(tmp_path)
    for name in ("pytorch_model.bin", "modeling_odd.py", ".hidden.json", "merges.txt", "weights.pkl"):
        (base / name).write_text("x")
    make_patch(base, new, tmp_path / "patch")
    rebuild(base, tmp_path / "patch", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "merges.txt",
    }


def refused(base: Path, patch: Path, out: Path, said: str | None = None) -> None:
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(PatchError, match=said):
        rebuild(base, patch, out)
    assert sorted(path.name for path in out.parent.iterdir()) == before


def test_another_base_is_named(tmp_path: Path) -> None:
    base, new = two_versions(tmp_path)
    make_patch(base, new, tmp_path / "patch")
    refused(new, tmp_path / "patch", tmp_path / "out", "made for other weights")
    tensors = read_raw(base)
    data = bytearray(tensors["b"][2])
    data[777] ^= 1  # a single bit
    one_bit = folder_of(tmp_path / "bit", {**tensors, "b": (*tensors["b"][:2], bytes(data))})
    refused(one_bit, tmp_path / "patch", tmp_path / "out", "made for other weights")
    other_shape = folder_of(tmp_path / "shape", {**tensors, "b": ("BF16", (200, 100), tensors["b"][2])})
    refused(other_shape, tmp_path / "patch", tmp_path / "out", "made for other weights")


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    base, new = two_versions(tmp_path, 600)
    make_patch(base, new, tmp_path / "patch")
    whole = (tmp_path / "patch" / PATCH).read_bytes()
    (tmp_path / "damaged").mkdir()
    file = tmp_path / "damaged" / PATCH
    generator = np.random.default_rng(0)
    found = 0
    for at in [*range(40), *generator.integers(40, len(whole), 150).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(generator.integers(8))
        file.write_bytes(damaged)
        try:
            rebuild(base, tmp_path / "damaged", tmp_path / "out")
        except PatchError:
            found += 1
            continue
        # What does not matter may pass: bits that fill a byte up, the name of the file. The weights are exact.
        assert read_raw(tmp_path / "out") == read_raw(new)
        shutil.rmtree(tmp_path / "out")
    assert found > 120
    for cut in [0, 5, len(MARK), len(MARK) + 4, 100, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:cut])
        refused(base, tmp_path / "damaged", tmp_path / "out")
    file.write_bytes(whole + b"\0")
    refused(base, tmp_path / "damaged", tmp_path / "out", "after its end")


def with_header(folder: Path, change: Callable[[dict[str, object]], object], base: Path, new: Path) -> Path:
    """A patch whose header was changed and is otherwise whole."""
    make_patch(base, new, folder)
    whole = (folder / PATCH).read_bytes()
    at = len(MARK) + 8
    length = int.from_bytes(whole[len(MARK) : at], "little")
    header = json.loads(whole[at : at + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / PATCH).write_bytes(MARK + struct.pack("<Q", len(text)) + text + whole[at + length :])
    return folder


TENSOR = {"name": "z", "dtype": "BF16", "shape": [1 << 48]}


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(files={}),
        lambda header: header.update(files={"../model.safetensors": header["files"]["model.safetensors"]}),
        lambda header: header.update(files={"/tmp/x.safetensors": header["files"]["model.safetensors"]}),
        lambda header: header.update(files={".x.safetensors": header["files"]["model.safetensors"]}),
        lambda header: header.update(files={"config.json": header["files"]["model.safetensors"]}),
        lambda header: header.update(chunk=1 << 40),
        lambda header: header.update(more=1),
        lambda header: header.pop("base"),
        lambda header: header.update(new="A" * 64),
        lambda header: header["files"]["model.safetensors"]["tensors"].append(TENSOR),
        lambda header: header["files"]["model.safetensors"]["tensors"].append({**TENSOR, "shape": [-1]}),
        lambda header: header["files"]["model.safetensors"]["tensors"].append(
            {**TENSOR, "shape": [1 << 49] * 8}
        ),
        lambda header: header["files"]["model.safetensors"]["tensors"].append({**TENSOR, "dtype": "F1"}),
        lambda header: header["files"]["model.safetensors"]["tensors"].append({**TENSOR, "name": "a"}),
        lambda header: header["files"]["model.safetensors"]["tensors"].append(
            {**TENSOR, "name": "__metadata__", "shape": []}
        ),
        lambda header: header["files"]["model.safetensors"]["tensors"].pop(),
        lambda header: header["files"]["model.safetensors"]["tensors"][0].update(shape=[10**9, 10**5]),
    ],
)
def test_a_header_that_lies(change: Callable[[dict[str, object]], object], tmp_path: Path) -> None:
    base, new = two_versions(tmp_path, 600)
    patch = with_header(tmp_path / "patch", change, base, new)
    refused(base, patch, tmp_path / "out")


def test_other_files_under_a_patch_s_name(tmp_path: Path) -> None:
    base, _ = two_versions(tmp_path, 600)
    (tmp_path / "patch").mkdir()
    refused(base, tmp_path / "patch", tmp_path / "out", f"no {PATCH}")
    for content in (b"", b"\x80\x04\x95pickle", MARK, MARK + struct.pack("<Q", 2**63), b"PK\x03\x04"):
        (tmp_path / "patch" / PATCH).write_bytes(content)
        refused(base, tmp_path / "patch", tmp_path / "out", "cannot be applied")
    deep = b"[" * 100_000
    (tmp_path / "patch" / PATCH).write_bytes(MARK + struct.pack("<Q", len(deep)) + deep)
    refused(base, tmp_path / "patch", tmp_path / "out", "header")


def test_folders_without_weights(tmp_path: Path) -> None:
    base, new = two_versions(tmp_path, 600)
    (tmp_path / "none").mkdir()
    for one, other in ((tmp_path / "none", new), (base, tmp_path / "none"), (tmp_path / "nowhere", new)):
        with pytest.raises(UserError, match="no safetensors"):
            make_patch(one, other, tmp_path / "patch")
    write_raw(new / "model-2.safetensors", {"a": read_raw(new)["a"]})
    with pytest.raises(UserError, match="keep one"):
        make_patch(base, new, tmp_path / "patch")
    (new / "model-2.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(UserError, match="header"):
        make_patch(base, new, tmp_path / "patch")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    base, new = two_versions(tmp_path, 600)
    make_patch(base, new, tmp_path / "patch")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    refused(base, tmp_path / "patch", tmp_path / "out", "already")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_a_header_is_what_the_types_say() -> None:
    tensor = Tensor(name="a", dtype="BF16", shape=(2, 3))
    files = {"model.safetensors": MadeFile(metadata={"format": "pt"}, tensors=(tensor,))}
    header = Header(base="0" * 64, new="1" * 64, files=files)
    assert Header.model_validate_json(header.model_dump_json()) == header


MEASURE = """
import sys
from pathlib import Path
from cluster.delta import make_patch, rebuild
def largest():
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
folder = Path(sys.argv[2])
before = largest()
if sys.argv[1] == "patch":
    make_patch(folder / "base", folder / "new", folder / "patch")
else:
    rebuild(folder / "base", folder / "patch", folder / "out")
print(largest() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads a process's peak from /proc")
def test_either_side_holds_a_few_pieces(tmp_path: Path) -> None:
    """160 MB of weights in one tensor: both sides stay below what a dozen pieces take."""
    size = 80_000_000
    for version, value in (("base", 0x3C00), ("new", 0x3C01)):
        (tmp_path / version).mkdir()
        header = {"a": {"dtype": "BF16", "shape": [size], "data_offsets": [0, 2 * size]}}
        text = json.dumps(header).encode()
        with (tmp_path / version / "model.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            piece = np.full(1_000_000, 0x3C00, "<u2")
            piece[:: 3 if value & 1 else 1_000_000] = value
            for _ in range(80):
                stream.write(piece.data)
    for part in ("patch", "rebuild"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, part, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 60e6
    assert weights_fingerprint(tmp_path / "out") == weights_fingerprint(tmp_path / "new")
