"""Plain values that a program has put together -> one validated model. Never imports mlx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlx_sumrl.errors import UserError
from mlx_sumrl.options import tree
from mlx_sumrl.options.errors import shown, suggestion, validation_sentence

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def from_values(model: type[ConfigT], values: Mapping[str, Any], whose: str) -> ConfigT:
    """The validated options; ``whose`` they are begins each message. Raises `UserError`."""
    for path in tree.unknown_keys(model, values):
        value = shown(tree.lookup(values, path))
        raise UserError(
            f"{whose}: unknown option {tree.dotted(path)} (value {value}); {suggestion(model, path)}"
        )
    try:
        return model.model_validate(tree.completed(model, values))
    except ValidationError as error:
        raise UserError(f"{whose}: {validation_sentence(model, error, lambda path: '')}") from None
