"""A model is asked as in training, unless told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_sumrl.config import DataConfig, LengthConfig
from mlx_sumrl.data.prompting import as_trained, write_prompting
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
