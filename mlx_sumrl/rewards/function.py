"""A user's own reward function, called as TRL's GRPOTrainer calls it, so that one written for TRL works here.

The call is ``f(prompts=..., completions=..., completion_ids=..., **columns)``; every argument is a list with
one entry per completion, in the order prompt 0's completions, then prompt 1's, and so on. ``columns`` are the
columns of the data, each value repeated for every completion of its row; ``prompt``, ``completion`` and
``completion_ids`` are left out of them (TRL, ``GRPOTrainer._calculate_rewards``). TRL also passes its own
``trainer_state``; there is no such thing here, and a function that requires it is told so.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.errors import UserError
from mlx_sumrl.named_object import import_source, split_location
from mlx_sumrl.rewards.reward import Place, group_shape
from mlx_sumrl.rollouts.types import Group

RewardFunction = Callable[..., Any]
WHAT = "reward function"
"""How errors begin."""

# TRL keeps these columns back; the plural names are arguments of the call itself and cannot be given twice.
_RESERVED = frozenset({"prompt", "prompts", "completion", "completions", "completion_ids"})


def load_function(location: str) -> RewardFunction:
    """Import ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        UserError: the module, file or function is missing or fails to import, or the function cannot be
            called with ``prompts`` and ``completions`` by name.
    """
    source, name = split_location(location, WHAT, "function")
    module = import_source(source, location, WHAT, "function")
    function = getattr(module, name, None)
    if not callable(function):
        found = "is not a function" if hasattr(module, name) else "does not exist there"
        ours = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise UserError(
            f"reward function {location!r}: {name!r} {found}; the functions of {source} are: "
            f"{', '.join(ours) or 'none'}"
        )
    _check_callable(function, location)
    return function  # type: ignore[no-any-return]


def _parameters(function: RewardFunction) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some C functions have no signature
        return None


def _check_callable(function: RewardFunction, location: str) -> None:
    call = function if inspect.isroutine(function) else type(function).__call__
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        raise UserError(f"reward function {location!r} is async; make it a plain `def`")
    parameters = _parameters(function)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    missing = [name for name in ("prompts", "completions") if name not in by_name]
    if missing:
        raise UserError(
            f"reward function {location!r} does not take {' and '.join(missing)} by name; define it as "
            f"def {location.rpartition(':')[2]}(prompts, completions, **columns)"
        )


def check_columns(location: str, columns: Sequence[str]) -> None:
    """Raises `UserError` when the function requires an argument that is no column of the data."""
    parameters = _parameters(load_function(location)) or []
    given = {"prompts", "completions", "completion_ids", *columns}
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and parameter.name not in given:
            raise UserError(
                f"reward function {location!r} needs {parameter.name!r}, which is no column of the data; "
                f"the columns are {', '.join(columns)}"
            )


def _columns(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Every column of the rows, repeated per completion; None where a row lacks one that others have."""
    names = dict.fromkeys(name for group in groups for name in group.example.fields if name not in _RESERVED)
    return {
        name: [group.example.fields.get(name) for group in groups for _ in group.completions]
        for name in names
    }


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A user's function as a reward.

    ``completions_as="text"`` passes prompts and completions as strings. ``"messages"`` passes them as TRL's
    conversational format does: a prompt as ``[{"role": "user", "content": prompt}]`` and a completion as
    ``[{"role": "assistant", "content": text}]``. ``completion_ids`` are lists of ids, stop token included.
    """

    place: ClassVar[Place] = "thread"
    name: str
    location: str
    """Where the function came from; errors name it."""
    function: RewardFunction = field(repr=False)
    completions_as: Literal["text", "messages"] = "text"

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G]; NaN where the function said None.

        Raises:
            UserError: the function requires an argument that is no column of the data, or returns something
                other than one finite number or None per completion. What it raises itself passes through.
        """
        shape = group_shape(groups)
        try:
            answer = self.function(**self._arguments(groups))
        except Exception as error:
            # A bug in the user's own code: the traceback is what helps, so nothing is wrapped.
            error.add_note(f"raised while reward function {self.location!r} was called")
            raise
        return self._checked(answer, shape[0] * shape[1]).reshape(shape)

    def _arguments(self, groups: Sequence[Group]) -> dict[str, Any]:
        prompts: list[Any] = [group.example.prompt for group in groups for _ in group.completions]
        completions: list[Any] = [completion.text for group in groups for completion in group.completions]
        if self.completions_as == "messages":
            prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        columns = _columns(groups)
        arguments: dict[str, Any] = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": [list(c.token_ids) for group in groups for c in group.completions],
            **columns,
        }
        parameters = _parameters(self.function)
        if parameters is None:
            return arguments
        absent = [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in arguments
        ]
        if absent:
            raise UserError(
                f"reward function {self.location!r} requires {', '.join(absent)}, which is no column of the "
                f"data (columns: {', '.join(columns) or 'none'}); rename it or give it a default"
            )
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return arguments
        taken = {p.name for p in parameters}
        return {name: value for name, value in arguments.items() if name in taken}

    def _checked(self, answer: Any, count: int) -> NDArray[np.float64]:
        """The answer as floats, shape [count]."""
        expected = f"it must return a list of {count} finite numbers (or None), one per completion"
        if isinstance(answer, str | bytes | dict) or not hasattr(answer, "__len__"):
            raise UserError(
                f"reward function {self.location!r} returned {_short(answer)} ({type(answer).__name__}); "
                f"{expected}"
            )
        if len(answer) != count:
            raise UserError(f"reward function {self.location!r} returned {len(answer)} values; {expected}")
        values = np.empty(count, dtype=np.float64)
        for index, value in enumerate(answer):
            number = _number(value)
            if number is None:
                raise UserError(
                    f"reward function {self.location!r} returned {_short(value)} for completion {index}; "
                    f"{expected}"
                )
            values[index] = number
        return values


def _number(value: Any) -> float | None:
    """A finite float; NaN for None, the reward left out; None for anything that is no finite number."""
    if value is None:
        return math.nan
    if isinstance(value, str | bytes):  # float("1") would pass
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
