"""Options: a whole run."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mlx_sumrl.config.answer import AnswerConfig
from mlx_sumrl.config.data import DataConfig
from mlx_sumrl.config.named_run import (
    CheckpointConfig,
    ExportConfig,
    NamedRunConfig,
    RunName,
    TrackingConfig,
)
from mlx_sumrl.config.policy import PolicyConfig
from mlx_sumrl.config.rewards import ScoringConfig
from mlx_sumrl.config.rollouts import DEFAULT_LENGTH_UNIT, LengthConfig, SamplingConfig
from mlx_sumrl.config.room import Room
from mlx_sumrl.config.stages import StageConfig
from mlx_sumrl.config.training import GrpoConfig, OptimizerConfig, SftConfig, StoppingConfig

Phase = StageConfig | StoppingConfig
"""What a run goes through, one after the other."""


class ReportingConfig(TrackingConfig):
    """What the run writes down."""

    rollouts_every: int = Field(default=10, gt=0)
    """Steps between records of prompts, completions and rewards in rollouts.jsonl."""
    rollout_groups: int = Field(default=1, gt=0)
    """Groups written each time."""


class EvaluationConfig(Room):
    """How the policy is evaluated before, between and after the stages: greedily."""

    batch_size: int = Field(default=32, gt=0)
    """Prompts decoded at once."""
    samples: int = Field(default=3, ge=0)
    """Sample summaries shown at the end."""
    length_matched_baseline: bool = False
    """Also evaluate the policy before any reward, made to write exactly `length.target` tokens."""


class RunConfig(NamedRunConfig):
    """A whole run."""

    name: RunName = "grpo"
    policy: PolicyConfig
    data: DataConfig = DataConfig()
    length: LengthConfig = LengthConfig()
    answer: AnswerConfig = AnswerConfig()
    sampling: SamplingConfig = SamplingConfig()
    sft: SftConfig | None = None
    stopping: StoppingConfig | None = None
    """Learning when to stop, after `sft` and before the stages, between two, or after them; null leaves it out.
    The recipes bring it with their own stages; null, without stages of your own, takes the one that does without it."""
    grpo: GrpoConfig = GrpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stages: tuple[StageConfig, ...] = ()
    """The curriculum. Where it is left out the recipes bring the one that won, with defaults of its own for `sampling`,
    `optimizer`, `grpo` and `stopping`, and another where that cannot be; see mlx_sumrl.training.stages."""
    scoring: ScoringConfig = ScoringConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    reporting: ReportingConfig = ReportingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        most = self.length.longest
        longest = most + self.length.asked(most).allowed + 1
        in_tokens = self.length.unit == DEFAULT_LENGTH_UNIT
        if in_tokens and most + 1 > self.sampling.max_tokens:
            name = "length.targets" if self.length.targets else "length.target"
            raise ValueError(
                f"{name} {most} can never be reached with sampling.max_tokens "
                f"{self.sampling.max_tokens}: raise it to at least {longest} (target, tolerance and the stop token)"
            )
        if not in_tokens and self.evaluation.length_matched_baseline:
            raise ValueError(
                f"evaluation.length_matched_baseline counts tokens, and length.unit is {self.length.unit}: "
                "leave it out"
            )
        if self.length.targets and self.evaluation.length_matched_baseline:
            raise ValueError(
                "evaluation.length_matched_baseline writes one length, and length.targets asks for several: leave "
                "one of them out"
            )
        if self.length.targets:
            self.data.check_tells_length("length.targets")
        if self.sft and self.sft.own_length:
            self.data.check_tells_length("sft.own_length")
        if self.stopping and not in_tokens:
            raise ValueError(
                f"stopping teaches to count tokens, and length.unit is {self.length.unit}: leave it out"
            )
        if self.stopping and self.answer.after is not None:
            raise ValueError(
                "stopping counts from a completion's first token, and answer.after asks for the length of what follows "
                f"{self.answer.after!r}: leave one of them out"
            )
        rewards = [reward for stage in self.stages for reward in stage.rewards]
        filtered = self.sampling.top_p < 1 or self.sampling.top_k > 0
        if filtered and (apart := [reward for reward in rewards if reward.credit != "all"]):
            raise ValueError(
                f"reward {apart[0].label!r} has credit: {apart[0].credit}, and sampling.top_p {self.sampling.top_p:g} "
                f"and top_k {self.sampling.top_k} may leave out the stop token, so that nothing was decided about "
                "stopping: set them to 1 and 0"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name ({', '.join(names)}); give each its own")
        for name in ("sft", "stopping"):
            if name in names:
                raise ValueError(f"a stage cannot be named {name!r}: that is a supervised phase")
        if self.stopping and self.stopping.stage is not None and self.stopping.stage not in names:
            raise ValueError(
                f"stopping.stage {self.stopping.stage!r} is none of the stages "
                f"({', '.join(names) or 'there are none'}): name one of them, or leave it out"
            )
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stages, and `stopping` where there is some, in the order in which they are trained."""
        if self.stopping is None:
            return self.stages
        after = self.stopping.when == "after"
        place = len(self.stages) if after else 0
        if self.stopping.stage is not None:
            place = [stage.name for stage in self.stages].index(self.stopping.stage) + after
        return (*self.stages[:place], self.stopping, *self.stages[place:])
