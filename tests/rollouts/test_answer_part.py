"""The answer in a completion: by hand, and against an oracle that decodes every beginning of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlx_sumrl.config import AnswerConfig, LengthConfig, StageConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation import evaluate
from mlx_sumrl.rewards import build_rewards
from mlx_sumrl.rollouts.answer_part import AnswerPart, ShownCompletion
from mlx_sumrl.rollouts.types import Completion, FinishReason, Group, Sampling
from mlx_sumrl.training.advantages import Advantages
from mlx_sumrl.training.rollout_log import rollout_metrics, rollout_records
from tests.data.made_tokenizers import byte_tokenizer, control, metaspace_tokenizer

MARKER = "</think>"
BYTES = byte_tokenizer(control("<|im_end|>"), control("<|pad|>"))
"""The marker is letters; each byte is a token."""
OWN = byte_tokenizer(control("<|im_end|>"), control("<think>", special=False), control(MARKER, special=False))
"""The marker is a token of its own, and text (Qwen3)."""
HIDDEN = byte_tokenizer(control("<|im_end|>"), control(MARKER))
"""The marker is a control token, which no decoded text shows."""
FALLBACK = metaspace_tokenizer()
"""Letters, and bytes for all other characters."""
TOKENIZERS = {"bytes": BYTES, "own": OWN, "hidden": HIDDEN, "fallback": FALLBACK}


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def completion(
    tokenizer: Any, text: str, finish_reason: FinishReason = "stop", ids: list[int] | None = None
) -> Completion:
    ids = ids_of(tokenizer, text) if ids is None else ids
    shown = tokenizer.decode(ids, skip_special_tokens=True)
    ids = ids + [tokenizer.convert_tokens_to_ids("<|im_end|>")] * (finish_reason == "stop")
    return Completion(tuple(ids), tuple(-0.1 * n for n in range(len(ids))), finish_reason, 3, shown)


def part(tokenizer: Any, **options: Any) -> AnswerPart:
    return AnswerPart.of(AnswerConfig(after=MARKER, **options), tokenizer)


def group(*completions: Completion, reference: str = "the cat") -> Group:
    return Group(Example("row", (1, 2), "prompt", "document", reference), completions)


def shown(tokenizer: Any, one: Completion, **options: Any) -> ShownCompletion:
    [found] = part(tokenizer, **options).shown([group(one)])[0].completions
    assert isinstance(found, ShownCompletion)
    return found


@pytest.mark.parametrize("name", ["bytes", "own", "hidden"])
def test_by_hand(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    thought, answer = "why the cat", "\n\nthe mat"
    tail = ids_of(tokenizer, answer)
    before = ids_of(tokenizer, thought) + ids_of(tokenizer, MARKER)
    one = completion(tokenizer, "", ids=before + tail)
    found = shown(tokenizer, one)
    assert (found.text, found.length, found.answered) == ("the mat", len(tail), True)
    assert found.token_ids == one.token_ids[len(before) :]  # the stop token is kept and not counted
    assert found.logprobs == one.logprobs[len(before) :]
    assert (found.finish_reason, found.policy_version) == ("stop", 3)
    assert shown(tokenizer, one, length="completion").length == len(before) + len(tail)
    assert shown(tokenizer, one, length="completion").text == "the mat"


@pytest.mark.parametrize(
    ("text", "finish_reason", "answer", "tokens", "answered"),
    [
        (f"a{MARKER}b{MARKER}xyz", "stop", "xyz", 3, True),  # the last one counts
        (f"{MARKER}xyz", "length", "xyz", 3, True),  # cut in the answer: still no merit in its length
        (f"xyz{MARKER}", "stop", "", 0, True),
        ("xyz", "stop", "", 0, False),
        ("<think>xyz", "length", "", 0, False),
        ("xyz</think", "stop", "", 0, False),
        ("", "stop", "", 0, False),
        (f"x{MARKER}é世😀", "stop", "é世😀", 9, True),  # bytes are tokens here
    ],
)
def test_completions(
    text: str, finish_reason: FinishReason, answer: str, tokens: int, answered: bool
) -> None:
    one = completion(BYTES, text, finish_reason)
    found = shown(BYTES, one)
    assert (found.text, found.length, found.answered) == (answer, tokens, answered)
    assert found.finish_reason == (finish_reason if answered else "length")
    whole = shown(BYTES, one, length="completion")
    assert (whole.text, whole.length) == (answer, one.length)


def test_a_token_that_ends_the_marker_and_begins_the_answer() -> None:
    """Its letters are in the text; the tokens are those after it."""
    pieces = ["so", "</th", "ink", ">Red", " fox", "<pad>", " ran"]
    made = AnswerPart(AnswerConfig(after=MARKER), lambda ids: "".join(pieces[i] for i in ids), frozenset({5}))
    assert made.start(range(7)) == (4, "Red fox ran")
    assert made.start([0, 1, 2]) is None


def test_control_tokens_are_no_part_of_the_text() -> None:
    pad = BYTES.convert_tokens_to_ids("<|pad|>")
    ids = [*ids_of(BYTES, f"a{MARKER}x"), pad, *ids_of(BYTES, "y")]
    found = shown(BYTES, completion(BYTES, "", ids=ids))
    assert (found.text, found.length) == ("xy", 3)  # sampled, so counted
    inside = [*ids_of(BYTES, "a</thi"), pad, *ids_of(BYTES, "nk>x")]
    assert shown(BYTES, completion(BYTES, "", ids=inside)).text == "x"  # as the text says


def test_the_name_of_a_control_token_is_no_marker() -> None:
    pad = BYTES.convert_tokens_to_ids("<|pad|>")
    one = completion(BYTES, "", ids=[*ids_of(BYTES, "xy"), pad, *ids_of(BYTES, "z")])
    made = AnswerPart.of(AnswerConfig(after="pad"), BYTES)
    assert made.start(one.content_ids) is None
    assert AnswerPart.of(AnswerConfig(after="<|pad|>"), BYTES).start(one.content_ids) == (3, "z")


def written(tokenizer: Any, ids: list[int]) -> str:
    """As text shows them, and the marker where it is a control token."""
    shown_ids = [one for one in ids if one not in specials(tokenizer) or tokenizer.decode([one]) == MARKER]
    text: str = tokenizer.decode(shown_ids, clean_up_tokenization_spaces=False)
    return text


def oracle(tokenizer: Any, ids: list[int]) -> int | None:
    """Tokens before the answer: the fewest whose text holds the last marker in its place."""
    text = written(tokenizer, ids)
    at = text.rfind(MARKER)
    if at < 0:
        return None
    head = text[: at + len(MARKER)]
    return next(count for count in range(len(ids) + 1) if written(tokenizer, ids[:count]).startswith(head))


PIECES = [
    MARKER,
    "</",
    "think",
    ">",
    "the cat",
    " ",
    "\n",
    "é",
    "世界",
    "😀",
    "<|im_end|>",
    "<think>",
    "<0x3E>",
    ".",
]


@st.composite
def sampled(draw: Any) -> tuple[str, list[int]]:
    """Ids that a model may draw: texts as they are tokenised, letter by letter, and bytes that are no text."""
    name = draw(st.sampled_from(list(TOKENIZERS)))
    tokenizer = TOKENIZERS[name]
    ids: list[int] = []
    for piece in draw(st.lists(st.sampled_from(PIECES), max_size=8)):
        for text in draw(st.sampled_from([[piece], list(piece)])):
            ids += ids_of(tokenizer, text)
        ids += draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=1))
    if draw(st.booleans()) and name == "fallback":
        spelled = [f"<0x{byte:02X}>" for byte in (draw(st.sampled_from(PIECES)) + MARKER + "世😀é").encode()]
        ids += tokenizer.convert_tokens_to_ids(spelled)
    return name, ids


@settings(max_examples=200, deadline=None)
@given(case=sampled())
def test_as_the_oracle_says(case: tuple[str, list[int]]) -> None:
    name, ids = case
    tokenizer = TOKENIZERS[name]
    found = part(tokenizer).start(ids)
    first = oracle(tokenizer, ids)
    assert (None if found is None else found[0]) == first
    if name != "hidden":
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        _, marker, answer = whole.rpartition(MARKER)
        assert (found is not None) == bool(marker)
        assert found is None or found[1] == answer.lstrip()


def specials(tokenizer: Any) -> set[int]:
    return {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}


def test_bytes_that_hide_the_marker_for_a_while() -> None:
    """A run of bytes shows nothing until its last character is whole, so longer beginnings may hold less."""
    tail = "世😀世"
    ids = FALLBACK.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in (MARKER + tail).encode()])
    assert MARKER in FALLBACK.decode(ids[: len(MARKER)])
    assert MARKER not in FALLBACK.decode(ids[: len(MARKER) + 1])
    assert part(FALLBACK).start(ids) == (len(MARKER), tail)


def test_few_beginnings_are_decoded() -> None:
    """A step has hundreds of completions with hundreds of tokens."""
    made = part(BYTES)
    calls = []

    def counting(ids: Any) -> str:
        calls.append(len(ids))
        return made.written(ids)

    ids = ids_of(BYTES, "why " * 200 + MARKER + "so " * 100)
    found = AnswerPart(made.options, counting, made.special).start(ids)
    assert found is not None
    assert found[0] == oracle(BYTES, ids)
    assert len(calls) <= 20


ASKED = LengthConfig(target=7, tolerance=1)
STAGE = {
    "name": "s",
    "steps": 1,
    "rewards": [
        {"kind": "length"},
        {"kind": "within", "weight": 0},
        {"kind": "rougeL"},
        {"kind": "repetition", "ngram": 1},
    ],
}


def four() -> Group:
    return group(
        completion(BYTES, f"zzzz{MARKER}my cat."),
        completion(BYTES, f"the cat{MARKER}the dog sat", "length"),  # cut
        completion(BYTES, "the cat"),  # no answer, whatever it says
        completion(BYTES, f"{MARKER}abc"),
        reference="my cat",
    )


def test_rewards_look_at_the_answer() -> None:
    groups = [four()]
    answers = part(BYTES).shown(groups)
    counts = [one.length for one in answers[0].completions]
    assert counts == [len(ids_of(BYTES, "my cat.")), len(ids_of(BYTES, "the dog sat")), 0, 3]
    asked = LengthConfig(target=counts[0], tolerance=0)
    scores = build_rewards(StageConfig.model_validate(STAGE), asked).score(answers)
    np.testing.assert_allclose(scores.components["length"], [[0, -1, -1, -abs(3 - counts[0]) / counts[0]]])
    np.testing.assert_array_equal(scores.components["within"], [[1, 0, 0, 0]])
    np.testing.assert_allclose(scores.components["rougeL"], [[1, 0, 0, 0]])
    ids = answers[0].completions[0].content_ids
    repeats = 1 - len(set(ids)) / len(ids)
    assert scores.components["repetition"][0, 0] == pytest.approx(-repeats)  # zzzz is no part of it
    before = build_rewards(StageConfig.model_validate(STAGE), asked).score(groups)
    assert before.components["rougeL"][0, 2] > 0  # the whole of the third does say something


def test_metrics_and_records() -> None:
    groups = [four()]
    made = part(BYTES)
    answers = made.shown(groups)
    scores = build_rewards(StageConfig.model_validate(STAGE), ASKED).score(answers)
    advantages = Advantages(scores.total_PG, 0)
    metrics = rollout_metrics(groups, scores, advantages, 5, ASKED, answers)
    assert metrics["tokens"] == sum(len(one.token_ids) for one in groups[0].completions)
    assert metrics["staleness/mean"] == 2
    assert metrics["length/mean"] == pytest.approx(np.mean([one.length for one in answers[0].completions]))
    assert metrics["length/unfinished"] == 0.5
    said = made.metrics(groups, answers)
    assert said["reasoning/unfinished"] == 0.25
    pairs = zip(groups[0].completions, answers[0].completions, strict=True)
    assert said["reasoning/length"] == pytest.approx(np.mean([a.length - b.length for a, b in pairs]))
    [record] = rollout_records(groups, scores, advantages, 1, "s", "tokens", answers)
    first, _, third, _ = record["completions"]
    assert (first["text"], first["answer"]) == (f"zzzz{MARKER}my cat.", "my cat.")
    assert (third["text"], third["answer"], third["length"]) == ("the cat", "", 0)
    assert third["finish_reason"] == "stop"  # what happened, not what it counts as


def test_without_a_marker_nothing_changes() -> None:
    groups = [four()]
    made = AnswerPart.of(AnswerConfig(), BYTES)
    assert made.shown(groups) == groups
    assert made.shown(groups)[0].completions[0] is groups[0].completions[0]
    assert made.metrics(groups, made.shown(groups)) == {}
    scores = build_rewards(StageConfig.model_validate(STAGE), ASKED).score(groups)
    records = rollout_records(groups, scores, Advantages(scores.total_PG, 0), 1, "s", "tokens")
    assert "answer" not in records[0]["completions"][0]


class Fixed:
    """Answers with the same completions, one for each example."""

    def sample(self, examples: Any, group_size: int, sampling: Sampling, seed: int) -> list[Group]:
        return [Group(one, (four().completions[int(one.id)],)) for one in examples]


def test_evaluation_looks_at_the_answer() -> None:
    examples = [Example(str(n), (1,), "p", "d", "my cat") for n in range(4)]
    asked = LengthConfig(target=len(ids_of(BYTES, "my cat.")), tolerance=0)
    found = evaluate(Fixed(), examples, asked, Sampling(), 3, answers=part(BYTES))
    assert [row.text for row in found.rows] == ["my cat.", "the dog sat", "", "abc"]
    assert found.rows[2].completion == "the cat"
    assert (found.summary["within"], found.summary["unfinished"]) == (0.25, 0.5)
    assert found.summary["reasoning_unfinished"] == 0.25
    assert found.summary["rougeL"] == pytest.approx(0.25)
    assert type(found).from_json(found.to_json()) == found
    plain = evaluate(Fixed(), examples, asked, Sampling(), 3, answers=AnswerPart.of(AnswerConfig(), BYTES))
    assert plain == evaluate(Fixed(), examples, asked, Sampling(), 3)
    assert "reasoning_unfinished" not in plain.summary


def test_options() -> None:
    with pytest.raises(ValidationError):
        AnswerConfig(after="")
    with pytest.raises(ValidationError):
        AnswerConfig(length="words")  # type: ignore[arg-type]
