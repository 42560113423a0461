"""Versions in folders: whole or not there, checked, the active one never removed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cluster.refusal import Refusal
from cluster.weight_check import WeightCheck
from cluster.weight_store import BASE, MOST_ARRIVING, PIECE, WeightStore
from cluster.wire import FileName, Manifest, Stored, WeightFile
from tests.cluster.running_worker import (
    RANK,
    adapter_files,
    floats,
    full_file,
    safetensors,
    write_simulated_model,
)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    model = write_simulated_model(tmp_path / "model")
    return WeightStore(tmp_path / "weights", WeightCheck(model, RANK), max_bytes=1 << 24)


async def pieces(data: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def manifest_of(files: dict[str, bytes], kind: str = "adapter", **more: Any) -> Manifest:
    listed = {
        name: WeightFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    }
    return Manifest.model_validate({"kind": kind, "files": listed, **more})


async def sent(store: WeightStore, version: int, files: dict[str, bytes], kind: str = "adapter") -> Stored:
    store.announce(version, manifest_of(files, kind))
    for name, data in files.items():
        await store.receive(version, name, pieces(data, max(len(data) // 3, 1)), len(data))
    return await store.complete(version)


def refused(work: Coroutine[Any, Any, Any]) -> Refusal:
    with pytest.raises(Refusal) as found:
        run(work)
    return found.value


def left_over(store: WeightStore) -> list[str]:
    return sorted(path.name for path in store._folder.rglob("*") if ".part-" in path.name)


def test_a_version_arrives_whole(store: WeightStore) -> None:
    files = adapter_files(3.0)
    first = store.announce(5, manifest_of(files))
    assert first == Stored(version=5, missing=tuple(sorted(files)), complete=False)
    with pytest.raises(Refusal, match="not arrived whole"):
        store.weights(5)
    name = "adapter_config.json"
    assert run(store.receive(5, name, pieces(files[name]), None)).missing == ("adapter_model.safetensors",)
    assert refused(store.complete(5)).status == 409
    # The same manifest again says how far it has come: a sender that was cut off goes on.
    assert store.announce(5, manifest_of(files)).missing == ("adapter_model.safetensors",)
    assert run(sent(store, 5, files)).complete
    weights = store.weights(5)
    assert weights.folder is not None
    assert {path.name: path.read_bytes() for path in weights.folder.iterdir()} == files
    assert store.holds() == (0, 5)
    assert store.announce(5, manifest_of(files)).complete
    assert store.bytes_received >= sum(map(len, files.values()))


def test_pieces_of_any_size_are_one_file(store: WeightStore) -> None:
    data = safetensors({"model.w.weight": ("F32", [PIECE], bytes(range(256)) * (PIECE // 64))})
    store.announce(1, manifest_of({"model.safetensors": data}, "full"))
    stored = run(store.receive(1, "model.safetensors", pieces(data, 999_983), len(data)))
    assert stored.missing == ()
    assert (store._arriving[1].folder / "model.safetensors").read_bytes() == data


@pytest.mark.parametrize(
    ("change", "length", "status"),
    [
        (lambda data: data + b"x", None, 413),
        (lambda data: data + b"x", 1 << 40, 413),
        (lambda data: data[:-1], None, 422),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), None, 422),
        (lambda data: b"", None, 422),
    ],
)
def test_other_bytes_than_announced_are_refused_and_not_kept(
    store: WeightStore, change: Any, length: int | None, status: int
) -> None:
    files = adapter_files(3.0)
    store.announce(1, manifest_of(files))
    name = "adapter_model.safetensors"
    assert refused(store.receive(1, name, pieces(change(files[name])), length)).status == status
    assert store.announce(1, manifest_of(files)).missing == tuple(sorted(files))
    assert left_over(store) == []


def test_a_sender_that_breaks_off_leaves_nothing(store: WeightStore) -> None:
    files = adapter_files(3.0)
    store.announce(1, manifest_of(files))

    async def broken() -> AsyncIterator[bytes]:
        yield files["adapter_config.json"][:5]
        raise ConnectionResetError

    with pytest.raises((ConnectionResetError, Refusal)):
        run(store.receive(1, "adapter_config.json", broken(), None))
    assert left_over(store) == []
    assert run(sent(store, 1, files)).complete


def test_what_was_not_announced_is_not_found(store: WeightStore) -> None:
    assert refused(store.receive(1, "a.json", pieces(b""), None)).status == 404
    assert refused(store.complete(1)).status == 404
    store.announce(1, manifest_of(adapter_files(1.0)))
    assert refused(store.receive(1, "other.json", pieces(b""), None)).status == 404
    with pytest.raises(Refusal, match="not held"):
        store.weights(9)


PICKLE = pickle.dumps({"w": 1})
ADAPTER = adapter_files(3.0)
CONFIG = json.loads(ADAPTER["adapter_config.json"])


def with_config(**changes: Any) -> dict[str, bytes]:
    return {**ADAPTER, "adapter_config.json": json.dumps({**CONFIG, **changes}).encode()}


def with_tensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> dict[str, bytes]:
    return {**ADAPTER, "adapter_model.safetensors": safetensors(tensors)}


PAIR = "base_model.model.model.w.lora_{}.weight"
EIGHT = floats(*[0.0] * 8)
BAD: dict[str, tuple[str, dict[str, bytes]]] = {
    "pickle by name": ("full", {"pytorch_model.bin": PICKLE}),
    "pickle beside": ("full", {"model.safetensors": full_file(2.0), "x.pkl": PICKLE}),
    "pickle in safetensors' clothes": ("full", {"model.safetensors": PICKLE}),
    "program beside": ("full", {"model.safetensors": full_file(2.0), "modeling.py": b"import os"}),
    "adapter as a pickle": ("adapter", {"adapter_model.bin": PICKLE, "adapter_config.json": b"{}"}),
    "adapter without its config": ("adapter", {"adapter_model.safetensors": b""}),
    "adapter of a pickle": ("adapter", {**ADAPTER, "adapter_model.safetensors": PICKLE}),
    "adapter config no JSON": ("adapter", {**ADAPTER, "adapter_config.json": b"{"}),
    "adapter config a list": ("adapter", {**ADAPTER, "adapter_config.json": b"[]"}),
    "adapter of another kind": ("adapter", with_config(peft_type="IA3")),
    "adapter of too large a rank": ("adapter", with_config(r=RANK + 1)),
    "adapter of no rank": ("adapter", with_config(r="4")),
    "adapter whose rank lies": ("adapter", with_config(r=RANK - 1)),
    "adapter of nothing": ("adapter", with_tensors({})),
    "adapter of half a pair": ("adapter", with_tensors({PAIR.format("A"): ("F32", [RANK, 2], EIGHT)})),
    "adapter with whole weights": ("adapter", with_tensors({"model.w.weight": ("F32", [2], floats(1, 2))})),
    "adapter of integers": (
        "adapter",
        with_tensors(
            {PAIR.format("A"): ("I32", [RANK, 2], EIGHT), PAIR.format("B"): ("I32", [2, RANK], EIGHT)}
        ),
    ),
    "header that lies": (
        "full",
        {"model.safetensors": full_file(2.0).replace(b'"shape": [2]', b'"shape": [9]')},
    ),
    "fewer tensors": ("full", {"model.safetensors": safetensors({})}),
    "other tensors": ("full", {"model.safetensors": safetensors({"x": ("F32", [2], floats(1, 2))})}),
    "another shape": (
        "full",
        {"model.safetensors": safetensors({"model.w.weight": ("F32", [3], floats(1, 2, 3))})},
    ),
    "integers": ("full", {"model.safetensors": safetensors({"model.w.weight": ("I32", [2], floats(1, 2))})}),
    "one tensor in two files": ("full", {"a.safetensors": full_file(2.0), "b.safetensors": full_file(3.0)}),
    "another model's config": (
        "full",
        {"model.safetensors": full_file(2.0), "config.json": b'{"model_type": "other"}'},
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_weights_of_this_model_is_refused(store: WeightStore, bad: str) -> None:
    run(sent(store, 1, ADAPTER))
    run(sent(store, 2, {"model.safetensors": full_file(2.0)}, "full"))
    kind, files = BAD[bad]
    refusal = refused(sent(store, 3, files, kind))
    assert refusal.status == 422
    assert store.holds() == (0, 1, 2)
    assert [path.name for path in store._folder.iterdir() if path.name.startswith((".", "3-"))] == []


@given(st.text(max_size=30))
def test_a_name_that_passes_names_a_file_of_its_folder(name: str) -> None:
    try:
        TypeAdapter(FileName).validate_python(name)
    except ValidationError:
        return
    folder = Path("/somewhere")
    assert (folder / name).resolve().parent == folder
    assert name == Path(name).name
    assert "\n" not in name
    assert not name.startswith(".")


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "..",
        "/etc/passwd",
        "a/b.json",
        "a\\b.json",
        ".x.json",
        "x.json\n",
        "x",
        "x.json\0",
        "C:x.json",
    ],
)
def test_names_that_reach_elsewhere_do_not_pass(name: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({"kind": "full", "files": {name: {"bytes": 1, "sha256": "0" * 64}}})


def test_limits(tmp_path: Path) -> None:
    model = write_simulated_model(tmp_path / "model")
    store = WeightStore(tmp_path / "weights", WeightCheck(model, RANK), max_bytes=10)
    with pytest.raises(Refusal) as found:
        store.announce(1, manifest_of({"model.safetensors": full_file(1.0)}, "full"))
    assert found.value.status == 413
    with pytest.raises(Refusal, match="begin at 1"):
        store.announce(0, manifest_of({"model.safetensors": b""}, "full"))


def test_old_versions_go_but_not_the_active_one_and_the_one_before(store: WeightStore) -> None:
    for version in (1, 2, 3, 4):
        run(sent(store, version, adapter_files(float(version))))
    store.use(store.weights(2), store.weights(1))
    assert store.holds() == (0, 1, 2, 3, 4)  # 3 and 4 are on their way to be active
    store.use(store.weights(4), store.weights(2))
    assert store.holds() == (0, 2, 4)
    store.use(BASE, store.weights(4))
    assert store.holds() == (0, 2, 4)
    folders = sorted(path.name.split("-")[0] for path in store._folder.iterdir())
    assert folders == ["2", "4"]


def test_another_run_s_version_replaces_one_but_not_what_is_sampled_from(store: WeightStore) -> None:
    run(sent(store, 1, adapter_files(1.0)))
    first = store.weights(1)
    assert first.folder is not None
    store.use(first, BASE)
    run(sent(store, 1, adapter_files(2.0)))
    second = store.weights(1)
    assert second != first
    assert first.folder.is_dir()
    store.use(second, first)
    assert first.folder.is_dir()
    run(sent(store, 2, adapter_files(3.0)))
    store.use(store.weights(2), second)
    assert not first.folder.exists()


def test_a_new_store_is_empty(store: WeightStore, tmp_path: Path) -> None:
    run(sent(store, 1, adapter_files(1.0)))
    (store._folder / "notes.txt").write_text("not the store's")
    again = WeightStore(store._folder, store._check, 1 << 20)
    assert again.holds() == (0,)
    assert [path.name for path in store._folder.iterdir()] == ["notes.txt"]


def test_versions_that_never_arrive_do_not_pile_up(store: WeightStore) -> None:
    for version in range(1, MOST_ARRIVING + 3):
        store.announce(version, manifest_of(adapter_files(float(version))))
    assert len(list(store._folder.iterdir())) == MOST_ARRIVING


def test_a_delta_needs_its_base(store: WeightStore) -> None:
    with pytest.raises(Refusal) as found:
        store.announce(2, manifest_of({"patch.json": b"{}"}, "delta", base=1))
    assert found.value.status == 409
    with pytest.raises(Refusal, match="names its base"):
        store.announce(2, manifest_of({"patch.json": b"{}"}, "delta"))


def test_full_weights_are_served_with_the_worker_s_own_config(store: WeightStore) -> None:
    own = (store._check.model / "config.json").read_bytes()
    sent_config = json.dumps({**json.loads(own), "auto_map": {"AutoModel": "evil.Model"}}).encode()
    run(sent(store, 1, {"model.safetensors": full_file(2.0), "config.json": sent_config}, "full"))
    folder = store.weights(1).folder
    assert folder is not None
    assert (folder / "config.json").read_bytes() == own
    assert (folder / "tokenizer.json").is_file()
