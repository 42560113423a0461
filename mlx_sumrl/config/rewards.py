"""Options: what completions are paid for."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.judge import Criterion, JudgeRewardConfig
from mlx_sumrl.config.room import Room

Credit = Literal["all", "stop", "content"]
"""The decisions that a reward pays for."""

SENTENCE_WORDS = 4
"""Words that a sentence has at least: fewer have, of those in people's summaries, 7 % (posts), 1 % (dialogues) and .2 %
(articles)."""


class GateConfig(Room):
    """A condition on another reward of the same stage."""

    reward: str
    """Name of the reward that must be met."""
    at_least: float = 1.0
    """The value from which it counts as met."""
    otherwise: float = 0.0
    """What the gated reward is worth where the condition is not met."""


class RewardConfig(Room):
    """One reward: what it is, what it weighs, when it counts."""

    kind: Literal[
        "length",
        "within",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "meteor",
        "bleu",
        "chrf",
        "bertscore",
        "repetition",
        "ends_sentence",
        "whole_sentences",
        "language",
        "extractiveness",
        "novelty",
        "entity_coverage",
        "format_bullets",
        "json_schema",
        "judge",
        "function",
    ]
    """`length` and `within`: the run's `length`. `rouge1` to `bertscore`: against the reference. `repetition`: minus
    the share of repeated n-grams. `ends_sentence`: 1 where the completion stopped by itself at the end of a sentence
    and has no row of end marks before, else 0. `whole_sentences`: 1 where it stopped by itself and is nothing but whole
    sentences of `min_words` and more, none of them fragments with dots between, else 0.
    `language`: 1 where the completion is in its document's language, else 0.
    `extractiveness`: share of words in fragments copied from the document; `novelty`: share of word n-grams that it
    does not have. `entity_coverage`: share of names and numbers that are mentioned. `format_bullets` and `json_schema`:
    the form, see `bullets` and `schema_file`. `judge`: a larger model's score, see `judge`.
    `function` calls your own Python, see `function`."""
    name: str = ""
    """Its name in metrics and gates; the kind, the function's name, or `judge_` and the criterion, otherwise."""
    function: str | None = None
    """`package.module:function` or `path/to/file.py:function` with the signature
    f(prompts, completions, **columns) -> list[float | None]."""
    margin: int = Field(default=0, ge=0)
    """How much of the tolerance `within` keeps free at both ends, at most half, in the unit of the length: paid for 64
    ± 3, a policy that ends its sentence one token too soon is within 64 ± 5 all the same."""
    ngram: int = Field(default=4, gt=0)
    """Tokens or words of an n-gram whose repeats `repetition` counts."""
    ngram_of: Literal["tokens", "words"] = "tokens"
    """What these n-grams are of. A name of several tokens is a repeated n-gram of tokens wherever it stands again, and
    one word."""
    min_words: int = Field(default=SENTENCE_WORDS, gt=0)
    """Fewest words of what `whole_sentences` calls a sentence (characters, where words have no spaces between). Paid
    for any, a policy fills the length with ``I know. It is.``"""
    novel_ngram: int = Field(default=2, gt=0)
    """Words of an n-gram that `novelty` looks for in the document."""
    entities_of: Literal["reference", "document"] = "reference"
    """Whose names and numbers `entity_coverage` looks for."""
    bullets: int | None = Field(default=None, gt=0)
    """How many bullets `format_bullets` asks for: 1 for so many and nothing else, less the further away."""
    max_words: int | None = Field(default=None, gt=0)
    """Most words of each bullet; null for any number."""
    schema_file: str | None = None
    """What `json_schema` pays for: `schema.json`, `package.module:Model` or `path/to/file.py:Model` (pydantic)."""
    encoder: str | None = None
    """Folder of the encoder (BERT, RoBERTa, ...) that `bertscore` compares with."""
    criterion: Criterion | Literal["composite"] = "composite"
    """What `judge` scores, from 0 to 1; `composite` is the mean of all four."""
    judge: JudgeRewardConfig | None = None
    completions_as: Literal["text", "messages"] = "text"
    """How your function gets prompts and completions: strings, or lists of chat messages."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest time for one group's scores; what is not there by then is missing, and counted. Your own function gets as
    long for a whole step, and ends the run where it takes longer."""
    credit: Credit = "all"
    """Which decisions it pays for: `stop`, at each token whether to stop or to go on, of which a length is made;
    `content`, which token to go on with; or `all`. A length that pays only for stopping moves words through shared
    weights alone, and so does quality that pays only for content the length; see mlx_sumrl.training.loss."""
    weight: float = 1.0
    """0 logs the reward without training on it."""
    gate: GateConfig | None = None
    """Counts only where this is met."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "function") != (self.function is not None):
            raise ValueError("a reward needs `function: module:name` exactly when its kind is `function`")
        if (self.kind == "format_bullets") != (self.bullets is not None):
            raise ValueError("a reward needs `bullets: 5` exactly when its kind is `format_bullets`")
        if self.margin and self.kind != "within":
            raise ValueError(f"`margin` is for kind `within`; reward {self.label!r} is {self.kind!r}")
        if self.min_words != SENTENCE_WORDS and self.kind != "whole_sentences":
            raise ValueError(
                f"`min_words` is for kind `whole_sentences`; reward {self.label!r} is {self.kind!r}"
            )
        if self.max_words is not None and self.kind != "format_bullets":
            raise ValueError(
                f"`max_words` is for kind `format_bullets`; reward {self.label!r} is {self.kind!r}"
            )
        if (self.kind == "json_schema") != (self.schema_file is not None):
            raise ValueError(
                "a reward needs `schema_file: schema.json` exactly when its kind is `json_schema`"
            )
        if (self.kind == "bertscore") != (self.encoder is not None):
            raise ValueError("a reward needs `encoder: FOLDER` exactly when its kind is `bertscore`")
        if (self.kind == "judge") != (self.judge is not None):
            raise ValueError(
                "a reward needs `judge: {server: URL, model: NAME}` exactly when its kind is `judge`"
            )
        return self

    @property
    def label(self) -> str:
        """Its name in metrics and gates."""
        if self.name:
            return self.name
        if self.kind == "judge":
            return f"judge_{self.criterion}"
        return self.function.rpartition(":")[2] if self.function else self.kind


class ScoringConfig(Room):
    """Where completions are scored."""

    processes: int | None = Field(default=None, ge=0)
    """Worker processes in which rewards that take time are computed, beside the training: null takes one for each core,
    4 at most, where a stage has a reward worth it. 0 computes them in the training thread, without any time-out."""
