"""Each filter on answers that it must keep and answers that it must not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import AnswerFilterConfig, DistillConfig
from mlx_sumrl.data.distillation.answer_filter import AnswerFilter, after_thinking, language_finder
from mlx_sumrl.errors import UserError

DOCUMENT = "A long text about a bridge."


def reason(
    text: str, finish: str | None = "stop", language: str | None = None, of: Any = None, **options: Any
) -> Any:
    return AnswerFilter(AnswerFilterConfig(**options), of).reason_against(text, finish, DOCUMENT, language)


def test_what_no_dataset_wants() -> None:
    assert reason("A bridge.") is None
    assert reason("A bridge.", finish=None) is None
    assert reason("") == "empty answer"
    assert reason("A bri", finish="length") == "cut off at max_tokens"
    assert reason("A bri", finish="length", unfinished=True) is None
    assert reason("A", finish="content_filter") == "stopped by the server's content filter"
    assert reason("a long  TEXT about a bridge.") == "the answer is the document"
    assert reason("half \udc00") == "the answer is not valid Unicode"


def test_lengths() -> None:
    assert reason("one two three", shortest=3, longest=3) is None
    assert reason("one two", shortest=3) == "shorter than 3 words"
    assert reason("one two three four", longest=3) == "longer than 3 words"
    assert reason("四个汉字", unit="characters", shortest=4, longest=4) is None
    assert reason("五个汉字。", unit="characters", longest=4) == "longer than 4 characters"


def test_tokens(summarizer: Any) -> None:
    """The truth is the tokenizer's own count."""
    text = "The bridge was closed."
    count = len(summarizer(text, add_special_tokens=False)["input_ids"])
    folder = summarizer.name_or_path
    assert reason(text, unit="tokens", tokenizer=folder, shortest=count, longest=count) is None
    assert (
        reason(text, unit="tokens", tokenizer=folder, longest=count - 1) == f"longer than {count - 1} tokens"
    )


def test_patterns() -> None:
    assert reason("Summary: x", pattern="Summary: .+") is None
    assert reason("The Summary: x", pattern="Summary: .+") == "does not match filter.pattern"
    assert reason("Summary: x\ny", pattern="Summary: .+") is None
    assert reason("As an AI, I", reject=["(?i)^as an ai"]) == "matches filter.reject (?i)^as an ai"
    with pytest.raises(UserError, match=r"filter.pattern '\(' is no regular expression"):
        reason("x", pattern="(")


def test_json_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    schema = {
        "type": "object",
        "required": ["tags"],
        "properties": {"tags": {"type": "array", "minItems": 1}},
    }
    path.write_text(json.dumps(schema))
    assert reason('{"tags": ["a"]}', json_schema=path) is None
    assert reason('{"tags": []}', json_schema=path) == "JSON that the schema does not allow"
    assert reason('Here: {"tags": ["a"]}', json_schema=path) == "not JSON alone"
    assert reason('{"tags": ["a"]} {"tags": ["a"]}', json_schema=path) == "not JSON alone"
    path.write_text('{"type": "objekt"}')
    with pytest.raises(UserError, match="is no JSON schema"):
        reason("x", json_schema=path)
    with pytest.raises(UserError, match="cannot be read"):
        reason("x", json_schema=tmp_path / "nowhere.json")


def test_language() -> None:
    def language_of(text: str) -> tuple[str, float]:
        return ("de" if "Brücke" in text else "en"), (0.5 if len(text) < 10 else 0.95)

    german, english = "Die Brücke war zu.", "The bridge was closed."
    assert reason(german, language="de", of=language_of, language_confidence=0.8) is None
    filters = AnswerFilter(AnswerFilterConfig(language="document"), language_of)
    assert filters.reason_against(german, "stop", DOCUMENT, "de") is None
    assert filters.reason_against(english, "stop", DOCUMENT, "de") == "in another language (en instead of de)"
    assert filters.reason_against("A bridge", "stop", DOCUMENT, "de") is None  # too short to tell
    assert filters.reason_against(english, "stop", DOCUMENT, None) is None
    code = AnswerFilter(AnswerFilterConfig(language="de"), language_of)
    assert code.reason_against(english, "stop", DOCUMENT, "en") == "in another language (en instead of de)"


def test_a_finder_is_loaded_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**changes: Any) -> DistillConfig:
        return DistillConfig.model_validate(
            {"out": Path("out"), "teacher": "http://h", "model": "m", "source": ["a.jsonl"], **changes}
        )

    assert language_finder(config()) is None
    declared = {"source": [{"file": "a.jsonl", "language": "de"}], "instructions": {"de": "Kurz: {document}"}}
    assert language_finder(config(**declared)) is None
    monkeypatch.setitem(sys.modules, "mlx_sumrl.data.languages", None)
    with pytest.raises(UserError, match="languages cannot be told apart here"):
        language_finder(config(filter={"language": "document"}))


def test_thinking() -> None:
    assert after_thinking(" An answer. ") == ("An answer.", None)
    assert after_thinking("<think>\nhm\n</think>\n\nAn answer.") == ("An answer.", "hm")
    assert after_thinking("hm</think>An answer.") == ("An answer.", "hm")
    assert after_thinking("<think></think>An answer.") == ("An answer.", None)
    with pytest.raises(ValueError, match="never ends"):
        after_thinking("<think> hm")
