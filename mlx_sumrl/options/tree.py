"""The options of a pydantic model as a tree of dotted names, and what a value does to it.

An option's place is a path, ``("grpo", "group_size")`` or ``("stages", 0, "steps")``; written
``grpo.group_size`` and ``stages.0.steps``. Works on annotations, so on any `BaseModel`. Never imports mlx.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import TypeAliasType

Path = tuple[str | int, ...]
Model = type[BaseModel]


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""Nothing is there; None is a value like any other."""


def dotted(path: Path) -> str:
    """``("stages", 0, "steps")`` -> ``"stages.0.steps"``."""
    return ".".join(str(key) for key in path)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, with aliases and `Annotated` taken off; any other annotation alone."""
    if isinstance(annotation, TypeAliasType):
        return alternatives(annotation.__value__)
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return tuple(one for member in get_args(annotation) for one in alternatives(member))
    return (annotation,)


def is_model(annotation: Any) -> bool:
    """Whether it is a `BaseModel` class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_mapping(annotation: Any) -> bool:
    """Whether it is a dict type."""
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Mapping)


def is_sequence(annotation: Any) -> bool:
    """Whether it is a list, tuple or set type; text is none of them."""
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Sequence | Set) and not issubclass(kind, str | bytes)


def models_in(annotation: Any) -> list[Model]:
    """The models that a value of this type may be."""
    return [one for one in alternatives(annotation) if is_model(one)]


def item_type(annotation: Any, index: int) -> Any:
    """Type of an entry of a list, tuple or set; ABSENT beyond the end of a tuple of fixed length."""
    members = get_args(annotation)
    if not members:
        return Any
    if get_origin(annotation) is tuple and not (len(members) == 2 and members[1] is Ellipsis):
        return members[index] if index < len(members) else ABSENT
    return members[0]


def child(annotation: Any, key: str | int) -> Any:
    """Type of what is below ``key``, or ABSENT when nothing of that name can be there."""
    for one in alternatives(annotation):
        if one is Any:
            return Any
        if is_model(one):
            if key in one.model_fields:
                return one.model_fields[str(key)].annotation
            if one.model_config.get("extra") == "allow":
                return Any
        elif is_mapping(one):
            members = get_args(one)
            return members[1] if members else Any
        elif is_sequence(one) and str(key).isdigit():
            return item_type(one, int(key))
    return ABSENT


def type_at(annotation: Any, path: Path) -> Any:
    """Type of the option at ``path``, or ABSENT."""
    for key in path:
        annotation = child(annotation, key)
        if annotation is ABSENT:
            return ABSENT
    return annotation


def path_of(annotation: Any, name: str) -> Path:
    """A dotted name as a path; digits are an index only where a list can be."""
    path: Path = ()
    for key in name.split("."):
        listed = any(is_sequence(one) for one in alternatives(type_at(annotation, path)))
        path = (*path, int(key) if listed and key.isdigit() else key)
    return path


def lookup(tree: Any, path: Path) -> Any:
    """The value at ``path`` in nested dicts and lists, or ABSENT."""
    for key in path:
        if isinstance(tree, Mapping) and key in tree:
            tree = tree[key]
        elif isinstance(tree, list | tuple) and str(key).isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            return ABSENT
    return tree


def unknown_keys(annotation: Any, value: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of the keys in ``value`` that are no option, whether the model itself would mind or not."""
    if isinstance(value, Mapping):
        known = any(is_model(one) or is_mapping(one) for one in alternatives(annotation))
        for key, below in value.items() if known else ():
            kind = child(annotation, key)
            if kind is ABSENT:
                yield (*path, key)
            else:
                yield from unknown_keys(kind, below, (*path, key))
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            kind = child(annotation, index)
            if kind is not ABSENT:
                yield from unknown_keys(kind, below, (*path, index))


def option_names(annotation: Any, path: Path = ()) -> Iterator[str]:
    """Every dotted name; the entries of lists are left out."""
    for model in models_in(annotation):
        for name, field in model.model_fields.items():
            yield dotted((*path, name))
            yield from option_names(field.annotation, (*path, name))


def merged(below: Any, above: Any) -> Any:
    """``above`` over ``below``: mappings key by key, anything else (lists too) replaced as a whole."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    result = dict(below)
    for key, value in above.items():
        result[key] = merged(below[key], value) if key in below else value
    return result


def room_default(model: Model, name: str) -> Any:
    """What a room's default sets by itself, as a mapping; any other field's default; ABSENT if required."""
    field = model.model_fields[name]
    if field.is_required():
        return ABSENT
    default = field.get_default(call_default_factory=True, validated_data={})
    # Only what the default was given: the rest is that room's own default, kept in its class.
    return default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else default


def completed(annotation: Any, value: Any) -> Any:
    """``value`` with each room laid over its default in the model above it.

    Validation alone would take a partial room from scratch: with ``sft.optimizer.weight_decay`` given,
    ``sft.optimizer.learning_rate`` would fall back from the default in `SftConfig` to that of
    `OptimizerConfig`.
    A required room that was not given is tried as an empty one, so that its own check says what it needs.
    """
    if isinstance(value, Mapping):
        models = models_in(annotation)
        result = dict(value)
        for name, field in models[0].model_fields.items() if len(models) == 1 else ():
            default = room_default(models[0], name)
            rooms = models_in(field.annotation)
            if name not in result and default is ABSENT and len(rooms) == 1:
                result[name] = {}
            if name in result:
                below = default if rooms and isinstance(default, Mapping) else {}
                result[name] = completed(field.annotation, merged(below, result[name]))
        return result
    if isinstance(value, list | tuple):
        kinds = [child(annotation, index) for index in range(len(value))]
        return [completed(kind, below) for kind, below in zip(kinds, value, strict=True)]
    return value


def type_text(annotation: Any) -> str:
    """A type as a person would say it: ``int or null``, ``a | b``, ``list of float``."""
    return " or ".join(dict.fromkeys(_one_type_text(one) for one in alternatives(annotation)))


def _one_type_text(one: Any) -> str:
    if one is type(None):
        return "null"
    if get_origin(one) is Literal:
        return " | ".join(str(value) for value in get_args(one))
    if one is bool:
        return "true | false"
    if is_model(one):
        return "mapping"
    if is_mapping(one):
        members = get_args(one)
        return f"mapping of {type_text(members[1])}" if members else "mapping"
    if is_sequence(one):
        entries = [member for member in get_args(one) if member is not Ellipsis]
        if get_origin(one) is tuple and Ellipsis not in get_args(one):
            return f"[{', '.join(type_text(entry) for entry in entries)}]"
        return f"list of {type_text(entries[0])}" if entries else "list"
    return str(getattr(one, "__name__", one)).lower()
