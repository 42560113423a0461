"""A run's folder: its record on disk, and the lock that keeps a second process out.

Invariant: one process at a time writes into it. A .json file is complete or absent; a .jsonl file is whole
lines, but for a last one torn by a crash, which `truncate_after` removes. Never imports mlx.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from pydantic import ValidationError

from mlx_sumrl import blas
from mlx_sumrl.config.named_run import NamedFolderConfig, NamedRunConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.errors import validation_sentence
from mlx_sumrl.reporting.json_files import encoded, replacing, rows, write_json
from mlx_sumrl.reporting.trackers import AttachedTrackers, check_trackers

CONFIG = "config.json"
METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts.jsonl"
LOCK = ".lock"
RECORDS = (METRICS, ROLLOUTS, "checkpoints", "evaluation", "export", "curves.svg", "report.html", "runs")
"""What a run leaves behind beside config.json, or a study of several."""
PACKAGES = (
    *(
        "mlx_sumrl",
        "mlx",
        "mlx-cpu",
        "mlx-metal",
        "mlx-cuda",
        "mlx-lm",
        "numpy",
        "transformers",
        "tokenizers",
    ),
    *("safetensors", "datasets", "rouge-score", "nltk", "sacrebleu", "pydantic"),
)

ConfigT = TypeVar("ConfigT", bound=NamedFolderConfig)


class RunFolder:
    """One run's folder, locked for this process until `close` (or the end of a ``with`` block)."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock
        self._trackers: AttachedTrackers | None = None

    @classmethod
    def create(cls, config: NamedFolderConfig) -> Self:
        """Make the folder of a new run and write config.json.

        A folder with nothing but a config.json is of a run that failed before it began, and is taken over.
        Raises `UserError` when it holds a run, another process has it, or a tracker is not installed.
        """
        path = config.folder
        check_trackers(config.trackers)
        held = [name for name in RECORDS if (path / name).exists()]
        if held:
            raise UserError(
                f"the folder {path} already holds a run ({held[0]}): choose another --name, or go on with "
                f"it by --resume {path}"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {path} cannot be made ({error.strerror}); set --runs_dir elsewhere"
            ) from None
        folder = cls(path, _locked(path))
        options = config.to_json()
        folder.write_json(
            CONFIG,
            {
                "options": options,
                "seed": options.get("seed"),
                "command": shlex.join(sys.argv),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": versions(),
                "platform": machine(),
            },
        )
        return folder

    @classmethod
    def open(cls, path: Path, model: type[ConfigT]) -> tuple[ConfigT, Self]:
        """The options of the run in ``path``, wherever it was made, and its folder, to go on with it.

        Raises `UserError` when there is no run, its options cannot be read, or another process has it.
        """
        content = read_record(path)
        try:
            config = model.model_validate(content["options"])
        except ValidationError as error:
            sentence = validation_sentence(model, error, lambda _: f" in {path / CONFIG}")
            raise UserError(f"the run in {path} cannot be resumed by this version: {sentence}") from None
        config = config.model_copy(update={"runs_dir": path.parent, "name": path.name})
        return config, cls(path, _locked(path))

    def keep_options(self, config: NamedFolderConfig) -> None:
        """Options that only the model could settle, into config.json: a resumed run has the same."""
        self.write_json(CONFIG, {**read_record(self.path), "options": config.to_json()})

    def write_json(self, relative: str | Path, content: Any) -> Path:
        """Write a JSON file below the folder; it is complete or not there. Returns its path."""
        target = self.path / relative
        write_json(target, content)
        return target

    def track(self, config: NamedRunConfig, note: Callable[[str], None]) -> None:
        """From now on the trackers of the options see what `append_metrics` is given; ``note`` says when one fails.

        Raises `UserError` when one is not installed or cannot start. `close` ends them.
        """
        if config.reporting.trackers and self._trackers is None:
            options = config.to_json()
            self._trackers = AttachedTrackers.started(config.reporting.trackers, self.path, options, note)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, flushed when this returns; then the trackers' turn."""
        self._append(METRICS, [metrics])
        if self._trackers is not None:
            self._trackers.log(metrics, int(metrics["step"]))

    def append_rollouts(self, rollouts: Iterable[Mapping[str, Any]]) -> None:
        """One line of rollouts.jsonl each; every one should hold its ``step``."""
        self._append(ROLLOUTS, rollouts)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl; a torn last one is left out."""
        return [row for _, row in rows(self.path / METRICS) if row is not None]

    def truncate_after(self, step: int) -> int:
        """Remove the lines of steps after ``step``, which resuming will write again, and torn ones.

        Returns how many lines went.
        """
        removed = 0
        for name in (METRICS, ROLLOUTS):
            path = self.path / name
            lines = list(rows(path))
            kept = [line for line, row in lines if row is not None and (row.get("step") or 0) <= step]
            if len(kept) < len(lines):
                with replacing(path) as file:
                    file.writelines(kept)
                removed += len(lines) - len(kept)
        return removed

    def changes(self) -> list[str]:
        """What is not as it was when the run began, as ``mlx 0.32.3 -> 0.32.4``; then bits may differ."""
        before = read_record(self.path)
        now = {"versions": versions(), "platform": machine()}
        return [
            f"{name} {before.get(part, {}).get(name)} -> {now[part].get(name)}"
            for part in now
            for name in dict.fromkeys([*before.get(part, {}), *now[part]])
            if before.get(part, {}).get(name) != now[part].get(name)
        ]

    def close(self) -> None:
        """End the trackers, and give the folder free."""
        if self._trackers is not None:
            self._trackers.finish()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        # Opened each time: `truncate_after` may have put another file in its place.
        with (self.path / name).open("ab") as file:
            file.write(b"".join(encoded(record) for record in records))


def read_record(path: Path) -> dict[str, Any]:
    """config.json of the run in ``path``; `UserError` when there is none."""
    try:
        content = json.loads((path / CONFIG).read_bytes())
    except FileNotFoundError:
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        runs = sorted(str(one) for one in beside if (one / CONFIG).exists())
        hint = f"there are {', '.join(runs[:5])}" if runs else "start one without --resume"
        raise UserError(f"{path} holds no run ({CONFIG} is missing); {hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / CONFIG} cannot be read ({error}); start a new run") from None
    if not isinstance(content, dict) or not isinstance(content.get("options"), dict):
        raise UserError(f"{path / CONFIG} holds no options of a run; name a folder that a recipe has written")
    return content


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """The machine as far as bits depend on it: system, processor, cores, BLAS and its threads."""
    threads = {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ
    }
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "blas": blas.LOADED,
        "threads": threads,
    }


def _locked(path: Path) -> IO[str]:
    """The folder's lock file, held by this process; the system gives it free however the process ends."""
    file = (path / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"{holder} is training into {path} ({path / LOCK} is held): wait for it, or choose another --name"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return file
