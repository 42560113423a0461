"""The folder of a prepared dataset: train.jsonl, validation.jsonl, test.jsonl, card.json, README.md.

Invariant: the folder is complete or not there. It is written beside and renamed when it is whole; what it replaces
is there until then. Never imports mlx.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_sumrl.data.data_card import card_page
from mlx_sumrl.data.prepared import Prepared
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.json_files import encoded, write_json

CARD = "card.json"
PAGE = "README.md"


def check_free(out: Path, replace: bool) -> None:
    """Before anything is read: whether `out` can be written.

    Raises:
        UserError: it is there already and may not, or should not, be replaced, or its parent cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / CARD).is_file():
            raise UserError(
                f"the folder {out} holds something else ({CARD} is missing): choose another --out"
            )
        if not replace:
            raise UserError(
                f"the folder {out} already holds a prepared dataset: choose another --out, or add --replace"
            )
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out} cannot be made: {above} is not a folder that you may write to")


def write_prepared(prepared: Prepared, card: Mapping[str, Any], out: Path, replace: bool = False) -> None:
    """Write the folder; nothing of it stays when that fails.

    Raises:
        UserError: see `check_free`; or the disk refuses.
    """
    check_free(out, replace)
    out = out.absolute()
    made = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        made.chmod(0o755)  # mkdtemp keeps others out
        for name, rows in prepared.splits.items():
            with (made / f"{name}.jsonl").open("wb") as file:
                file.writelines(encoded(row.to_json()) for row in rows)
                file.flush()
                os.fsync(file.fileno())
        write_json(made / CARD, card)
        (made / PAGE).write_text(card_page(card, out.name), encoding="utf-8")
        _put(made, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}): make room, or choose another --out"
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _put(made: Path, out: Path) -> None:
    """`made` in the place of `out`."""
    if not (out.is_dir() and any(out.iterdir())):
        made.rename(out)  # over an empty folder too
        return
    old = made.with_name(f"{made.name}.old")
    out.rename(old)
    try:
        made.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
