"""What every room of options has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Room(BaseModel):
    """Options of one room: typed, frozen, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )
