"""What is wrong with an option, in one sentence: its name, its value, the way out. Never imports mlx."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mlx_sumrl.options.tree import (
    ABSENT,
    Model,
    Path,
    dotted,
    models_in,
    option_names,
    type_at,
)

OTHERS_NAMED = 3
LONGEST_VALUE = 80


def shown(value: Any) -> str:
    """A value as it stands in a sentence: as in YAML where Python differs, and cut when long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def suggestion(model: Model, path: Path, prefix: str = "", reserved: Sequence[str] = ()) -> str:
    """The way out of an unknown option: the closest known names, or where to find them all.

    ``reserved`` are names of the recipe's own options beside those of the model.
    """
    name = dotted(path).replace("-", "_")
    leaf = name.rpartition(".")[2]
    rooms = models_in(type_at(model, path[:-1]))
    siblings = [dotted((*path[:-1], one)) for room in rooms for one in room.model_fields]
    names = list(dict.fromkeys([*siblings, *option_names(model), *reserved]))
    # Most likely first: hyphens for underscores, a slip in the last part, the right name in the wrong room.
    close = [one for one in names if one == name]
    close = close or difflib.get_close_matches(name, siblings, n=1, cutoff=0.8)
    close = close or [one for one in names if one.rpartition(".")[2] == leaf][:OTHERS_NAMED]
    close = close or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {' or '.join(prefix + one for one in close)}?"
    return "--help lists every option"


def validation_sentence(model: Model, error: ValidationError, origin: Callable[[Path], str]) -> str:
    """The first error as a sentence; further ones follow shortly.

    ``origin`` says where an option's value came from, as ``" in run.yaml"``.
    """
    details = error.errors(include_url=False)
    paths = [_option_of(model, detail["loc"]) for detail in details]
    sentences: dict[str, str] = {}
    for path, detail in zip(paths, details, strict=True):
        # A list whose only entry is wrong is reported as too short as well; the entry says it all.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in paths):
            sentences.setdefault(dotted(path), _sentence(path, detail, origin(path)))
    first, *others = sentences.values()
    if not others:
        return first
    more = len(others) - OTHERS_NAMED
    return f"{first}; also: {'; '.join(others[:OTHERS_NAMED])}" + (f"; and {more} more" if more > 0 else "")


def _option_of(model: Model, location: tuple[int | str, ...]) -> Path:
    """pydantic adds the member of a union it tried to a location; the option ends before that."""
    length = len(location)
    while length and type_at(model, location[:length]) is ABSENT:
        length -= 1
    return location[:length]


def _sentence(path: Path, detail: ErrorDetails, origin: str) -> str:
    name = dotted(path)
    if detail["type"] in ("value_error", "assertion_error"):
        own_words = re.sub(r"^(Value|Assertion) error, ", "", detail["msg"])
        says_where = not path or f"{path[0]}." in own_words
        return own_words if says_where else f"{name}{origin}: {own_words}"
    if detail["type"] == "missing":
        # An entry of a list cannot be set by itself before the list is there.
        way_out = "" if any(isinstance(key, int) for key in path) else f" or with --{name}"
        return f"{name} is missing; set it in the config file{way_out}"
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{name} is {shown(detail['input'])}{origin}: give it options of its own, or leave it out"
    wish = detail["msg"].split(", unable to parse")[0].split(", got ")[0]
    wish = re.sub(r"^\w+ should", "it should", wish)
    if detail["type"] == "string_type":
        wish += " (in YAML, put it in quotes)"
    return f"{name} is {shown(detail['input'])}{origin}: {wish}"
