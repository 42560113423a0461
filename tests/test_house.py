"""The rules of the house: who may import whom, and what a file may be called and hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ("mlx_sumrl", "cluster", "recipes", "benchmarks", "tests")
LONGEST = 400
"""Lines of a Python file."""
NOT_WORDS_OF_THE_FIELD = re.compile(r"(utils?|helpers?|common|misc|manager\w*|\w*_manager)\.py")


def python_files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    """Full names of everything that is imported anywhere in a file, lazily or for types only."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(one.value) for one in node.args[:1] if isinstance(one, ast.Constant))


def is_in(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def offences(room: str, *forbidden: str) -> list[str]:
    return [
        f"{name_of(path)} imports {name}"
        for path in python_files(room)
        for name in imports_of(path)
        if is_in(name, *forbidden)
    ]


def test_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules below hold nothing if this finds nothing."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "room" / "inner" / "file.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import a.b as c, d\nfrom e.f import g\nfrom . import h\nfrom ..i import j\n"
        "def later():\n    import k\n    importlib.import_module('l.m')\n"
    )
    found = {"a.b", "d", "e.f.g", "room.inner.h", "room.i.j", "k", "l.m"}
    assert set(imports_of(file)) == found
    assert is_in("mlx.core", "mlx")
    assert not is_in("mlx_sumrl.config", "mlx")


def test_the_library_stands_by_itself() -> None:
    assert not offences("mlx_sumrl", "cluster", "recipes", "benchmarks", "tests")


def test_programs_do_not_import_tests() -> None:
    assert not [one for room in ("cluster", "recipes", "benchmarks") for one in offences(room, "tests")]


def test_the_cluster_starts_where_mlx_is_not() -> None:
    if not (ROOT / "cluster").is_dir():
        pytest.skip("there is no cluster layer yet")
    assert not offences("cluster", "mlx", "mlx_lm", "recipes", "benchmarks")
    allowed = ("rollouts", "config", "UserError", "errors", "options", "data.example")
    allowed = tuple(f"mlx_sumrl.{name}" for name in allowed)
    names = [
        f"{name_of(path)} imports {name}"
        for path in python_files("cluster")
        for name in imports_of(path)
        if is_in(name, "mlx_sumrl") and not is_in(name, *allowed)
    ]
    assert not names


def test_one_module_knows_mlx_lm() -> None:
    for room in ("mlx_sumrl", "recipes"):
        assert {one.split()[0] for one in offences(room, "mlx_lm")} <= {"mlx_sumrl/policy/mlx_internals.py"}
    assert offences("mlx_sumrl", "mlx_lm")


def test_what_never_imports_mlx_never_does() -> None:
    """The cluster layer's footing, and each module that promises it in its docstring, in a process of its own."""
    modules = ["mlx_sumrl", "mlx_sumrl.config", "mlx_sumrl.rollouts", "mlx_sumrl.errors"]
    for path in python_files("mlx_sumrl", "cluster"):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if path.parts[-2] == "cluster" or "never imports mlx" in said.lower():
            modules.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert len(modules) > 6
    program = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = [one for one in sys.modules if one.partition('.')[0] in ('mlx', 'mlx_lm')]\n"
        "    assert not loaded, f'{name} loads {loaded[0]}'\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_files_are_named_after_what_they_hold() -> None:
    assert not [name_of(path) for path in python_files(*HOUSE) if NOT_WORDS_OF_THE_FIELD.fullmatch(path.name)]


def test_files_are_read_in_one_sitting() -> None:
    lines = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*HOUSE)
    }
    assert {name: n for name, n in lines.items() if n > LONGEST} == {}


def test_no_file_holds_a_path_of_someone_s_machine() -> None:
    own = "|".join(re.escape(str(folder)) for folder in (ROOT, Path.home()) if len(folder.parts) > 1)
    personal = re.compile(rf"(?<![\w.])(?:{own}|/home/\w+|/Users/\w+)/")
    suffixes = {".py", ".yaml", ".yml", ".md", ".toml", ".ipynb", ".json"}
    files = [
        path for room in (*HOUSE, "docs") for path in (ROOT / room).rglob("*") if path.suffix in suffixes
    ]
    files += [path for path in ROOT.iterdir() if path.suffix in suffixes or path.name == "Makefile"]
    assert len(files) > 50
    held = {name_of(path): personal.search(path.read_text(encoding="utf-8")) for path in files}
    assert {name: match.group() for name, match in held.items() if match} == {}
