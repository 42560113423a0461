"""Constrained completions meet their schema whatever the model is, and their log-probabilities are those of what
was allowed; answers that stop with their JSON end with the token that closes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from llguidance import LLMatcher
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.data.answer_schema import AnswerSchema
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.constraint import EndOfJson, Matcher, Words
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.schema_constraint import end_of_json, schema_constraint
from mlx_sumrl.rollouts.token_mask import masked_logits
from mlx_sumrl.rollouts.types import Completion, Group, Sampling
from tests.families import SHARED_MODELS, full_logits, log_softmax, random_prompts

Folder = Callable[[str], Path]
PROMPTS = random_prompts([3, 11, 7])
ITEM = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "b\n\"c'", None, 3]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$", "maxLength": 6},
    },
    "required": ["kind"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "bounds": {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "minimum": -3, "maximum": 12},
            "text": {"type": "string", "minLength": 2, "maxLength": 5},
            "tags": {
                "type": "array",
                "items": {"type": "string", "maxLength": 4},
                "minItems": 1,
                "maxItems": 3,
            },
        },
        "required": ["score", "text", "tags"],
        "additionalProperties": False,
    },
    "references": {
        "type": "array",
        "items": {"$ref": "#/$defs/item"},
        "minItems": 1,
        "maxItems": 2,
        "$defs": {"item": ITEM},
    },
    "either": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
}


class Short(BaseModel):
    model_config = ConfigDict(extra="forbid")

    score: int = Field(ge=1, le=10)
    mood: Literal["good", "so-so"] | None
    tags: list[Annotated[str, Field(max_length=12)]] = Field(max_length=3)


def load(folder: Path) -> Policy:
    return load_policy(PolicyConfig(model=str(folder), tuning="full", dtype="float32"))


def completions(groups: list[Group]) -> list[Completion]:
    return [completion for group in groups for completion in group.completions]


def finished(policy: Policy, schema: AnswerSchema, sampling: Sampling, size: int = 4) -> int:
    """How many stopped; all that did meet the schema."""
    sampler = LocalSampler(policy, constraint=schema_constraint(schema, policy))
    stopped = 0
    for completion in completions(sampler.sample(PROMPTS, size, sampling, seed=5)):
        if completion.finish_reason == "stop":
            stopped += 1
            jsonschema.validate(json.loads(completion.text), schema.json_schema)
            assert completion.token_ids[-1] in policy.stop_ids
        assert all(0 >= logprob > -np.inf for logprob in np.array(completion.logprobs) - 1e-5)
    return stopped


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
def test_finished_answers_of_random_weights_meet_the_schema(
    family: str, name: str, family_folder: Folder
) -> None:
    policy = load(family_folder(family))
    schema = AnswerSchema(name, SCHEMAS[name])
    stopped = 0
    for filters in (
        {"temperature": 0.0},
        {},
        {"temperature": 3.0},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 5},
    ):
        stopped += finished(policy, schema, Sampling(**filters, max_tokens=120))
    assert stopped > 24  # of 48


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="no ../shared/models beside the checkout")
@pytest.mark.parametrize("name", ["summarizer-5m", "stories260K"])  # byte-level BPE, and SentencePiece
def test_finished_answers_of_real_models_meet_a_pydantic_model(name: str) -> None:
    policy = load(SHARED_MODELS / name)
    schema = AnswerSchema("Short", Short.model_json_schema(), Short)
    sampler = LocalSampler(policy, constraint=schema_constraint(schema, policy))
    stopped = [
        completion
        for completion in completions(sampler.sample(PROMPTS, 4, Sampling(max_tokens=100), seed=0))
        if completion.finish_reason == "stop"
    ]
    assert len(stopped) > 6  # of 12
    for completion in stopped:
        Short.model_validate_json(completion.text, strict=True)


@pytest.mark.parametrize("filters", [{"temperature": 0.0}, {}, {"temperature": 0.6}])
def test_logprobs_are_those_among_what_was_allowed(filters: dict[str, float], family_folder: Folder) -> None:
    """What is allowed is asked of a matcher of its own, a byte a token; logits by the whole row, no cache."""
    policy = load(family_folder("qwen2"))
    constraint = schema_constraint(AnswerSchema("bounds", SCHEMAS["bounds"]), policy)
    groups = LocalSampler(policy, constraint=constraint).sample(
        PROMPTS[:2], 2, Sampling(**filters, max_tokens=40), seed=1
    )
    temperature = filters.get("temperature", 1.0) or 1.0
    for group in groups:
        for completion in group.completions:
            row = [*group.example.prompt_ids, *completion.token_ids]
            logits = full_logits(policy, row)[len(group.example.prompt_ids) - 1 : -1] / temperature
            matcher = constraint._fresh.deep_copy()
            truth = []
            for place, token in enumerate(completion.token_ids):
                allowed = np.flatnonzero(np.frombuffer(matcher.compute_logit_bias(), np.uint8)).tolist()
                if not policy.stop_ids & set(allowed):
                    assert all(matcher.validate_tokens([one]) == 1 for one in allowed)
                among = log_softmax(logits[place][allowed])
                truth.append(among[allowed.index(token)])
                if filters.get("temperature") == 0:
                    assert truth[-1] > among.max() - 1e-5
                if token not in policy.stop_ids:
                    assert matcher.consume_token(token)
            np.testing.assert_allclose(completion.logprobs, truth, atol=1e-4)


class Nothing:
    """A constraint that allows all."""

    def start(self) -> Matcher:
        return self

    def fill(self, words: Words) -> None:
        pass

    def accept(self, token: int) -> None:
        pass


@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
def test_a_constraint_that_allows_all_changes_no_bit(family: str, family_folder: Folder) -> None:
    policy = load(family_folder(family))
    policy.stop_ids = frozenset({2, *range(40, 70)})
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature, max_tokens=24)
        free = LocalSampler(policy).sample(PROMPTS, 6, sampling, seed=4)
        assert LocalSampler(policy, constraint=Nothing()).sample(PROMPTS, 6, sampling, seed=4) == free


def test_the_batch_does_not_show(family_folder: Folder) -> None:
    policy = load(family_folder("llama"))
    constraint = schema_constraint(AnswerSchema("bounds", SCHEMAS["bounds"]), policy)
    sampling = Sampling(max_tokens=50)
    usual = LocalSampler(policy, constraint=constraint).sample(PROMPTS, 4, sampling, seed=4)
    for max_rows in (1, 5):
        groups = LocalSampler(policy, max_rows, constraint=constraint).sample(PROMPTS, 4, sampling, seed=4)
        assert [c.token_ids for c in completions(groups)] == [c.token_ids for c in completions(usual)]


class Soup:
    """`EndOfJson` of brackets, quotation marks and a few other tokens, so that random weights close some values."""

    def __init__(self, inner: EndOfJson, tokens: list[int]) -> None:
        self.inner, self.tokens = inner, tokens

    def start(self) -> Matcher:
        matcher = self.inner.start()

        def fill(words: Words) -> None:
            matcher.fill(words)
            if (words == -1).all():
                for token in range(len(words) * 32):
                    if token not in self.tokens:
                        words.view(np.uint32)[token // 32] &= ~np.uint32(1 << token % 32)

        return SimpleNamespace(fill=fill, accept=matcher.accept)  # type: ignore[return-value]


def complete(text: str) -> bool:
    """Whether a text of these letters holds a whole object: strings cut out by a regular expression, then depths."""
    bare = re.sub(
        r'"(?:[^"\\]|\\.)*("|\\?$)', "s", text[text.find("{") :] if "{" in text else "", flags=re.DOTALL
    )
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return True
    return False


@pytest.mark.parametrize("temperature", [3.0, 10.0])
def test_an_answer_ends_with_the_token_that_closes_it(temperature: float, family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"))
    names = policy.tokenizer.get_vocab()
    schema = AnswerSchema("any object", {"type": "object"})
    soup = Soup(end_of_json(schema, policy), [names[one] for one in ("{", "}", '"', "\\", "a", "Ġ", "on")])
    sampler = LocalSampler(policy, constraint=soup)
    closed = 0
    for completion in completions(
        sampler.sample(PROMPTS, 16, Sampling(temperature=temperature, max_tokens=40), seed=2)
    ):
        ids = completion.token_ids
        ends = [n for n in range(1, len(ids) + 1) if complete(policy.decode(ids[:n]))]
        if ends and ends[0] < 40:
            closed += 1
            assert completion.finish_reason == "stop"
            assert ids[ends[0] :] == (2,)
            assert completion.logprobs[-1] == 0  # nothing else could come
            assert completion.text.endswith("}")
        else:
            assert completion.finish_reason == "length"
    assert closed > 10


def test_a_token_may_hold_more_than_the_closing_bracket() -> None:
    pieces = {5: b' {"a": ', 6: b"1}\n", 7: b"x"}
    matcher = EndOfJson(pieces.__getitem__, frozenset({2, 33}), b"{").start()
    for token in (7, 5, 6):
        words = np.full(2, -1, np.int32)
        matcher.fill(words)
        assert (words == -1).all()
        matcher.accept(token)
    matcher.fill(words)
    assert np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist() == [2, 33]


@pytest.mark.parametrize("V", [31, 32, 33, 100])
def test_masked_logits_are_those_of_set_bits(V: int) -> None:
    draw = np.random.default_rng(V)
    logits = draw.normal(size=(3, V)).astype(np.float32)
    allowed = draw.random((2, V)) < 0.4

    def matcher(row: np.ndarray) -> Matcher:
        def fill(words: Words) -> None:
            words[:] = 0
            for token in np.flatnonzero(row):
                words.view(np.uint32)[token // 32] |= np.uint32(1 << int(token) % 32)

        return SimpleNamespace(fill=fill)  # type: ignore[return-value]

    masked = np.array(masked_logits(mx.array(logits), [matcher(allowed[0]), None, matcher(allowed[1])]))
    truth = logits.copy()
    truth[0][~allowed[0]] = truth[2][~allowed[1]] = -np.inf
    np.testing.assert_array_equal(masked, truth)


@pytest.mark.parametrize(
    ("schema", "named"),
    [({"not": {"type": "string"}}, "not"), ({"type": "array", "uniqueItems": True}, "uniqueItems")],
)
def test_what_cannot_be_enforced_is_refused(
    schema: dict[str, Any], named: str, family_folder: Folder
) -> None:
    with pytest.raises(UserError, match=rf"mine\.json cannot be enforced.*{named}.*decoding stop"):
        schema_constraint(AnswerSchema("mine.json", schema), load(family_folder("qwen2")))


def test_plain_values_have_no_end_to_see(family_folder: Folder) -> None:
    with pytest.raises(UserError, match="neither objects nor lists"):
        end_of_json(AnswerSchema("s", {"type": ["string", "null"]}), load(family_folder("qwen2")))


def test_a_constrained_sampler_refuses_what_it_cannot_do(family_folder: Folder) -> None:
    sampler = LocalSampler(load(family_folder("qwen2")), constraint=Nothing())
    with pytest.raises(UserError, match="cannot be trained with"):
        sampler.publish(1)
    with pytest.raises(UserError, match="min_tokens 3"):
        sampler.sample(PROMPTS, 1, Sampling(max_tokens=8, min_tokens=3), seed=0)


def test_a_vocabulary_without_a_bracket_is_said_to_be_that() -> None:
    words = Tokenizer(models.BPE(vocab={"<end>": 0, "a": 1, "b": 2}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    policy: Any = SimpleNamespace(
        tokenizer=tokenizer, vocabulary=3, stop_ids=frozenset({0}), source="letters", folder=Path("letters")
    )
    matcher = schema_constraint(AnswerSchema("s", {"type": "object"}), policy).start()
    with pytest.raises(UserError, match="cannot be followed any further"):
        matcher.fill(np.full(1, -1, np.int32))


def test_what_llguidance_refuses_midway_is_an_error(family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"))
    matcher = schema_constraint(AnswerSchema("s", {"type": "object"}), policy).start()
    assert isinstance(matcher._matcher, LLMatcher)
    with pytest.raises(UserError, match="cannot be followed any further"):
        matcher.accept(policy.tokenizer.get_vocab()["}"])
