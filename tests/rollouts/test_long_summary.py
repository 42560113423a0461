"""Long texts with a sampler that answers what it is told to: everything is read, rounds end, and the last one asks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.config import DataConfig, LengthConfig, LongDocumentsConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import make_example
from mlx_sumrl.errors import UserError
from mlx_sumrl.rollouts.long_summary import LongSummarizer, LongSummary
from mlx_sumrl.rollouts.types import Completion, Group, Sampling

from ..data.made_tokenizers import CHATML, byte_tokenizer, control

TOKENIZER = byte_tokenizer(control("<|im_start|>"), control("<|im_end|>"), chat_template=CHATML)
DATA = DataConfig(instruction="In {target_length} {length_unit}:\n{document}", max_prompt_tokens=120)
LENGTH = LengthConfig(target=20, tolerance=2)
SAMPLING = Sampling(0.0, max_tokens=40)
TEXT = " ".join(f"Sentence number {n} says this." for n in range(60))


class Answering:
    """Answers by a function of the document, cut at the limit, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.calls: list[tuple[list[Example], Sampling, int]] = []

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        assert group_size == 1
        self.calls.append((list(examples), sampling, seed))
        return [Group(example, (self._completion(example, sampling.max_tokens),)) for example in examples]

    def _completion(self, example: Example, most: int) -> Completion:
        ids = TOKENIZER(self.answer(example.document))["input_ids"]
        stopped = len(ids) < most
        ids = [*ids, 0] if stopped else ids[:most]
        text = TOKENIZER.decode(ids[:-1] if stopped else ids)
        return Completion(tuple(ids), (0.0,) * len(ids), "stop" if stopped else "length", 0, text)


def first_words(document: str) -> str:
    return " ".join(document.split()[:2])


def first_word(document: str) -> str:
    return document.split()[0][:4]


def summarized(
    sampler: Answering,
    text: str = TEXT,
    data: DataConfig = DATA,
    length: LengthConfig = LENGTH,
    **options: Any,
) -> LongSummary:
    long = LongDocumentsConfig(**options)
    return LongSummarizer(sampler, TOKENIZER, data, length, SAMPLING, long).summarize(text, seed=5)


def tokens(text: str) -> int:
    return len(TOKENIZER(text)["input_ids"])


def check_all_read(text: str, summary: LongSummary, sampler: Answering) -> None:
    """Each round's chunks hold its text, and no prompt was cut."""
    for parts in summary.rounds:
        place = 0
        for part in parts:
            assert part.chunk in text
            begin = text.rfind(part.chunk, 0, place + len(part.chunk))
            assert not text[place : max(begin, place)].strip()
            place = max(place, begin + len(part.chunk))
        assert not text[place:].strip()
        text = "\n".join(part.summary for part in parts if part.summary)
    for examples, _, _ in sampler.calls:
        for example in examples:
            assert len(example.prompt_ids) <= DATA.max_prompt_tokens
            assert TOKENIZER.decode(example.prompt_ids) == example.prompt
            assert example.document in example.prompt


def test_everything_is_read_and_the_last_round_asks_for_the_length() -> None:
    sampler = Answering(first_words)
    summary = summarized(sampler)
    assert len(summary.rounds) > 1
    check_all_read(TEXT, summary, sampler)
    sizes = [tokens(TEXT), *(sum(tokens(part.summary) for part in parts) for parts in summary.rounds)]
    assert all(after < before for before, after in pairwise(sizes))
    (last,), sampling, seed = sampler.calls[-1]
    assert last.document == "\n".join(part.summary for part in summary.rounds[-1])
    assert last.prompt.startswith("<|im_start|>user\nIn 20 tokens:\n")
    assert (sampling, seed) == (SAMPLING, 5)
    assert summary.text == first_words(last.document)
    assert (summary.length, summary.finished) == (tokens(summary.text), True)


@given(st.text(st.sampled_from("ab. \n中。é😀"), min_size=1, max_size=600), st.integers(10, 60))
def test_everything_is_read_of_any_text(text: str, chunk: int) -> None:
    if not text.strip():
        return
    sampler = Answering(lambda document: document.strip()[:3])
    check_all_read(text, summarized(sampler, text, chunk_tokens=chunk), sampler)


def test_a_text_that_fits_is_summarised_as_ever() -> None:
    sampler = Answering(first_words)
    summary = summarized(sampler, "A short text of few words.")
    assert summary.rounds == ()
    assert summary.text == "A short"
    data = DATA.asking_in("tokens")
    assert sampler.calls == [([make_example("A short text of few words.", data, TOKENIZER, 20)], SAMPLING, 5)]


def test_partial_summaries_share_the_next_prompt() -> None:
    sampler = Answering(lambda document: "x" * 1000)  # always cut
    text = TEXT[: len(TEXT) // 6]
    summary = summarized(sampler, text)
    frame = tokens(make_example("x", DATA, TOKENIZER, 20).prompt) - 1
    (parts,) = summary.rounds
    share = (DATA.max_prompt_tokens - frame) // len(parts) - 1
    assert len(parts) > 1
    assert {part.completion.length for part in parts} == {share}
    examples, _, _ = sampler.calls[0]
    asked = re.match(r"<\|im_start\|>user\nIn (\d+) tokens", examples[0].prompt)
    assert asked is not None
    assert int(asked[1]) == min(20, share)


def test_partial_summaries_no_longer_than_asked_are_the_summary() -> None:
    """As long as no single completion may be: 40 tokens at most."""
    sampler = Answering(first_word)
    summary = summarized(sampler, length=LengthConfig(target=200, tolerance=5))
    (parts,) = summary.rounds
    assert summary.text == "\n".join(first_word(part.chunk) for part in parts)
    assert 40 < summary.length == tokens(summary.text) <= 205
    assert summary.finished
    assert sum(len(examples) for examples, _, _ in sampler.calls) == len(parts), "no last round"
    words = summarized(
        Answering(first_word), length=LengthConfig(target=len(parts), tolerance=0, unit="words")
    )
    assert words.length == len(parts)
    cut = summarized(Answering(lambda document: "x" * 1000), length=LengthConfig(target=500))
    assert not cut.finished


def test_batches_seeds_and_progress() -> None:
    sampler, seen = Answering(first_words), []
    long = LongDocumentsConfig(batch_size=3)
    summary = LongSummarizer(sampler, TOKENIZER, DATA, LENGTH, SAMPLING, long).summarize(
        TEXT, 7, lambda *at: seen.append(at)
    )
    count = len(summary.rounds[0])
    first = [call for call in sampler.calls if call[0][0].document in TEXT][: -(-count // 3)]
    assert [len(examples) for examples, _, _ in first] == [min(3, count - n) for n in range(0, count, 3)]
    assert [seed for _, _, seed in first] == [7 + n for n in range(0, count, 3)]
    assert seen[: len(first)] == [(1, min(n + 3, count), count) for n in range(0, count, 3)]
    assert len({seed for _, _, seed in sampler.calls[:-1]}) == len(sampler.calls) - 1


def test_an_instruction_of_its_own_for_partial_summaries() -> None:
    sampler = Answering(first_words)
    summary = summarized(sampler, join_instruction="Join, {target_length} {length_unit}: {document}")
    asked = [examples[0].prompt.removeprefix("<|im_start|>user\n")[:5] for examples, _, _ in sampler.calls]
    firsts = -(-len(summary.rounds[0]) // 8)
    assert asked == ["In 10"] * firsts + ["Join,"] * (len(sampler.calls) - firsts)
    assert "Join, 20 tokens: " in sampler.calls[-1][0][0].prompt


def test_other_units_and_no_forced_parts() -> None:
    sampler = Answering(first_words)
    forced = Sampling(0.0, max_tokens=40, min_tokens=40)
    length = LengthConfig(target=3, tolerance=0, unit="words")
    LongSummarizer(sampler, TOKENIZER, DATA, length, forced, LongDocumentsConfig()).summarize(TEXT)
    assert "In 3 words:" in sampler.calls[-1][0][0].prompt
    assert re.search("In [1-3] words:", sampler.calls[0][0][0].prompt)
    assert sampler.calls[0][1].min_tokens == 0
    assert sampler.calls[-1][1] == forced


class TestRefused:
    def test_a_model_that_writes_nothing(self) -> None:
        with pytest.raises(UserError, match="round 1: the model wrote nothing for any of the"):
            summarized(Answering(lambda document: " \n"))

    def test_summaries_no_shorter_than_the_text(self) -> None:
        class Doubling(Answering):
            def _completion(self, example: Example, most: int) -> Completion:
                return Completion((1, 0), (0.0, 0.0), "stop", 0, example.document * 2)  # whatever the limit

        with pytest.raises(UserError, match=r"round 1: \d+ tokens of text became \d+ of partial summaries"):
            summarized(Doubling(first_words))

    def test_more_rounds_than_allowed(self) -> None:
        with pytest.raises(
            UserError, match=r"after 1 rounds \(long.rounds\) the partial summaries are still"
        ):
            summarized(Answering(first_words), rounds=1)

    def test_chunks_that_a_prompt_has_no_room_for(self) -> None:
        with pytest.raises(
            UserError, match=r"long\.chunk_tokens 200 is more than a prompt has room for: lower"
        ):
            summarized(Answering(first_words), chunk_tokens=200)

    def test_an_overlap_of_more_than_half_a_chunk(self) -> None:
        with pytest.raises(UserError, match=r"long\.overlap_tokens 60 is more than half of a chunk of"):
            summarized(Answering(first_words), overlap_tokens=60)
        with pytest.raises(ValueError, match="set it to at most 10"):
            LongDocumentsConfig(chunk_tokens=20, overlap_tokens=11)

    def test_an_instruction_without_a_place(self) -> None:
        with pytest.raises(ValueError, match=r"long\.join_instruction must contain"):
            LongDocumentsConfig(join_instruction="Join them.")

    def test_a_template_without_room(self) -> None:
        data = DATA.model_copy(update={"max_prompt_tokens": 20})
        with pytest.raises(UserError, match="max_prompt_tokens"):
            summarized(Answering(first_words), data=data)


@pytest.mark.slow
def test_a_real_model_reads_all_of_five_contexts(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    shared = Path(__file__).parents[2].parent / "shared"
    if not shared.is_dir():
        pytest.skip("needs the shared folder with summarizer-5m and scitldr beside the checkout")
    from mlx_sumrl import load_policy, summarize

    lines = (shared / "data" / "scitldr.train.jsonl").read_text(encoding="utf-8").splitlines()[:11]
    text = "\n\n".join(json.loads(line)["document"] for line in lines)
    policy = load_policy(shared / "models" / "summarizer-5m", dtype="float32")
    assert len(policy.tokenizer(text)["input_ids"]) > 4 * 512
    asked = {"target": 32, "instruction": "Summarize the article.\n\n{document}"}
    whole = summarize(policy, text, long=True, **asked)
    assert "round 1, chunks" in capsys.readouterr().out
    assert len(whole.split()) > 5
    cut = summarize(policy, text, **asked)
    assert "tokens were not read; long=True reads all of it" in capsys.readouterr().out
    assert cut != whole
    # What fits is the same either way.
    short = json.loads(lines[0])["document"][:400]
    assert summarize(policy, short, long={"overlap_tokens": 8}, **asked) == summarize(policy, short, **asked)
    with pytest.raises(UserError, match="overlap"):
        summarize(policy, text, long={"overlap": 8}, **asked)
