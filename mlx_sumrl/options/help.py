"""The ``--help`` page: every option of a model, room by room, with type, default and its sentence.

Never imports mlx.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from mlx_sumrl.options.tree import (
    ABSENT,
    Model,
    Path,
    alternatives,
    dotted,
    is_sequence,
    item_type,
    merged,
    models_in,
    room_default,
    type_text,
)

WIDTH = 98
LONGEST_DEFAULT = 60


def help_page(
    model: Model,
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any],
    extra: Mapping[str, str],
    resumable: bool,
) -> str:
    """The whole page, at most 100 columns wide."""
    own = [("--config FILE.yaml", "Options from a YAML file; options on the command line come on top.")]
    if resumable:
        own.append(
            ("--resume runs/NAME", "Go on with that run, with its own options, from its last checkpoint.")
        )
    own += [(f"--{name} VALUE", sentence) for name, sentence in extra.items()]
    own.append(("--help", "Show this page."))

    usage = f"usage: {prog} [--config FILE.yaml] [--OPTION VALUE ...]"
    if resumable:
        usage += f"\n       {prog} --resume runs/NAME"
    parts = [
        usage,
        textwrap.fill(inspect.cleandoc(description), WIDTH),
        textwrap.fill(
            "A value of several parts is written as JSON or YAML ('[0.9, 0.99]'); null switches an optional "
            "one off; --A.B=VALUE works too, and --A.0.B sets one entry of a list that is there. In a YAML "
            "file, the parts of a name are nested keys.",
            WIDTH,
        ),
        "\n".join(_lines(own)),
        *_rooms(model, (), defaults, ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _lines(rows: list[tuple[str, str]]) -> Iterator[str]:
    for head, sentence in rows:
        yield from textwrap.wrap(head, WIDTH, initial_indent="  ", subsequent_indent="      ")
        yield from textwrap.wrap(sentence, WIDTH, initial_indent="      ", subsequent_indent="      ")


def _first_paragraph(model: Model) -> str:
    # vars(): a model without a docstring would show that of BaseModel.
    return inspect.cleandoc(vars(model).get("__doc__") or "").split("\n\n")[0].replace("\n", " ")


def _rooms(model: Model, path: Path, values: Mapping[str, Any], heading: str) -> Iterator[str]:
    """One block for the model's own options, then one for each room and each list of models in it."""
    rows: list[tuple[str, str]] = []
    below: list[str] = []
    for name, field in model.model_fields.items():
        here = (*path, name)
        default = room_default(model, name)
        value = merged(default, values[name]) if name in values else default
        sentence = (field.description or "").replace("\n", " ")
        rooms = models_in(field.annotation)
        for room in rooms:
            title = f"{dotted(here)}: {_first_paragraph(room)}".rstrip(": ")
            if type(None) in alternatives(field.annotation):
                off = value is None
                sentence_off = (
                    f"Off by default; --{dotted(here)} switches it on." if off else "null switches it off."
                )
                title = " ".join(part for part in (title, sentence, sentence_off) if part)
            below += _rooms(room, here, value if isinstance(value, Mapping) else {}, title)
        if rooms:
            continue
        rows.append((f"--{dotted(here)}  {type_text(field.annotation)}, {_default_text(value)}", sentence))
        for one in alternatives(field.annotation):
            for entry in models_in(item_type(one, 0)) if is_sequence(one) else ():
                title = f"{dotted(here)}: {_first_paragraph(entry)} Entry N of the list; N counts from 0."
                below += _rooms(entry, (*here, "N"), {}, title)
    block = textwrap.wrap(heading, WIDTH) + list(_lines(rows))
    yield "\n".join(block)
    yield from below


def _default_text(value: Any) -> str:
    if value is ABSENT:
        return "required"
    if isinstance(value, str | PurePath):
        text = repr(str(value))
    else:
        text = json.dumps(value, default=_plain, ensure_ascii=False)
    if len(text) > LONGEST_DEFAULT:
        text = text[: LONGEST_DEFAULT - 1] + "…"
    return f"default {text}"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)
