"""A summary of a text of any length: chunks are summarised, then their summaries together, until one prompt holds all.

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
from mlx_sumrl.errors import UserError
from mlx_sumrl.rollouts.types import Completion, Sampler, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Told = Callable[[int, int, int], None]
"""Called after each batch with the round, from 1, how many of its chunks are done, and how many there are."""


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

    completion: Completion
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
        self._length = length
        self._sampling = sampling
        self._options = options

    def summarize(self, text: str, seed: int = 0, told: Told | None = None) -> LongSummary:
        """The text's summary, as long as asked; that of a text that fits one prompt is the ordinary one.

        Raises:
            UserError: a text with nothing in it, options that leave chunks no room, partial summaries that are empty
                or no shorter than the text, or more rounds than allowed.
        """
        rounds: list[tuple[Part, ...]] = []
        sampled = 0
        while True:
            example, lost = fitted_text(text, self._data, self._tokenizer, self._length.target)
            if not lost:
                break
            if len(rounds) == self._options.rounds:
                raise UserError(
                    f"after {len(rounds)} rounds (long.rounds) the partial summaries are still {lost} tokens longer "
                    "than one prompt has room for; allow more rounds, or raise data.max_prompt_tokens"
                )
            encoding = self._encode(text)
            room = self._data.max_prompt_tokens - (len(example.prompt_ids) + lost - len(encoding.ids))
            examples, asked_tokens = self._chunks(text, encoding, room)
            parts: list[Part] = []
            for start in range(0, len(examples), self._options.batch_size):
                batch = examples[start : start + self._options.batch_size]
                # The stop token is counted too.
                sampling = replace(
                    self._sampling, max_tokens=min(asked_tokens + 1, self._sampling.max_tokens)
                )
                # As in an evaluation: with one seed for all, row i of every batch would draw the same numbers.
                groups = self._sampler.sample(batch, 1, sampling, seed + sampled)
                parts += [Part(group.example.document, group.completions[0]) for group in groups]
                sampled += len(batch)
                if told is not None:
                    told(len(rounds) + 1, len(parts), len(examples))
            rounds.append(tuple(parts))
            text = self._shorter(parts, len(encoding.ids), len(rounds))
        group = self._sampler.sample([example], 1, self._sampling, seed)[0]
        return LongSummary(group.completions[0], tuple(rounds))

    def _encode(self, text: str) -> Encoding:
        return encode(self._tokenizer, text, [(0, len(text))])

    def _chunks(self, text: str, encoding: Encoding, room: int) -> tuple[list[Example], int]:
        """The round's prompts, none of them cut, and how many tokens a partial summary may have.

        ``room`` is how many tokens of text a prompt holds beside its template.
        """
        options = self._options
        if room < 2:
            raise UserError(
                f"data.max_prompt_tokens {self._data.max_prompt_tokens} leaves chunks no room beside the template; "
                "raise it, or lower max_tokens"
            )
        if options.chunk_tokens is not None and options.chunk_tokens > room:
            raise UserError(
                f"long.chunk_tokens {options.chunk_tokens} is more than a prompt has room for: lower it to {room}, or "
                f"raise data.max_prompt_tokens ({self._data.max_prompt_tokens})"
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
            fitted = [fitted_text(piece, self._data, self._tokenizer, target) for piece in pieces]
            # A piece by itself may be written in a token or two more than in the midst of its text.
            excess = max(lost for _, lost in fitted)
            if not excess:
                return [example for example, _ in fitted], tokens
            chunk -= excess
            if chunk < 2:
                raise UserError(
                    f"data.max_prompt_tokens {self._data.max_prompt_tokens} is too small for chunks of this text; "
                    "raise it, or lower max_tokens"
                )

    def _asked(self, parts: int, chunk: int, room: int) -> tuple[int, int]:
        """Tokens that a partial summary may have, and the length that its prompt asks for, in the asked unit.

        An equal share of the next prompt, so that this round is the last of its kind. Where that is too little for a
        summary as it is asked for, which is what a model that was trained for a length can write, it gets that much,
        and another round follows; at most half a chunk, so that every round halves the text.
        """
        length, most = self._length, self._sampling.max_tokens
        in_tokens = length.unit == DEFAULT_LENGTH_UNIT
        usual = self._options.part_tokens or (length.target + length.tolerance if in_tokens else most // 2)
        # Each is followed by a line break.
        tokens = max(room // parts - 1, min(usual, chunk // 2), 1)
        return tokens, max(length.target * min(tokens, usual) // usual, 1)

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
