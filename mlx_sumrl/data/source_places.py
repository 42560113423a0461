"""Where the rows of a source are: which files of a folder, which splits of a dataset. Never imports mlx.

Invariant: a place's split is what its name says (`dialogsum.train.jsonl`, `validation-00000.parquet`), or None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mlx_sumrl.config.prepare import SourceConfig
from mlx_sumrl.data.declared_sources import DECLARED, DeclaredSource, SplitName
from mlx_sumrl.data.sources import SUFFIXES, Rows, dataset_splits, is_path, read_rows
from mlx_sumrl.errors import UserError

_SPLIT_WORDS: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """One file, or one split of a dataset."""

    name: str
    """The file, or the dataset."""
    split: SplitName | None
    """Which split its rows are of, if its name says so."""
    hub_split: str | None = None
    """The dataset's own name for it; None for a file."""
    config_name: str | None = None
    revision: str | None = None
    folder: str | None = None

    def __str__(self) -> str:
        return self.name if self.hub_split is None else f"{self.name}/{self.hub_split}"

    def read(self, limit: int | None) -> Rows:
        """Its first `limit` rows (all: None); see `read_rows` for what is raised."""
        return read_rows(
            self.name,
            self.hub_split or "train",
            limit,
            config_name=self.config_name,
            revision=self.revision,
            folder=self.folder,
        )


def places_of(source: SourceConfig, declaration: DeclaredSource | None) -> list[Place]:
    """Every place that a source's rows are in; files are not opened.

    Raises:
        UserError: a path that does not exist, a folder without data files, or a dataset that cannot be had.
    """
    if source.files:
        return [place for name in source.files for place in _files(name)]
    if declaration is not None:
        hub = declaration.hub
        if hub is None:
            raise UserError(f"source {source.source!r} is a kind of file: name one with --from FILE after it")
        return [
            Place(hub.name, split, theirs, source.config_name or hub.config_name, hub.revision, hub.folder)
            for split, theirs in hub.splits
        ]
    path = Path(source.source).expanduser()
    if path.exists() or is_path(source.source):
        return _files(source.source)
    if "/" not in source.source:  # owner/name is a dataset; a bare word is most likely a slip
        raise UserError(
            f"there is no source {source.source!r}: name a file or folder, a Hugging Face dataset as owner/name, "
            f"or one of {', '.join(DECLARED)}"
        )
    return [
        Place(source.source, _split_said(theirs), theirs, source.config_name)
        for theirs in dataset_splits(source.source, source.config_name)
    ]


def _files(name: str) -> list[Place]:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not folder.is_file():
            raise UserError(
                f"there is no file or folder {name} (looked in {folder.absolute().parent}): correct the path"
            )
        return [Place(name, _split_said(folder.stem))]
    inside = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(p[0] == "." for p in path.relative_to(folder).parts)
    )
    if not inside:
        raise UserError(f"the folder {name} holds no {', '.join(SUFFIXES)} file; name another")
    return [Place(str(path), _split_said(str(path.relative_to(folder).with_suffix("")))) for path in inside]


def _split_said(name: str) -> SplitName | None:
    """The last word of a name decides: in `train/test.jsonl` it is the file's."""
    said = [_SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in _SPLIT_WORDS]
    return said[-1] if said else None
