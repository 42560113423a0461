"""What a structured answer has to be: a JSON schema, from a file or from a pydantic model. Never imports mlx."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import Draft202012Validator, validator_for
from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticUserError

from mlx_sumrl.errors import UserError
from mlx_sumrl.named_object import import_source, split_location

WHAT = "structured.schema"
"""How errors begin."""


class NotJsonError(ValueError):
    """A text that is not JSON as RFC 8259 has it, or deeper or longer than Python reads."""


class Problem(NamedTuple):
    """Why a value does not meet a schema."""

    message: str
    place: str
    """Where in the value, as ``$.companies[0]``."""

    def __str__(self) -> str:
        return f"{self.message} at {self.place}"


@dataclass(frozen=True)
class AnswerSchema:
    """A schema that answers are held against."""

    name: str
    """What the user called it."""
    json_schema: dict[str, Any]
    model: type[BaseModel] | None = None
    """The pydantic model that the schema is of; its own validators count too."""
    _validator: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises `UserError` for what is no JSON schema, or refers to another document."""
        for reference in _references(self.json_schema):
            if not reference.startswith("#"):
                raise UserError(
                    f"{WHAT} {self.name} refers to {reference!r}, and nothing is fetched: put that under $defs and "
                    "refer to it as #/$defs/NAME"
                )
        kind = validator_for(self.json_schema, default=Draft202012Validator)
        try:
            kind.check_schema(self.json_schema)
        except SchemaError as error:
            raise UserError(
                f"{WHAT} {self.name} is no JSON schema: {error.message} at {error.json_path}; mend it"
            ) from error
        object.__setattr__(self, "_validator", kind(self.json_schema))

    @property
    def opening(self) -> bytes:
        """Brackets that an answer may begin with, ``{``, ``[`` or both; empty where it is neither object nor list."""
        asked = self.json_schema.get("type")
        if asked is None:
            return b"{["
        kinds = asked if isinstance(asked, list) else [asked]
        return b"".join(bracket for kind, bracket in (("object", b"{"), ("array", b"[")) if kind in kinds)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of an object's properties, in the schema's order; empty where it names none."""
        return tuple(self.json_schema.get("properties", ()))

    def problem(self, value: Any) -> Problem | None:
        """Why a value does not meet the schema; None where it does.

        Nothing is converted: a pydantic model that takes "7" for an int does not do so here.
        """
        error = best_match(self._validator.iter_errors(value))
        if error is not None:
            return Problem(error.message, error.json_path)
        if self.model is not None:
            try:
                self.model.model_validate(value)
            except ValidationError as refused:
                first = refused.errors()[0]
                return Problem(first["msg"], ".".join(["$", *map(str, first["loc"])]))
        return None


def read_json(text: str) -> Any:
    """The one value that a text is. Raises `NotJsonError`."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(str(error)) from error


def load_schema(location: str) -> AnswerSchema:
    """A JSON schema (``x.json``) or a pydantic model (``package.module:Model``, ``path/to/file.py:Model``).

    Raises:
        UserError: there is no such file, module or model, or it is no schema.
    """
    if location.lower().endswith(".json"):
        return AnswerSchema(location, _read_file(location))
    source, name = split_location(location, WHAT, "Model")
    module = import_source(source, location, WHAT, "Model")
    model = getattr(module, name, None)
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        found = "is no pydantic model" if hasattr(module, name) else "does not exist there"
        there = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, BaseModel) and value.__module__ == module.__name__
        ]
        raise UserError(
            f"{WHAT} {location!r}: {name!r} {found}; the models of {source} are: {', '.join(there) or 'none'}"
        )
    try:
        return AnswerSchema(location, model.model_json_schema(), model)
    except PydanticUserError as error:  # a field of a type that no JSON stands for
        cause = str(error).splitlines()[0]
        raise UserError(
            f"{WHAT} {location!r} cannot be written as a JSON schema ({cause}); mend the model"
        ) from error


def _read_file(location: str) -> dict[str, Any]:
    path = Path(location).expanduser()
    try:
        content = read_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"{WHAT}: there is no file {location} seen from {str(Path.cwd())!r}; give its path from there, or a full "
            "one"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{WHAT}: {location} cannot be read as JSON ({error}); mend it") from error
    if not isinstance(content, dict):
        raise UserError(f"{WHAT}: {location} holds no JSON object, and a schema is one; mend it")
    return content


def _references(schema: Any) -> Iterator[str]:
    """Every $ref in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
