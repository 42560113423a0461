"""``--config FILE.yaml`` and dotted options -> one validated model; a recipe's way out on errors.

Invariant: every key that was given, at any depth, in the file or on the command line, ends up in the model or
in one `UserError` that names it; nothing is ignored and no environment variable is read. Later wins: the
recipe's own defaults, then the YAML file (over the one that it names as its ``base``), then the command line.
Mappings merge, lists are replaced as a whole (``--stages.0.steps 30`` changes one entry of a list that is there).
Never imports mlx.
"""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mlx_sumrl.errors import UserError
from mlx_sumrl.options import tree
from mlx_sumrl.options.errors import shown, suggestion, validation_sentence
from mlx_sumrl.options.help import help_page
from mlx_sumrl.options.tree import ABSENT, dotted

ConfigT = TypeVar("ConfigT", bound=BaseModel)
Defaults = Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A recipe's own options; called with the given ones, where they depend on these: those of the file with the command
line's, but for what changes a single entry of a list."""


@dataclass(frozen=True)
class Command(Generic[ConfigT]):
    """What a recipe was asked to do."""

    run: ConfigT | Path
    """The options of a new run, or the folder of the run to go on with (``--resume``)."""
    extra: dict[str, str]
    """Values of the recipe's own options, by name; those left out are absent."""


def parse(
    model: type[ConfigT],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    defaults: Defaults | None = None,
) -> ConfigT:
    """The validated options; ``argv`` defaults to the process's own. ``--help`` prints the page and exits.

    ``defaults`` are the recipe's own, as nested plain values, or what makes them of those that are given. Field
    aliases are not looked at.
    Raises `UserError` for whatever is wrong.
    """
    command = parse_command(
        model, argv, prog=prog, description=description, defaults=defaults, resumable=False
    )
    assert not isinstance(command.run, Path)
    return command.run


def parse_command(
    model: type[ConfigT],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    defaults: Defaults | None = None,
    extra: Mapping[str, str] | None = None,
    resumable: bool = True,
    based: Sequence[str] = (),
) -> Command[ConfigT]:
    """As `parse`, for a recipe that can go on with a run (``--resume``) or has options of its own.

    ``extra`` names those options (``{"cluster": "what --help says of it"}``); each takes one value. ``based`` names
    mappings at the top of the file that may have a ``base`` of their own.
    """
    extra = extra or {}
    defaults = defaults or {}
    given = list(sys.argv[1:] if argv is None else argv)
    if "--help" in given or "-h" in given:
        own_defaults = defaults({}) if callable(defaults) else defaults
        page = help_page(
            model, prog=prog, description=description, defaults=own_defaults, extra=extra, resumable=resumable
        )
        print(page, end="")
        raise SystemExit(0)

    reserved = ["config", *(["resume"] if resumable else []), *extra]
    own, overrides = _split(model, given, reserved)
    values = {name: value for name, value in own.items() if name in extra}
    if "resume" in own:
        ignored = [
            f"--{name}" for name in [*("config" for _ in range("config" in own)), *map(dotted, overrides)]
        ]
        if ignored:
            raise UserError(
                f"--resume {own['resume']} goes on with that run's own options: leave out "
                f"{', '.join(ignored)}, or start a new run with another --name"
            )
        return Command(run=Path(own["resume"]), extra=values)

    config = own.get("config")
    from_file = read_options(Path(config), based) if config is not None else {}
    if callable(defaults):
        whole = from_file
        for path, value in overrides.items():
            if not any(isinstance(key, int) for key in path):
                whole = _with(whole, path, value, path)
        defaults = defaults(whole)
    return Command(run=_validated(model, defaults, from_file, config, overrides), extra=values)


def read_options(path: Path, based: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, laid over that of the file that its key ``base`` names, seen from its folder.

    The file's own keys win; mappings merge, lists are replaced. A base may have a base, and so may the mappings at
    the top of a file that ``based`` names: theirs are other files' options. Raises `UserError`.
    """
    return _over_bases(_read_based(path, based), [path], based)


def _over_bases(values: dict[str, Any], met: list[Path], based: Sequence[str]) -> dict[str, Any]:
    """``values`` of the last file that was met over all that they are based on."""
    while "base" in values:
        base = values.pop("base")
        if not isinstance(base, str):
            raise UserError(
                f"base in {met[-1]} is {shown(base)}; name a YAML file, seen from that file's folder"
            )
        met.append(met[-1].parent / base)
        if met[-1].resolve() in [one.resolve() for one in met[:-1]]:
            raise UserError(f"base {base} in {met[-2]} leads back to itself; leave one `base` out")
        values = tree.merged(_read_based(met[-1], based), values)
    return values


def _read_based(path: Path, based: Sequence[str]) -> dict[str, Any]:
    values = read_yaml(path)
    for name in based:
        if isinstance(values.get(name), dict):
            values[name] = _over_bases(values[name], [path], ())
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; `UserError` when it is missing, broken, or names a key twice."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names_beside(path), n=1)
        hint = (
            f"did you mean {path.parent / near[0]}?" if near else "check the path, relative to where you are"
        )
        raise UserError(f"the config file {path} does not exist; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"the config file {path} cannot be read ({reason}); name a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        way_out = "a text that holds ': ' or begins with a bracket or a brace needs quotes"
        if isinstance(error, _RepeatedKey):
            way_out = "write each key once"
        raise UserError(f"the config file {path} is not valid YAML: {problem}{where}; {way_out}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"the config file {path} holds {shown(content)}; it must hold options, as `seed: 1`")
    return content


def exit_code_of(main: Callable[[], object]) -> int:
    """Run a recipe: 0, or 2 for a `UserError` (one ``error:`` line on stderr), or 130 for Ctrl-C.

    Any other exception is a fault of the program and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        sys.stdout.flush()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("interrupted", file=sys.stderr)
        return 130
    return 0


class _RepeatedKey(yaml.constructor.ConstructorError):
    pass


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own loader keeps the last of two equal keys: a block written twice would be lost unsaid."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _RepeatedKey(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _names_beside(path: Path) -> list[str]:
    return [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []


def _split(
    model: tree.Model, argv: list[str], reserved: list[str]
) -> tuple[dict[str, str], dict[tree.Path, Any]]:
    """Command line -> the recipe's own options, and the model's as path -> value; the last of two wins."""
    own: dict[str, str] = {}
    overrides: dict[tree.Path, Any] = {}
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if not word.startswith("--") or word == "--":
            hint = f"did you mean --config {word}?" if word.endswith((".yaml", ".yml")) else "see --help"
            raise UserError(f"{word!r} is no option: options are written --NAME VALUE; {hint}")
        name, equals, text = word[2:].partition("=")
        value: str | None = text if equals else None
        if value is None and position < len(argv) and not argv[position].startswith("--"):
            value = argv[position]
            position += 1

        if name in reserved:
            if not value:
                raise UserError(f"--{name} needs a value; see --help")
            if name in own:
                raise UserError(f"--{name} is there twice ({own[name]} and {value}); give it once")
            own[name] = value
            continue
        path = tree.path_of(model, name)
        kind = tree.type_at(model, path)
        if kind is ABSENT:
            given = f" (value {shown(value)})" if value is not None else ""
            raise UserError(f"unknown option --{name}{given}; {suggestion(model, path, '--', reserved)}")
        overrides[path] = _decoded(name, value, kind)
    return own, overrides


def _decoded(name: str, text: str | None, kind: Any) -> Any:
    """Text -> value. Plain types stay text: pydantic turns '16' and '1e-5' into numbers, YAML not always."""
    options = tree.alternatives(kind)
    if text is None:
        if bool in options:
            return True
        if tree.models_in(kind):
            return {}  # `--sft` alone switches the room on
        raise UserError(f"--{name} needs a value: {tree.type_text(kind)}")
    if text == "null" and type(None) in options:
        return None
    for value in (value for one in options if get_origin(one) is Literal for value in get_args(one)):
        if not isinstance(value, str) and text == str(value):  # pydantic takes no '8' for an 8 among choices
            return value
    listed = any(tree.is_sequence(one) for one in options)
    structured = listed or any(tree.is_model(one) or tree.is_mapping(one) or one is Any for one in options)
    if not structured or (str in options and not text.startswith(("[", "{"))):
        return text
    try:
        value = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(
            f"--{name} {shown(text)} is not valid JSON or YAML: {problem}; quote the whole value"
        ) from None
    if listed and not isinstance(value, list | dict):
        return [part.strip() for part in text.split(",")]
    return value


def _validated(
    model: type[ConfigT],
    defaults: Mapping[str, Any],
    from_file: dict[str, Any],
    config: str | None,
    overrides: dict[tree.Path, Any],
) -> ConfigT:
    for path in tree.unknown_keys(model, from_file):
        value = shown(tree.lookup(from_file, path))
        raise UserError(
            f"unknown option {dotted(path)} (value {value}) in {config}; {suggestion(model, path)}"
        )
    # What the file switches off and the command line on again begins from the defaults, as if the file were silent.
    on_again = {path[0] for path, value in overrides.items() if len(path) > 1 or value is not None}
    said = {name: value for name, value in from_file.items() if value is not None or name not in on_again}
    values = tree.merged(copy.deepcopy(dict(defaults)), said)
    for path, value in overrides.items():
        for below in tree.unknown_keys(tree.type_at(model, path), value):
            raise UserError(
                f"unknown option {dotted((*path, *below))} (value {shown(tree.lookup(value, below))}) in "
                f"--{dotted(path)}; {suggestion(model, (*path, *below))}"
            )
        values = _with(values, path, value, path)
    try:
        return model.model_validate(tree.completed(model, values))
    except ValidationError as error:

        def origin(path: tree.Path) -> str:
            if any(path[: len(one)] == one for one in overrides):
                return " on the command line"
            if config is not None and path and tree.lookup(from_file, path) is not ABSENT:
                return f" in {config}"
            return ""

        raise UserError(validation_sentence(model, error, origin)) from None


def _with(held: Any, path: tree.Path, value: Any, whole: tree.Path) -> Any:
    """``held`` with ``value`` merged in at ``path``; a list on the way must have the entry already."""
    if not path:
        return tree.merged(held, value)
    key = path[0]
    if isinstance(key, int):
        entries = list(held) if isinstance(held, list | tuple) else []
        if key >= len(entries):
            names = [entry["name"] for entry in entries if isinstance(entry, Mapping) and "name" in entry]
            named = f" ({', '.join(map(str, names))})" if names else ""
            raise UserError(
                f"--{dotted(whole)} changes entry {key} of a list of {len(entries)}{named}; entries count from 0; "
                f"one is added by giving the whole list, --{dotted(whole[: whole.index(key)])} '[...]'"
            )
        entries[key] = _with(entries[key], path[1:], value, whole)
        return entries
    room = dict(held) if isinstance(held, Mapping) else {}
    room[key] = _with(room.get(key), path[1:], value, whole)
    return room
