"""What a user names as ``package.module:name`` or ``path/to/file.py:name``. Never imports mlx."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from mlx_sumrl.errors import UserError


def split_location(location: str, what: str, kind: str) -> tuple[str, str]:
    """``package.module`` or ``path/to/file.py``, and the name in it.

    Args:
        what: what it is to the user, as errors begin: ``reward function``.
        kind: what the name stands for, as the form shows it: ``function``.

    Raises:
        UserError: it is not of that form.
    """
    source, colon, name = location.rpartition(":")
    if not (source and colon and name):
        raise UserError(
            f"{what} {location!r} is not of the form package.module:{kind} or path/to/file.py:{kind}; give it as "
            "one of these"
        )
    return source, name


def import_source(source: str, location: str, what: str, kind: str) -> ModuleType:
    """Import ``package.module`` or ``path/to/file.py``; errors name the whole ``location``.

    Raises:
        UserError: there is no such file or module, or it fails to import.
    """
    try:
        return _import_file(Path(source), location, what) if source.endswith(".py") else _import(source)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what} {location!r} cannot be imported ({type(error).__name__}: {error}); mend or install what is "
            f"named there, or give the file as path/to/file.py:{kind}"
        ) from error


def _import(name: str) -> ModuleType:
    return importlib.import_module(name)


def _import_file(path: Path, location: str, what: str) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise UserError(
            f"{what} {location!r}: there is no file {str(path)!r} seen from {str(Path.cwd())!r}; "
            "give its path from there, or a full one"
        )
    # A name for each kind: a file of rewards and one of schemas may be called alike.
    spec = importlib.util.spec_from_file_location(f"mlx_sumrl_{what.split()[0]}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} {location!r}: {str(path)!r} is not a file that Python can import")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # dataclasses look their module up there while the file runs
    try:
        spec.loader.exec_module(module)
    except Exception:
        if before is None:
            del sys.modules[spec.name]
        else:
            sys.modules[spec.name] = before
        raise
    return module
