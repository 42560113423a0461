"""Options: a larger model that judges summaries, as a program and as a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.asking import AskingConfig
from mlx_sumrl.config.room import Room

Criterion = Literal["faithfulness", "coverage", "conciseness", "clarity"]


class JudgeQuestionsConfig(Room):
    """How a summary is put before the judge."""

    server: str | None = None
    """URL of an OpenAI-compatible server, with or without /v1."""
    form: Literal["criterion", "json"] = "criterion"
    """`criterion` asks for one digit, once for each criterion (G-Eval); `json` asks for all four in one reply."""
    rounds: int = Field(default=1, gt=0)
    """Times that each question is asked; more than one needs a temperature. Scores are means, with their spread."""
    top_logprobs: int = Field(default=10, ge=0, le=20)
    """Ask for so many log-probabilities of the digit: where they come, a score is the mean over the digits, weighed by
    them. 0 asks for none, for a server that refuses them."""
    malformed_attempts: int = Field(default=3, gt=0)
    """Times that a question is asked until its reply has the form asked for; after that it counts as unscored."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides the marks that fence the texts, and the bootstrap."""


class JudgingConfig(AskingConfig, JudgeQuestionsConfig):
    """Who judges, and what that may cost."""

    max_tokens: int = Field(default=64, gt=0)
    """Most tokens of a reply, which is one digit or a short JSON object; a judge that thinks first needs more."""

    @model_validator(mode="after")
    def _check_judging(self) -> Self:
        if not self.server:
            raise ValueError("server is missing: give the URL of a server, as http://127.0.0.1:8080")
        if not self.model:
            raise ValueError("model is missing: give the name of a model on the server")
        if self.rounds > 1 and self.temperature == 0:
            raise ValueError(
                f"rounds {self.rounds} with temperature 0 would be the same reply {self.rounds} times: set a "
                "temperature, as 0.7"
            )
        return self


class JudgeRewardConfig(JudgingConfig):
    """Who judges completions during training."""

    ledger: Path | None = None
    """File that keeps every reply, so that a run that goes on asks nothing again and a cap holds over all of it; null
    forgets them with the process."""

    @model_validator(mode="after")
    def _check_ledger(self) -> Self:
        if self.ledger is None and (self.max_cost is not None or self.max_total_tokens is not None):
            raise ValueError(
                "a cap needs a ledger, or a run that goes on would forget what was spent: name a file with ledger"
            )
        return self


class JudgedRowsConfig(Room):
    """Which summaries are judged, and where the results go."""

    evaluation: tuple[Path, ...] = ()
    """Files of `recipes.evaluate --out`, run folders (each evaluation in them), or files of rows (.jsonl, .csv,
    .parquet); several parted by commas."""
    against: Path | None = None
    """Judge pairwise: another such file with the same rows. Each pair is shown in both orders."""
    out: Path | None = None
    """Folder of the results and of the ledger, the record of every reply; null: `judged` beside the evaluation."""
    into: Path | None = None
    """Write copies of the evaluations with the judge's scores among the metrics: a folder, or a .json file for one."""
    labels: Path | None = None
    """A file of rows with people's scores from 1 to 5, whose agreement with the judge is measured."""
    label_column: str = "score"
    """Column of an overall score in `labels`; columns named like the criteria are taken too."""
    document_column: str = "document"
    """Of a file of rows: the column with the text that was summarised."""
    summary_column: str = "summary"
    """Of a file of rows: the column with the summary to judge."""
    id_column: str = "id"
    """Of a file of rows, and of `labels`: the column that names a row."""
    rows: int | None = Field(default=None, gt=0)
    """Judge only the first rows of each evaluation."""
    resamples: int = Field(default=2000, gt=0)
    """Bootstrap samples behind the intervals of the agreement."""


class JudgeConfig(JudgingConfig, JudgedRowsConfig):
    """Which summaries, which judge, and what it may cost."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.evaluation:
            raise ValueError("evaluation is missing: give --evaluation, a file of recipes.evaluate --out")
        if self.against is not None:
            if len(self.evaluation) != 1:
                raise ValueError("against compares one evaluation with another: give one --evaluation")
            for name in ("into", "labels"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} needs scores, and --against asks for none: leave out one of them"
                    )
        return self
