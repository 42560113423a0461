"""What a run's policy was made from, written into its folder while that is at hand. Never imports mlx.

Invariant: a licence is one that a source's declaration, a prepared folder's card or a base model's card states;
where none does, that is what is written. No path of the machine is kept, only names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_sumrl.config import DataConfig, PolicyConfig
from mlx_sumrl.data.declared_sources import declared
from mlx_sumrl.data.prepared_folder import CARD
from mlx_sumrl.data.sources import is_path

FILE = "provenance.json"
NONE_STATED = "none stated"


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that were trained or measured on."""

    name: str
    """A file's name without the folders on the way to it, or the dataset's."""
    hub: str | None
    """Its name on the Hugging Face hub, where it came from there."""
    rows: int | None
    """Rows used; None where it was not counted."""
    licence: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Base model and rows."""

    base_model: str
    """A folder's name without those on the way to it, or the name on the hub."""
    base_hub: str | None
    base_licence: str
    train: Source | None
    evaluation: Source | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def provenance_of(
    policy: PolicyConfig, data: DataConfig, rows: Mapping[str, int] | None = None
) -> Provenance:
    """What the options name; ``rows`` are the rows used of ``train`` and ``evaluation``."""
    rows = rows or {}
    name, hub, licence = _base_model(policy)
    return Provenance(
        name,
        hub,
        licence,
        _source(data, data.train, rows.get("train")),
        _source(data, data.evaluation, rows.get("evaluation")),
    )


def read_provenance(run: Path) -> Provenance | None:
    """What a run has written down; None where it has not, or not so that it can be read."""
    try:
        content = json.loads((run / FILE).read_text(encoding="utf-8"))
        for which in ("train", "evaluation"):
            content[which] = content[which] and Source(**content[which])
        return Provenance(**content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _base_model(policy: PolicyConfig) -> tuple[str, str | None, str]:
    if policy.model is None:
        return "a tiny random model, made by the run", None, "mlx_sumrl made it"
    folder = Path(policy.model).expanduser()
    if not folder.is_dir():
        return policy.model, policy.model, "as on its page"
    return folder.resolve().name, None, _licence_of_card(folder / "README.md") or NONE_STATED


def _licence_of_card(page: Path) -> str | None:
    """What a model card's metadata states."""
    from huggingface_hub import ModelCard

    if not page.is_file():
        return None
    try:
        stated = ModelCard(page.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (ValueError, OSError):  # not a card, or not one that can be read
        return None
    licence = stated.get("license_name") or stated.get("license")
    return str(licence) if licence else None


def _source(data: DataConfig, name: str | None, rows: int | None) -> Source | None:
    if data.grammar is not None:
        return Source("posts from mlx_sumrl's own grammar", None, rows, "made by the run: no one's text")
    if name is None:
        return None
    path = Path(name).expanduser()
    known = declared(name)
    if known is not None and not path.exists():
        return Source(known.name, known.hub.name if known.hub else None, rows, known.licence)
    if path.exists() or is_path(name):
        return Source(path.name, None, rows, _licence_of_prepared(path) or NONE_STATED)
    return Source(name, name, rows, "as on its page; not looked up")


def _licence_of_prepared(file: Path) -> str | None:
    """What the card of a prepared folder states of its sources."""
    try:
        sources = json.loads((file.parent / CARD).read_text(encoding="utf-8"))["sources"]
        return "; ".join(f"{source['name']}: {source['licence']}" for source in sources) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None
