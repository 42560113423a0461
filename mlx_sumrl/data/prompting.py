"""How a model was asked in training, kept beside its export so that it is asked the same way later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_sumrl.config import DataConfig, LengthConfig
from mlx_sumrl.errors import UserError

FILE = "prompting.json"
KEPT = ("instruction", "system", "chat_template", "document_column", "reference_column", "max_prompt_tokens")
"""The options of `DataConfig` that shape a prompt, or say where its parts are."""


def write_prompting(folder: Path, data: DataConfig, length: LengthConfig) -> Path:
    """Write ``prompting.json`` into an export folder."""
    content = {"data": {name: getattr(data, name) for name in KEPT}, "length": length.model_dump()}
    path = folder / FILE
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def as_trained(model: str, data: DataConfig, length: LengthConfig) -> tuple[DataConfig, LengthConfig]:
    """``data`` and ``length`` with what they leave unset taken from the model folder, where it has the file.

    Raises `UserError` for a file that cannot be read.
    """
    path = Path(model).expanduser() / FILE
    if not path.is_file():
        return data, length
    try:
        saved: dict[str, dict[str, Any]] = json.loads(path.read_text())
        trained_data, trained_length = DataConfig(**saved["data"]), LengthConfig(**saved["length"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it and give --data.instruction") from error
    return (
        trained_data.model_copy(update={name: getattr(data, name) for name in data.model_fields_set}),
        trained_length.model_copy(update={name: getattr(length, name) for name in length.model_fields_set}),
    )
