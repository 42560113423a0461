"""Completions held to a JSON schema, by llguidance: at each step it says which tokens the schema allows.

An object's keys come in the schema's order, and line breaks and spaces between tokens of JSON are limited, or a weak
model would write them for ever. What the answers have to be beyond the schema (a pydantic model's own validators) is
not enforced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from mlx_sumrl.data.answer_schema import AnswerSchema
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.constraint import Constraint, EndOfJson, Words

WHITE_SPACE = r"\x20|\x0A(\x20{0,20}|\x09{0,8})"
"""What may stand between tokens of JSON: a space, or a line break and an indent of 20 spaces or 8 tabs at most."""


def schema_constraint(schema: AnswerSchema, policy: Policy) -> SchemaConstraint:
    """Answers of this policy meet this schema.

    Raises:
        UserError: the schema has keywords that llguidance does not enforce, or the tokenizer is of a kind that it
            does not read.
    """
    return SchemaConstraint(schema, _tokens(policy))


def end_of_json(schema: AnswerSchema, policy: Policy) -> Constraint:
    """Answers of this policy end when their first object, or list, is complete.

    Raises:
        UserError: the schema's answers are neither, or the tokenizer is of a kind that llguidance does not read.
    """
    if not schema.opening:
        raise UserError(
            f"structured.decoding stop: answers of {schema.name} are neither objects nor lists, so their end cannot be "
            "seen; use constrained or free"
        )
    tokens = _tokens(policy)

    def token_bytes(token: int) -> bytes:
        # Left out of a completion's text too.
        return b"" if tokens.is_special_token(token) else bytes(tokens.decode_bytes([token]))

    return EndOfJson(token_bytes, policy.stop_ids, schema.opening)


class SchemaConstraint:
    """A schema, compiled for the tokens of one model."""

    def __init__(self, schema: AnswerSchema, tokens: LLTokenizer) -> None:
        """Raises `UserError` for a schema that cannot be enforced."""
        self.schema = schema
        grammar = LLMatcher.grammar_from_json_schema(
            schema.json_schema, overrides={"whitespace_pattern": WHITE_SPACE}
        )
        broken, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokens)
        if broken:
            raise UserError(
                f"structured.schema {schema.name} cannot be enforced while sampling ({_line(messages[0])}); leave that "
                "out of the schema, or use structured.decoding stop"
            )
        self._fresh = LLMatcher(tokens, grammar, log_level=0)

    def start(self) -> SchemaMatcher:
        """A matcher for a new completion."""
        return SchemaMatcher(self._fresh.deep_copy(), self.schema.name)


class SchemaMatcher:
    """One completion that is held to a schema."""

    def __init__(self, matcher: LLMatcher, name: str) -> None:
        self._matcher = matcher
        self._name = name

    def fill(self, words: Words) -> None:
        """The tokens that the schema allows; stop tokens where the value may end.

        Raises:
            UserError: none is allowed, or the schema is too much for llguidance's limits.
        """
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            raise self._stuck(_line(self._matcher.get_error()))
        if not np.any(words):
            raise self._stuck("the vocabulary has no token that may come next")

    def accept(self, token: int) -> None:
        """This token has come."""
        if not self._matcher.consume_token(token):
            raise self._stuck(_line(self._matcher.get_error()))

    def _stuck(self, why: str) -> UserError:
        return UserError(
            f"structured.schema {self._name} cannot be followed any further ({why}); make the schema simpler, or use "
            "structured.decoding stop"
        )


def _tokens(policy: Policy) -> LLTokenizer:
    """The policy's tokens as llguidance reads them; takes about a second for 150,000."""
    tokenizer: Any = policy.tokenizer
    try:
        return from_tokenizer(tokenizer, n_vocab=policy.vocabulary, eos_token=sorted(policy.stop_ids))
    except Exception as error:  # whatever its Rust side raises for a tokenizer of another kind
        raise UserError(
            f"the tokenizer of {policy.source or policy.folder} cannot be read by llguidance ({_line(str(error))}); "
            "use structured.decoding free, or a model with a byte-level or SentencePiece tokenizer.json"
        ) from error


def _line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]
