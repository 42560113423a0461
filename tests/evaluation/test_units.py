"""An evaluation in another unit: its lengths, its table, its file; and whether languages are kept."""

from __future__ import annotations

import json
from io import StringIO

from rich.console import Console

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.evaluation import Evaluation, comparison_markdown, comparison_table, score

WORDS = LengthConfig(target=4, tolerance=1, unit="words")


def test_lengths_in_words(answer):
    found = score(
        [
            answer("one two three four", 30),
            answer("one two", 4),
            answer("one two three four", 4, "length"),
        ],
        WORDS,
    )
    assert [row.length for row in found.rows] == [4, 2, 4]
    assert [row.metrics["within"] for row in found.rows] == [1, 0, 0]
    assert found.summary["within"] == found.summary["exact"] == found.summary["unfinished"] == 1 / 3
    assert found.summary["length_mean"] == 10 / 3
    assert found.unit == "words"


def test_the_table_says_in_what(answer):
    words, tokens = score([answer("one", 3)], WORDS), score([answer("one", 3)], LengthConfig())

    def caption(**evaluations: Evaluation) -> str:
        output = StringIO()
        Console(file=output, width=100).print(comparison_table(evaluations))
        return " ".join(output.getvalue().split())

    assert "length in words, mean" in caption(a=words)
    assert "length in tokens, mean" in caption(a=tokens)
    assert "length in words or tokens, mean" in caption(a=words, b=tokens)
    assert "| Length (words) |" in comparison_markdown({"a": words})
    assert "| Length |" in comparison_markdown({"a": tokens})


def test_the_file_says_in_what(answer):
    found = score([answer("one", 3)], WORDS)
    content = json.loads(json.dumps(found.to_json()))
    assert Evaluation.from_json(content) == found
    del content["unit"]  # as it was written before there were others
    assert Evaluation.from_json(content).unit == "tokens"


def test_share_that_keeps_the_language(answer):
    found = score([answer("a document"), answer("文件"), answer("... !"), answer("a paper")], WORDS)
    assert [row.metrics["language_kept"] for row in found.rows] == [1, 0, 0, 1]
    assert found.summary["language_kept"] == 0.5
