"""Options: answers that are JSON."""

from __future__ import annotations

import warnings
from typing import Literal

from pydantic import Field

from mlx_sumrl.config.room import Room

Decoding = Literal["free", "stop", "constrained"]

with warnings.catch_warnings():
    # pydantic warns of the name: `BaseModel.schema` is the deprecated name of `model_json_schema`.
    warnings.filterwarnings("ignore", message='Field name "schema"', category=UserWarning)

    class StructuredConfig(Room):
        """What an answer has to be, and how it is made to be that."""

        schema: str = Field(min_length=1)  # type: ignore[assignment]
        """A JSON schema (`x.json`) or a pydantic model (`package.module:Model`, `path/to/file.py:Model`)."""
        decoding: Decoding = "constrained"
        """`free`: the model's own tokens and its own end. `stop`: the answer ends when its first JSON value is
        complete. `constrained`: only tokens that the schema allows are drawn."""
