"""How a model was asked in training, kept beside its export so that it is asked the same way later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from mlx_sumrl.config import AnswerConfig, DataConfig, LengthConfig, ReasoningConfig
from mlx_sumrl.data.conversations import joined
from mlx_sumrl.data.reasoning import CLOSE
from mlx_sumrl.errors import UserError

FILE = "prompting.json"
KEPT = (
    *("instruction", "system", "chat_template", "enable_thinking"),
    *("document_column", "reference_column", "max_prompt_tokens"),
)
"""The options of `DataConfig` that shape a prompt, or say where its parts are."""
ReasoningMode = Literal["on", "off"]


def write_prompting(
    folder: Path,
    data: DataConfig,
    length: LengthConfig,
    answer: AnswerConfig | None = None,
    reasoning: ReasoningConfig | None = None,
) -> Path:
    """Write ``prompting.json`` into an export folder.

    ``answer`` says which part of a completion was its answer, ``reasoning`` which system prompts switched thoughts on
    and off.
    """
    content: dict[str, Any] = {
        "data": {name: getattr(data, name) for name in KEPT},
        "length": length.model_dump(),
    }
    if answer is not None:
        content["answer"] = answer.model_dump()
    if reasoning is not None:
        content["reasoning"] = {"on": reasoning.on, "off": reasoning.off}
    path = folder / FILE
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def as_trained(model: str, data: DataConfig, length: LengthConfig) -> tuple[DataConfig, LengthConfig]:
    """``data`` and ``length`` with what they leave unset taken from the model folder, where it has the file.

    The several targets of a training run are left behind: whoever asks now asks for one length.

    Raises `UserError` for a file that cannot be read.
    """
    saved = _saved(model)
    if saved is None:
        return data, length
    try:
        trained_data, trained_length = DataConfig(**saved["data"]), LengthConfig(**saved["length"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(model, error) from error
    return (
        trained_data.model_copy(update={name: getattr(data, name) for name in data.model_fields_set}),
        trained_length.model_copy(
            update={"targets": ()} | {name: getattr(length, name) for name in length.model_fields_set}
        ),
    )


def asked_to_reason(
    model: str, data: DataConfig, given: DataConfig, mode: ReasoningMode | None
) -> DataConfig:
    """``data`` under the system prompt that switched reasoning ``on`` or ``off`` in training.

    ``given`` are the user's own options: with a system prompt of theirs nothing has to be said.

    Raises:
        UserError: the model learned both and nothing says which is wanted, or it learned neither.
    """
    words = (_saved(model) or {}).get("reasoning")
    if words is None:
        if mode is None:
            return data
        raise UserError(
            f"--reasoning {mode}: {model} does not say how reasoning is switched (no {FILE} of a run with "
            "masking.reasoning): give the words as --data.system, and what ends a thought as --answer.after"
        )
    if mode is None:
        if "system" in given.model_fields_set:
            return data
        raise UserError(
            f"{model} was trained to reason under the system prompt {words.get('on')!r} and not to under "
            f"{words.get('off')!r}: say which with --reasoning on or --reasoning off, or give --data.system"
        )
    return data.model_copy(update={"system": joined(data.system, str(words[mode]))})


def answer_as_trained(model: str, answer: AnswerConfig, mode: ReasoningMode | None) -> AnswerConfig:
    """``answer`` with what it leaves unset: what ends a thought where reasoning is ``on``, nothing where it is ``off``,
    and as the model folder says otherwise.

    Raises `UserError` for a file that cannot be read.
    """
    try:
        trained = AnswerConfig(**((_saved(model) or {}).get("answer") or {}))
    except (ValueError, TypeError) as error:
        raise _unreadable(model, error) from error
    if mode is not None:
        trained = trained.model_copy(update={"after": CLOSE if mode == "on" else None})
    return trained.model_copy(update={name: getattr(answer, name) for name in answer.model_fields_set})


def _saved(model: str) -> dict[str, Any] | None:
    """What the folder's file holds; None where it has none."""
    path = Path(model).expanduser() / FILE
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise _unreadable(model, error) from error
    if not isinstance(saved, dict):
        raise _unreadable(model, TypeError(f"it holds {type(saved).__name__}"))
    return saved


def _unreadable(model: str, error: Exception) -> UserError:
    path = Path(model).expanduser() / FILE
    return UserError(f"{path} cannot be read ({error}); remove it and give --data.instruction")
