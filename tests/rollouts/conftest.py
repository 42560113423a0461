"""Model folders, written once for the whole session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import write_model


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model; not to be changed."""
    base = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        path = base / name
        return path if path.is_dir() else write_model(path, name)

    return folder
