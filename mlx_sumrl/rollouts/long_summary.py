"""A summary of a text of any length: chunks are summarised, then their summaries, until it is as short as asked.

Invariant: every character of the text is in a prompt that the model reads whole; and it ends, since a round that
does not make the text shorter is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, DataConfig, LengthConfig, LongDocumentsConfig
from mlx_sumrl.data.chunks import chunk_spans
from mlx_sumrl.data.encoding import Encoding, encode
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import fitted_text, is_blank
from mlx_sumrl.data.text_length import text_length
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.progress import Progress
from mlx_sumrl.rewards.length import length_in
from mlx_sumrl.rollouts.types import Completion, Sampler, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Told = Callable[[int, int, int], None]
"""Called after each batch with the round, from 1, how many of its chunks are done, and how many there are."""


def round_told(progress: Progress) -> Told:
    """Shows each round as a stage of ``progress``, a step for each of its chunks."""
    shown = 0

    def told(number: int, done: int, total: int) -> None:
        nonlocal shown
        if number > shown:
            progress.start(f"round {number}, chunks", total)
            shown = number
        progress.update(done, {})

    return told


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk and its summary."""

    chunk: str
    completion: Completion

    @property
    def summary(self) -> str:
        """As it goes into the next round."""
        return self.completion.text.strip()


@dataclass(frozen=True, slots=True)
class LongSummary:
    """The summary of the whole text, and how it came about."""

    text: str
    length: int
    """In the unit that was asked for."""
    finished: bool
    """Whether nothing of it was cut at the most tokens it may have."""
    rounds: tuple[tuple[Part, ...], ...]
    """The partial summaries of each round; none where the text fits one prompt."""


class LongSummarizer:
    """Summarises texts of any length in the way that a model is asked for short ones."""

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: PreTrainedTokenizerFast,
        data: DataConfig,
        length: LengthConfig,
        sampling: Sampling,
        options: LongDocumentsConfig,
    ) -> None:
        """``data.max_prompt_tokens`` is what a prompt may have beside ``sampling.max_tokens`` of a summary."""
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._data = data.asking_in(length.unit)
        instruction = options.join_instruction or data.instruction
        self._joining = data.model_copy(update={"instruction": instruction}).asking_in(length.unit)
        self._length = length
        self._sampling = sampling
        self._options = options

    def summarize(self, text: str, seed: int = 0, told: Told | None = None) -> LongSummary:
        """The text's summary; that of a text that fits one prompt is the ordinary one.

        Partial summaries that fit one prompt together are summarised to the asked length. Those that are not longer
        than asked are the summary as they stand: a model could only add to them. So one that is longer than a single
        completion may be can be asked for as well.

        Raises:
            UserError: a text with nothing in it, options that leave chunks no room, partial summaries that are empty
                or no shorter than the text, or more rounds than allowed.
        """
        rounds: list[tuple[Part, ...]] = []
        sampled = 0
        while True:
            data = self._joining if rounds else self._data
            example, lost = fitted_text(text, data, self._tokenizer, self._length.target)
            if not lost:
                break
            if len(rounds) == self._options.rounds:
                raise UserError(
                    f"after {len(rounds)} rounds (long.rounds) the partial summaries are still {lost} tokens longer "
                    "than one prompt has room for; allow more rounds, or raise data.max_prompt_tokens"
                )
            encoding = self._encode(text)
            room = data.max_prompt_tokens - (len(example.prompt_ids) + lost - len(encoding.ids))
            examples, most = self._chunks(text, encoding, data, room)
            parts: list[Part] = []
            for start in range(0, len(examples), self._options.batch_size):
                batch = examples[start : start + self._options.batch_size]
                sampling = replace(self._sampling, max_tokens=most, min_tokens=0)
                # As in an evaluation: with one seed for all, row i of every batch would draw the same numbers.
                groups = self._sampler.sample(batch, 1, sampling, seed + sampled)
                parts += [Part(group.example.document, group.completions[0]) for group in groups]
                sampled += len(batch)
                if told is not None:
                    told(len(rounds) + 1, len(parts), len(examples))
            rounds.append(tuple(parts))
            text = self._shorter(parts, len(encoding.ids), len(rounds))
            length = self._measured(text)
            if length <= self._length.target + self._length.allowed:
                finished = all(part.completion.finish_reason == "stop" for part in parts)
                return LongSummary(text, length, finished, tuple(rounds))
        last = self._sampler.sample([example], 1, self._sampling, seed)[0].completions[0]
        length = length_in(last, self._length.unit)
        return LongSummary(last.text.strip(), length, last.finish_reason == "stop", tuple(rounds))

    def _measured(self, text: str) -> int:
        """Length of a text that no single completion is."""
        unit = self._length.unit
        return len(self._encode(text).ids) if unit == DEFAULT_LENGTH_UNIT else text_length(text, unit)

    def _encode(self, text: str) -> Encoding:
        return encode(self._tokenizer, text, [(0, len(text))])

    def _chunks(
        self, text: str, encoding: Encoding, data: DataConfig, room: int
    ) -> tuple[list[Example], int]:
        """The round's prompts, none of them cut, and the most tokens of a partial summary.

        ``room`` is how many tokens of text a prompt holds beside its template.
        """
        options = self._options
        if room < 2:
            raise UserError(
                f"data.max_prompt_tokens {data.max_prompt_tokens} leaves chunks no room beside the template; "
                "raise it, or lower max_tokens"
            )
        if options.chunk_tokens is not None and options.chunk_tokens > room:
            raise UserError(
                f"long.chunk_tokens {options.chunk_tokens} is more than a prompt has room for: lower it to {room}, or "
                f"raise data.max_prompt_tokens ({data.max_prompt_tokens})"
            )
        chunk = options.chunk_tokens or room
        while True:
            overlap = chunk // 10 if options.overlap_tokens is None else options.overlap_tokens
            if 2 * overlap > chunk:
                raise UserError(
                    f"long.overlap_tokens {overlap} is more than half of a chunk of {chunk} tokens: lower it to "
                    f"{chunk // 2}"
                )
            try:
                spans = chunk_spans(text, encoding.spans, chunk, overlap)
            except ValueError as error:
                raise UserError(
                    f"the text cannot be cut into chunks of {chunk} tokens: {error}; raise data.max_prompt_tokens"
                ) from error
            pieces = [text[start:end] for start, end in spans if not is_blank(text[start:end])]
            tokens, target = self._asked(len(pieces), chunk, room)
            fitted = [fitted_text(piece, data, self._tokenizer, target) for piece in pieces]
            # A piece by itself may be written in a token or two more than in the midst of its text.
            excess = max(lost for _, lost in fitted)
            if not excess:
                return [example for example, _ in fitted], min(tokens, self._sampling.max_tokens)
            chunk -= excess
            if chunk < 2:
                raise UserError(
                    f"data.max_prompt_tokens {data.max_prompt_tokens} is too small for chunks of this text; "
                    "raise it, or lower max_tokens"
                )

    def _asked(self, parts: int, chunk: int, room: int) -> tuple[int, int]:
        """Tokens that a partial summary may have, and the length that its prompt asks for, in the asked unit.

        An equal share of the next prompt, so that this round is the last of its kind. Where that is less than
        ``part_tokens`` it gets that many, and another round follows; at most half a chunk, so that a round halves the
        text. The length that is asked for is the usual one, which a model may have been trained for, or what there is
        room for.
        """
        length, most = self._length, self._sampling.max_tokens
        in_tokens = length.unit == DEFAULT_LENGTH_UNIT
        whole = length.target if in_tokens else most // 2
        least = self._options.part_tokens or whole // 2
        # Each is followed by a line break.
        tokens = max(room // parts - 1, min(least, chunk // 2), 1)
        return tokens, max(length.target * min(tokens, whole) // whole, 1)

    def _shorter(self, parts: list[Part], before: int, number: int) -> str:
        """The partial summaries as one text. Raises `UserError` where it is none, or no shorter than ``before``."""
        text = "\n".join(part.summary for part in parts if not is_blank(part.summary))
        if is_blank(text):
            raise UserError(
                f"round {number}: the model wrote nothing for any of the {len(parts)} chunks; try another model, or "
                "other long.chunk_tokens"
            )
        after = len(self._encode(text).ids)
        if after >= before:
            raise UserError(
                f"round {number}: {before} tokens of text became {after} of partial summaries, so that no number of "
                "rounds would end; lower long.part_tokens, or raise long.chunk_tokens"
            )
        return text
