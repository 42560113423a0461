"""Checkpoints: everything that a run needs to go on bit for bit, complete or absent.

Invariant: a folder named ``step-000100`` is whole. It is written under another name, flushed to the disk, and then
renamed in one step; a process killed at any moment leaves either the whole folder or one that no one takes for a
checkpoint. Older checkpoints are removed only when a newer one is in place.

All randomness of a run is a function of (seed, step), so the state holds counters and no generators.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.policy.reference import QuantizedReference, restored_reference
from mlx_sumrl.training.optimizer import Optimizer

STEP_FOLDER = re.compile(r"^step-(\d{6,})$")
UNFINISHED = ".unfinished-"


@dataclass
class TrainState:
    """Where a run is. Steps count over all phases: supervised fine-tuning and every stage."""

    step: int = 0
    """Steps finished; also the position in the data and in the sequence of random numbers."""
    phase: str = ""
    """Name of the phase going on: ``sft`` or a stage's name."""
    phase_step: int = 0
    """Steps finished in it."""
    phases_done: list[str] = field(default_factory=list)
    policy_version: int = 0
    """Updates that moved the policy."""
    streak: int = 0
    """Steps in a row that have met the stage's condition to move on."""
    multiplier: float | None = None
    """Of the stage's constraint; None before its first step, and where it has none."""
    bad_in_a_row: int = 0
    bad_total: int = 0


StateT = TypeVar("StateT", bound=TrainState)


def save_checkpoint(
    folder: Path,
    state: TrainState,
    policy: Policy,
    optimizer: Optimizer,
    keep: int,
    pinned: int | None = None,
) -> Path:
    """Write ``step-NNNNNN`` below ``folder`` and remove all but the ``keep`` newest and that of step ``pinned``."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state.step:06d}"
    unfinished = folder / f"{UNFINISHED}{state.step:06d}-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    arrays: dict[str, Weights] = {"policy": policy.weights(), "optimizer": optimizer.state()}
    if (reference := policy.reference) is not None:
        arrays["reference"] = reference.arrays() if isinstance(reference, QuantizedReference) else reference
    digests = {}
    for name, weights in arrays.items():
        file = unfinished / f"{name}.safetensors"
        mx.save_safetensors(str(file), weights)
        digests[file.name] = _digest(file)
        _flush(file)
    record = {"state": asdict(state), "optimizer_count": optimizer.count, "sha256": digests}
    record["sha256_of_record"] = _digest_of_record(record)
    (unfinished / "state.json").write_text(json.dumps(record, indent=2) + "\n")
    _flush(unfinished / "state.json")
    _flush(unfinished)
    if final.exists():  # the same step again, after a resume that moved no further
        os.replace(final, folder / f"{UNFINISHED}replaced-{final.name}-{os.getpid()}")  # prune removes it
    os.replace(unfinished, final)
    _flush(folder)
    prune(folder, keep, pinned)
    return final


def prune(folder: Path, keep: int, pinned: int | None = None) -> None:
    """Remove all but the ``keep`` newest checkpoints and the ``pinned`` one, and what killed processes left."""
    for old in list_checkpoints(folder)[:-keep]:
        if int(old.name[5:]) == pinned:
            continue
        doomed = old.with_name(f"{UNFINISHED}pruned-{old.name}")
        os.replace(old, doomed)  # gone in one step: never a half checkpoint under a good name
        shutil.rmtree(doomed, ignore_errors=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written or half removed."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints below ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if STEP_FOLDER.match(path.name)),
        key=lambda path: int(path.name[5:]),
    )


def load_checkpoint(
    checkpoint: Path,
    policy: Policy,
    optimizer: Optimizer,
    kind: type[StateT] = TrainState,  # type: ignore[assignment]
) -> StateT:
    """Put policy, optimiser and reference back. Raises `UserError` for a checkpoint that is damaged."""
    state, record = _checked(checkpoint, kind)
    reference = policy.reference
    try:
        if "reference.safetensors" in record["sha256"]:
            reference = restored_reference(policy.model, _load(checkpoint / "reference.safetensors"))
        policy.set_weights(_load(checkpoint / "policy.safetensors"))
    except ValueError as error:
        raise UserError(f"{checkpoint} does not fit the policy: {error}") from error
    optimizer.restore(_load(checkpoint / "optimizer.safetensors"), record["optimizer_count"])
    policy.reference = reference
    return state


def take_policy(checkpoint: Path, policy: Policy) -> None:
    """Put the policy's weights back and nothing else. Raises `UserError` for a checkpoint that is damaged."""
    _checked(checkpoint, TrainState)
    try:
        policy.set_weights(_load(checkpoint / "policy.safetensors"))
    except ValueError as error:
        raise UserError(f"{checkpoint} does not fit the policy: {error}") from error


def _checked(checkpoint: Path, kind: type[StateT]) -> tuple[StateT, dict[str, Any]]:
    """The state and the record of a checkpoint whose files are what was saved."""
    try:
        record = json.loads((checkpoint / "state.json").read_text())
        known = {f.name for f in fields(kind)}
        state = kind(**{key: value for key, value in record["state"].items() if key in known})
        digests: dict[str, str] = record["sha256"]
        whole = record.pop("sha256_of_record") == _digest_of_record(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{checkpoint} is not a checkpoint: its state.json is missing or damaged ({error})"
        ) from error
    if not whole:
        raise _damaged(checkpoint / "state.json")
    for name, digest in digests.items():
        file = checkpoint / name
        if not file.is_file() or _digest(file) != digest:
            raise _damaged(file)
    return state, record


def _load(file: Path) -> Weights:
    arrays = mx.load(str(file))
    assert isinstance(arrays, dict)
    mx.eval(arrays)  # read now: the file may be pruned while the run goes on
    return arrays


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file} is not what was saved; remove {file.parent} to go on from the checkpoint before it"
    )


def _digest_of_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
