"""A reward against text that repeats itself: what a policy does when it is paid for length alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.metrics.repetition import repeated_share
from mlx_sumrl.metrics.words import words
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Completion, Group


@dataclass(frozen=True, slots=True)
class RepetitionReward:
    """Minus the share of repeated n-grams, of model tokens without the stop token or of the text's words.

    Of words, where a name may be several tokens: mentioning ``#Person1#`` again, four tokens of the tests' model, is a
    repeated 4-gram of tokens and none of words.
    """

    name: str
    ngram: int
    of: Literal["tokens", "words"] = "tokens"

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in (-1, 0]."""
        return score_each(groups, lambda _, completion: 0.0 - repetition(completion, self.ngram, self.of))


def repetition(completion: Completion, ngram: int, of: Literal["tokens", "words"] = "tokens") -> float:
    """`repeated_share` of a completion's tokens without its stop token, or of its words."""
    return repeated_share(completion.content_ids if of == "tokens" else words(completion.text), ngram)
