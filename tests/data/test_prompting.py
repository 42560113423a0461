"""A model is asked as in training, unless told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_sumrl.config import AnswerConfig, DataConfig, LengthConfig, ReasoningConfig
from mlx_sumrl.data.prompting import answer_as_trained, as_trained, asked_to_reason, write_prompting
from mlx_sumrl.errors import UserError

TRAINED = DataConfig(
    train="a.jsonl", instruction="Sum up:\n{document}", document_column="post", max_prompt_tokens=99
)


def test_what_is_not_given_is_as_in_training(tmp_path: Path) -> None:
    write_prompting(tmp_path, TRAINED, LengthConfig(target=20, tolerance=2))
    given = DataConfig(evaluation="b.jsonl", document_column="text")
    data, length = as_trained(str(tmp_path), given, LengthConfig(tolerance=3))
    assert data.instruction == "Sum up:\n{document}"
    assert (data.document_column, data.max_prompt_tokens) == ("text", 99)
    assert (data.train, data.evaluation) == (None, "b.jsonl")  # where rows are is never taken over
    assert (length.target, length.tolerance) == (20, 3)


def test_a_folder_that_does_not_say(tmp_path: Path) -> None:
    given, length = DataConfig(evaluation="b.jsonl"), LengthConfig()
    assert as_trained(str(tmp_path), given, length) == (given, length)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"data": {"instruction": "no place"}, "length": {}}'])
def test_a_file_that_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "prompting.json").write_text(content)
    with pytest.raises(UserError, match=r"prompting\.json"):
        as_trained(str(tmp_path), DataConfig(), LengthConfig())


def test_reasoning_is_switched_as_in_training(tmp_path: Path) -> None:
    trained = TRAINED.model_copy(update={"system": "Be brief."})
    words = ReasoningConfig(on="think", off="don't")
    write_prompting(tmp_path, trained, LengthConfig(), reasoning=words)
    model, given = str(tmp_path), DataConfig(evaluation="b.jsonl")
    data, _ = as_trained(model, given, LengthConfig())
    assert asked_to_reason(model, data, given, "on").system == "Be brief.\n\nthink"
    assert asked_to_reason(model, data, given, "off").system == "Be brief.\n\ndon't"
    with pytest.raises(UserError, match="--reasoning on or --reasoning off"):
        asked_to_reason(model, data, given, None)
    own = DataConfig(system="Mine.")
    assert asked_to_reason(model, own, own, None) == own
    assert answer_as_trained(model, AnswerConfig(), "on") == AnswerConfig(after="</think>")
    assert answer_as_trained(model, AnswerConfig(), "off") == AnswerConfig()
    assert answer_as_trained(model, AnswerConfig(after="#"), "on") == AnswerConfig(after="#")
    assert answer_as_trained(model, AnswerConfig(after=None), "on") == AnswerConfig()
    assert answer_as_trained(model, AnswerConfig(length="completion"), "on").after == "</think>"


def test_reasoning_that_was_never_trained(tmp_path: Path) -> None:
    write_prompting(tmp_path, TRAINED, LengthConfig(), AnswerConfig(after="#", length="completion"))
    data = DataConfig()
    assert asked_to_reason(str(tmp_path), data, data, None) == data
    with pytest.raises(UserError, match=r"--data\.system.*--answer\.after"):
        asked_to_reason(str(tmp_path), data, data, "on")
    assert answer_as_trained(str(tmp_path), AnswerConfig(), None) == AnswerConfig(
        after="#", length="completion"
    )
    assert answer_as_trained(str(tmp_path / "elsewhere"), AnswerConfig(), None) == AnswerConfig()
