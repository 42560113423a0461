"""Options: how gradients become steps."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.policy import ReferenceKind
from mlx_sumrl.config.room import Room

Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt", "stable_decay"]


class OptimizerConfig(Room):
    """How gradients become steps, and how small steps reach bfloat16 weights."""

    kind: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    """AdamW; Lion keeps half of its state and wants a third to a tenth of its learning rate; Adafactor keeps
    hardly any; Muon makes the steps of hidden matrices orthogonal (AdamW for the rest, same learning rate)."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak step size; null takes what the tuning bears: 1e-5 for every parameter, and for adapters 2e-3 in a model 256
    wide, less in a wider one; see mlx_sumrl.training.peak_rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moment; Muon's momentum is the first, Adafactor has its own."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled; on matrices only."""
    rounding: Literal["stochastic", "compensated", "nearest"] = "stochastic"
    """How an update is written into bfloat16 weights: `stochastic`, right on average; `compensated`, what did not
    fit is kept for the next, in 2 more bytes per weight; `nearest` loses most of a small one."""
    moments: Literal["float32", "bfloat16", "blocks8"] = "float32"
    """How moments are kept: in 4, 2 or about 1 byte each. All of them decay."""
    schedule: Schedule = "constant"
    """Shape of the learning rate after warm-up: `linear` and `cosine` end at `final_share` of it; `inverse_sqrt`
    falls with the root of the step and never below that; `stable_decay` is constant, and falls in a line to it over
    the last `decay_share` of the steps."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """The same as a share of all steps, in place of `warmup_steps`."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate left at the end of a schedule."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """Share of the steps over which `stable_decay` falls."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger global norm are scaled down to it."""
    max_bad_steps: int = Field(default=5, gt=0)
    """Stop after this many steps in a row with a loss or gradient that is not finite."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and warmup_ratio {self.warmup_ratio} say the same thing twice: "
                "leave one of them out"
            )
        return self


class SftOptimizerConfig(OptimizerConfig):
    """The same optimiser with the learning rate and the schedule that supervised training bears."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak step size."""
    schedule: Schedule = "cosine"
    """As elsewhere. A rate that falls ends lower: held-out loss 2.11 where a constant one came to 2.24 (a 260 K
    model on 1,200 dialogues, LoRA at 1e-3, three seeds each)."""
    final_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the learning rate left at the end: with 0 the last step would move nothing."""


class SftConfig(Room):
    """Supervised fine-tuning on the references, before any reinforcement."""

    reference_column: str | None = None
    """Column with the answers to learn; data.reference_column otherwise."""
    steps: int = Field(default=200, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=16, gt=0)
    """Examples per step."""
    own_length: bool = False
    """Where the instruction says `{target_length}`, tell each row the length that its own answer has, in the unit of
    `length`, in place of `length.target`: what the number means is then learned here."""
    own_length_except: tuple[int, ...] = ()
    """Leave out the rows with these own lengths, so that asking for them later asks for something never trained."""
    micro_batch_tokens: int = Field(default=4096, gt=0)
    """Token positions in one forward and backward pass; the gradient is the same whatever it is."""
    optimizer: SftOptimizerConfig = SftOptimizerConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.own_length_except and not self.own_length:
            raise ValueError(
                f"own_length_except {', '.join(map(str, self.own_length_except))} leaves out rows by the length that "
                "own_length tells them: set own_length to true, or leave it out"
            )
        return self


class StoppingOptimizerConfig(OptimizerConfig):
    """The same optimiser with the schedule that learning to count bears."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak step size; null takes the run's where that is of the same `kind`, and what the tuning bears otherwise."""
    schedule: Schedule = "stable_decay"
    """As elsewhere: whether a number is understood comes all at once, after a while at the full rate."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises from 0."""
    decay_share: float = Field(default=0.4, gt=0, le=1)
    """Share of the steps over which `stable_decay` falls."""
    final_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the learning rate left at the end."""


class StoppingConfig(Room):
    """Learning when to stop, and nothing else: see mlx_sumrl.training.stopping.

    For lengths in tokens. Before the stages, a policy comes to count and to know the number it was told, and rewards
    teach its texts to end there; after them, what they have taught is kept, and brought within the length where it is
    not. Between two, the second one begins within the length, and keeps it by its own samples."""

    name: ClassVar[str] = "stopping"
    """Of the phase, as a stage has one."""
    when: Literal["before", "after"] = "before"
    """Before the stages or after them; before or after `stage` alone where it is given."""
    stage: str | None = None
    """Name of the stage that it comes before or after; null: of all of them."""
    steps: int = Field(default=300, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=24, gt=0)
    """Prompts per step, each with a text that goes on past every length."""
    max_prompt_tokens: int = Field(default=64, gt=0)
    """At first documents lose their end until a prompt has no more tokens than this: counting does not need them, and
    short prompts are quick. data.max_prompt_tokens where that is less."""
    short_share: float = Field(default=0.6, ge=0, le=1)
    """Share of the steps for which that holds. Then prompts are whole, or what was learned would not hold for them:
    told 48 tokens, 83 % of a model's texts were within for prompts of 64, and 60 % for whole ones."""
    anchor: float = Field(default=1.0, ge=0)
    """Weight of what holds the words where they are meanwhile; 0 only measures how far they go."""
    micro_batch_tokens: int | None = Field(default=None, gt=0)
    """Token positions in one forward and backward pass; the gradient is the same whatever it is. Null: as many as
    `grpo.micro_batch_tokens`, which says what the machine bears."""
    optimizer: StoppingOptimizerConfig = StoppingOptimizerConfig()


class GrpoConfig(Room):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300) and its relatives."""

    prompts_per_step: int = Field(default=4, gt=0)
    """Prompts sampled for each step."""
    group_size: int = Field(default=8, ge=2)
    """Completions per prompt; a group of 1 has nothing to be compared with."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo"] = "dapo"
    """How token losses are added up; see mlx_sumrl.training.loss."""
    epsilon_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped below 1 - epsilon_low."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """The ratio is clipped above 1 + epsilon_high; null means epsilon_low, and 0.28 for dapo."""
    correction: Literal["clip", "truncate", "mask", "none"] = "clip"
    """What is done with a ratio far from 1: PPO's clip, a weight capped above, or left out."""
    ratio_level: Literal["token", "sequence"] | None = None
    """Ratio per token or per completion (its geometric mean); null means token, and sequence for gspo."""
    truncate_at: float = Field(default=2.0, gt=1)
    """Cap of the weight for `truncate`; `mask` leaves out ratios outside [1 / truncate_at, truncate_at]."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference; 0 loads no reference."""
    reference: ReferenceKind = "copy"
    """How full tuning keeps its reference: a whole `copy` of the weights, or about a half (`8bit`) or a quarter
    (`4bit`) of a bfloat16 one. 8 bits measure nearly the same KL, 4 bits do not begin at 0: see
    mlx_sumrl.policy.reference. With lora and dora it is the model without its adapters, which takes no memory."""
    kl: Literal["k2", "k3", "k3_weighted"] = "k3_weighted"
    """Estimator put in the loss; `k3` alone has the gradient of the forward KL, the others of the reverse."""
    scale_advantages: Literal["group", "none"] = "group"
    """Divide a group's advantages by its standard deviation, or not; dr_grpo never does."""
    normalize_rewards: Literal["sum", "each"] = "sum"
    """Normalise the weighted sum within the group, or each reward by itself before they are summed."""
    updates_per_rollout: int = Field(default=1, gt=0)
    """Optimiser steps on the same completions."""
    micro_batch_tokens: int = Field(default=4096, gt=0)
    """Token positions in one forward and backward pass; the gradient is the same whatever it is."""
    share_prompt: bool = True
    """Compute a prompt once for all completions of its group; off, once for each (the same, slower)."""
