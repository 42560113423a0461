"""Which part of a completion is its answer: what follows the marker that ends its reasoning. Never imports mlx.

Invariant: what is made here is for rewards, metrics and people; training goes on with the completions as they were
sampled. The answer's tokens are those after the token that ends the marker's last occurrence: they are found by
decoding beginnings of the completion, however the marker was split, and nothing is tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self

from mlx_sumrl.config.answer import AnswerConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.rollouts.types import Completion, Group, Sampler, Sampling

Decoder = Callable[[Sequence[int]], str]
_LONGEST_CHARACTER = 4
"""Bytes, each of which may be a token."""


@dataclass(frozen=True, slots=True)
class ShownCompletion(Completion):
    """The answer of a completion, for all who look at completions: ``token_ids``, ``logprobs`` and ``text`` are the
    answer's alone.

    Where there is no answer they are empty, and ``finish_reason`` is ``length``: it did not come to its end.
    """

    counted: int = 0
    """Tokens that count as its length."""
    answered: bool = True
    """Whether the marker came."""

    @property
    def length(self) -> int:
        """Tokens that count: the answer's, or all of the completion's; the stop token never does."""
        return self.counted


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """Finds answers in completions; the same for one that reasons and for one that does not."""

    options: AnswerConfig
    written: Decoder = field(repr=False)
    """Token ids -> text, without control tokens but for those that the marker is made of."""
    special: frozenset[int] = frozenset()
    """Control tokens that are no part of a text."""

    @classmethod
    def of(cls, options: AnswerConfig, tokenizer: Any) -> Self:
        """With a Hugging Face tokenizer, which is looked at only where there is a marker."""
        if options.after is None:
            return cls(options, lambda token_ids: "")
        names = {
            token_id: token.content
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        # A marker is not looked for in the name of a control token, which no text shows.
        hidden = frozenset(token_id for token_id, name in names.items() if name not in (options.after or ""))

        def written(token_ids: Sequence[int]) -> str:
            text: str = tokenizer.decode(
                [token_id for token_id in token_ids if token_id not in hidden],
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
            return text

        return cls(options, written, frozenset(names))

    def shown(self, groups: Sequence[Group]) -> list[Group]:
        """The groups as rewards and metrics see them; as they are where all of a completion is its answer."""
        if self.options.after is None:
            return list(groups)
        return [Group(group.example, tuple(map(self._shown, group.completions))) for group in groups]

    def metrics(self, groups: Sequence[Group], shown: Sequence[Group]) -> dict[str, float]:
        """Of groups and what `shown` made of them: the share without an answer, and the mean number of tokens before
        an answer, the marker's among them. Nothing where all of a completion is its answer."""
        if self.options.after is None:
            return {}
        pairs = [
            (whole, one)
            for before, after in zip(groups, shown, strict=True)
            for whole, one in zip(before.completions, after.completions, strict=True)
        ]
        return {
            "reasoning/unfinished": fmean(
                isinstance(one, ShownCompletion) and not one.answered for _, one in pairs
            ),
            "reasoning/length": fmean(len(whole.content_ids) - len(one.content_ids) for whole, one in pairs),
        }

    def start(self, token_ids: Sequence[int]) -> tuple[int, str] | None:
        """Where the answer begins: how many of ``token_ids`` stand before it; and its text, without the white space
        before it.

        Args:
            token_ids: a completion without its stop token.

        Returns:
            None where the marker never comes.
        """
        marker = self.options.after
        assert marker is not None
        text = self.written(token_ids)
        at = text.rfind(marker)
        if at < 0:
            return None
        head = text[: at + len(marker)]

        def holds(count: int) -> bool:
            return self.written(token_ids[:count]).startswith(head)

        below, first = 0, len(token_ids)
        while first - below > 1:
            middle = (below + first) // 2
            below, first = (below, middle) if holds(middle) else (middle, first)
        # Decoders that join bytes show none of them while the last character is not whole: a beginning that is a
        # little longer than the first to hold the marker may not hold it.
        count = first - 1
        while count > 0 and first - count <= _LONGEST_CHARACTER:
            if holds(count):
                first = count
            count -= 1
        plain = [one for one in token_ids[first:] if one not in self.special]
        return first, self.written([*token_ids[:first], *plain])[len(head) :].lstrip()

    def _shown(self, completion: Completion) -> ShownCompletion:
        found = self.start(completion.content_ids)
        if found is None:
            counted = completion.length if self.options.length == "completion" else 0
            return ShownCompletion((), (), "length", completion.policy_version, "", counted, answered=False)
        first, text = found
        return ShownCompletion(
            completion.token_ids[first:],
            completion.logprobs[first:],
            completion.finish_reason,
            completion.policy_version,
            text,
            completion.length - (first if self.options.length == "answer" else 0),
        )


@dataclass(frozen=True, slots=True)
class AnswersOnly:
    """A sampler whose completions are only the answers in another's; see `AnswerPart.shown`."""

    sampler: Sampler
    answers: AnswerPart

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        """See `Sampler`."""
        return self.answers.shown(self.sampler.sample(examples, group_size, sampling, seed))
