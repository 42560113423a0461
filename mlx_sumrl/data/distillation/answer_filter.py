"""Which answers become rows: one reason for each that does not. Never imports mlx.

Invariant: a filter is a function of one answer and its document; none of them changes the answer.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from typing import Any

from mlx_sumrl.config import AnswerFilterConfig, DistillConfig
from mlx_sumrl.data.distillation.documents import LanguageOf, form
from mlx_sumrl.errors import UserError

_THOUGHT_END = "</think>"


def after_thinking(text: str) -> tuple[str, str | None]:
    """The answer without the thoughts before it, and the thoughts where there are some.

    Raises ValueError when the thoughts never end.
    """
    thought, end, answer = text.rpartition(_THOUGHT_END)
    if end:
        return answer.strip(), thought.strip().removeprefix("<think>").strip() or None
    if text.lstrip().startswith("<think>"):
        raise ValueError("the thinking never ends")
    return text.strip(), None


def language_finder(config: DistillConfig) -> LanguageOf | None:
    """The function that finds a text's language, where an option asks for one.

    Raises `UserError` when there is none to be had.
    """
    if not config.asks_language:
        return None
    try:
        found: LanguageOf = importlib.import_module("mlx_sumrl.data.languages").language_of
        found("It loads what it needs when it is first asked.")
    except ImportError as error:
        raise UserError(
            f"languages cannot be told apart here ({error}): leave out --filter.language and --instructions, or "
            "install what is missing"
        ) from None
    return found


class AnswerFilter:
    """The filters, checked once and then asked answer by answer."""

    def __init__(self, config: AnswerFilterConfig, language_of: LanguageOf | None = None) -> None:
        """Raises `UserError` for a pattern, a schema or a tokenizer that cannot be used."""
        self._config = config
        self._language_of = language_of
        self._pattern = _compiled("filter.pattern", config.pattern) if config.pattern is not None else None
        self._reject = [_compiled("filter.reject", one) for one in config.reject]
        self._schema = _schema(config)
        self._length = _length(config)

    def reason_against(
        self, text: str, finish_reason: str | None, document: str, language: str | None
    ) -> str | None:
        """Why the answer `text` is no row; None when it is one. `language` is that of the document."""
        config = self._config
        if not text:
            return "empty answer"
        if finish_reason == "content_filter":
            return "stopped by the server's content filter"
        if finish_reason == "length" and not config.unfinished:
            return "cut off at max_tokens"
        if not _valid(text):
            return "the answer is not valid Unicode"
        if form(text, "normalised") == form(document, "normalised"):
            return "the answer is the document"
        length = self._length(text)
        if length < config.shortest:
            return f"shorter than {config.shortest} {config.unit}"
        if config.longest is not None and length > config.longest:
            return f"longer than {config.longest} {config.unit}"
        if self._pattern is not None and not self._pattern.fullmatch(text):
            return "does not match filter.pattern"
        for reject in self._reject:
            if reject.search(text):
                return f"matches filter.reject {reject.pattern}"
        if self._schema is not None and (why := self._schema(text)):
            return why
        return self._wrong_language(text, language)

    def _wrong_language(self, text: str, document_language: str | None) -> str | None:
        wanted = document_language if self._config.language == "document" else self._config.language
        if wanted in (None, "any") or self._language_of is None:
            return None
        found, confidence = self._language_of(text)
        if found == wanted or confidence < self._config.language_confidence:
            return None
        return f"in another language ({found} instead of {wanted})"


def _valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _compiled(option: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"{option} {pattern!r} is no regular expression ({error}): mend it") from None


def _length(config: AnswerFilterConfig) -> Callable[[str], int]:
    if config.unit == "words":
        return lambda text: len(text.split())
    if config.unit == "characters":
        return len
    from transformers import AutoTokenizer  # seconds to import, and the other units do without it

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(config.tokenizer)
    except Exception as error:  # transformers raises what it likes
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"filter.tokenizer {config.tokenizer} cannot be loaded ({cause}): name a folder with a tokenizer.json"
        ) from None
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _schema(config: AnswerFilterConfig) -> Callable[[str], str | None] | None:
    """Text -> why it is not what the schema allows, or None."""
    if config.json_schema is None:
        return None
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    path = config.json_schema
    try:
        schema = json.loads(path.read_bytes())
        kind: Any = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except OSError as error:
        raise UserError(
            f"filter.json_schema {path} cannot be read ({error.strerror}): correct the path"
        ) from None
    except (ValueError, SchemaError) as error:
        cause = (str(error).strip().splitlines() or ["?"])[0]
        raise UserError(f"filter.json_schema {path} is no JSON schema ({cause}): mend it") from None
    validator = kind(schema)

    def reason(text: str) -> str | None:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return "not JSON alone"
        return None if validator.is_valid(content) else "JSON that the schema does not allow"

    return reason
