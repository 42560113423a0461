"""Every option of the library, one model per room; each default lives here and nowhere else.

A run is described by one `RunConfig`: a YAML file, then command-line options over it
(``--grpo.group_size 16``). Unknown keys are refused. Never imports mlx.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["float32", "bfloat16"]
DEFAULT_DTYPE: Dtype = "bfloat16"
ReferenceKind = Literal["copy", "8bit", "4bit"]
REFERENCE_BITS: dict[ReferenceKind, int] = {"8bit": 8, "4bit": 4}
"""Bits of a weight of a quantised reference."""


class Room(BaseModel):
    """Options of one room: typed, frozen, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class GrammarConfig(Room):
    """Posts made from a small grammar, for a quickstart that needs no data."""

    train_posts: int = Field(default=1200, gt=0)
    """Posts made for training."""
    evaluation_posts: int = Field(default=100, gt=0)
    """Posts made for evaluation; none of them is among the training posts."""


class DataConfig(Room):
    """Documents -> examples."""

    train: str | None = None
    """A .jsonl, .csv or .parquet file, or the name of a Hugging Face dataset."""
    evaluation: str | None = None
    """The same for held-out rows; evaluation is skipped without it."""
    train_split: str = "train"
    """Split of a Hugging Face dataset to train on."""
    evaluation_split: str = "validation"
    """Split of a Hugging Face dataset to evaluate on."""
    grammar: GrammarConfig | None = None
    """Make posts from a small grammar instead of reading files."""
    document_column: str = "document"
    """Column that holds the text to summarise."""
    reference_column: str = "summary"
    """Column that holds the summary a person wrote."""
    id_column: str | None = None
    """Column that names a row; file and line number otherwise."""
    instruction: str = "Summarize the following text in {target_length} tokens.\n\n{document}"
    """The user's turn; {document}, {target_length} and any column's name in braces are filled in."""
    system: str | None = None
    """The system prompt, if any."""
    chat_template: Literal["model", "none"] = "model"
    """`model`: the tokenizer's own chat template. `none`: the instruction as plain text."""
    max_prompt_tokens: int = Field(default=512, gt=0)
    """A longer prompt loses the end of its document, never any of its template."""
    train_rows: int | None = Field(default=None, gt=0)
    """Read only the first rows."""
    evaluation_rows: int | None = Field(default=200, gt=0)
    """Evaluate on the first rows only; null takes all."""
    max_unusable_share: float = Field(default=0.05, ge=0, le=1)
    """Stop when a larger share of rows than this cannot be used."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{document}" not in self.instruction:
            raise ValueError("data.instruction must contain {document}, where the text to summarise goes")
        if self.grammar is not None and (self.train or self.evaluation):
            raise ValueError(
                "data.grammar makes its own rows: leave out data.train and data.evaluation, or data.grammar"
            )
        return self


class LoraConfig(Room):
    """Low-rank adapters (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024)."""

    rank: int = Field(default=8, gt=0)
    """Inner size of the update."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. Above 0 the ratio is noisy, since rollouts are sampled without it."""
    layers: int = Field(default=-1, ge=-1)
    """How many of the last blocks get adapters; -1 means all."""
    keys: tuple[str, ...] | None = None
    """Names of linear layers inside a block, as `self_attn.q_proj`; null means all of them. `lm_head`, where the
    head is not tied to the embedding, has to be named."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layers == 0:  # mlx-lm would take 0 for all
            raise ValueError("policy.lora.layers 0 leaves nothing to train; -1 means all blocks")
        return self

    @property
    def scale(self) -> float:
        """alpha / rank, the factor that mlx-lm calls scale."""
        return self.alpha / self.rank


class TinyModelConfig(Room):
    """A tiny model made on the spot, with a tokenizer trained on the training texts."""

    vocabulary: int = Field(default=512, ge=300)
    """Tokens of its tokenizer, special ones included."""
    hidden_size: int = Field(default=128, gt=0)
    """Width of the model."""
    layers: int = Field(default=3, gt=0)
    """Transformer blocks."""
    heads: int = Field(default=4, gt=0)
    """Attention heads."""
    context: int = Field(default=512, gt=0)
    """Most tokens of prompt and completion together."""


class PolicyConfig(Room):
    """The model that is trained."""

    model: str | None = None
    """A local folder or a Hugging Face id."""
    tiny: TinyModelConfig | None = None
    """Make a tiny random model instead; it needs `sft` to learn anything."""
    adapter: str | None = None
    """Adapter folder to start from; its own rank and layers are used."""
    tuning: Literal["full", "lora", "dora"] = "lora"
    """Train every parameter (embeddings too), or low-rank adapters."""
    dtype: Dtype = DEFAULT_DTYPE
    """Type of the weights. Losses and log-probabilities are float32 in any case."""
    lora: LoraConfig = LoraConfig()
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more time."""
    logits_mb: int = Field(default=32, gt=0)
    """Most that arrays of tokens x vocabulary may take in training, in MB; what would be more is done in tiles."""
    trust_remote_code: bool = False
    """Run Python that a model folder brings along."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.tiny is None):
            raise ValueError(
                "give exactly one of policy.model (a folder or hub id) and policy.tiny (make one)"
            )
        return self


class SamplingConfig(Room):
    """How completions are drawn in training."""

    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the most likely tokens up to this probability; 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """0 switches the filter off."""
    max_tokens: int = Field(default=96, gt=1)
    """Most tokens of a completion, the stop token counted."""
    max_rows: int = Field(default=64, gt=0)
    """Completions that the local sampler decodes at once; more need more memory."""
    cache_bits: Literal[4, 8] | None = None
    """Keep the local sampler's keys and values in 4 or 8 bits; null keeps them as they are. Completions are then
    drawn from another policy, the one with this cache; so is what is recorded of them, and the ratio corrects for
    it. Log p moves by .004 on average with 8 bits and by .07 with 4 (a summariser of 5 M parameters)."""


class LengthConfig(Room):
    """The length that is asked for. Only tokens count here; the stop token does not."""

    target: int = Field(default=64, gt=0)
    """Tokens asked for."""
    tolerance: int = Field(default=5, ge=0)
    """A completion is within when it stopped by itself and |length - target| <= tolerance."""


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

    kind: Literal["length", "within", "rougeL", "repetition", "function"]
    """`function` calls your own Python, see `function`."""
    name: str = ""
    """Its name in metrics and gates; the kind, or the function's name, otherwise."""
    function: str | None = None
    """`package.module:function` or `path/to/file.py:function` with the signature
    f(prompts, completions, **columns) -> list[float | None]."""
    ngram: int = Field(default=4, gt=0)
    """Tokens of an n-gram whose repeats `repetition` counts."""
    completions_as: Literal["text", "messages"] = "text"
    """How your function gets prompts and completions: strings, or lists of chat messages."""
    weight: float = 1.0
    """0 logs the reward without training on it."""
    gate: GateConfig | None = None
    """Counts only where this is met."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "function") != (self.function is not None):
            raise ValueError("a reward needs `function: module:name` exactly when its kind is `function`")
        return self

    @property
    def label(self) -> str:
        """Its name in metrics and gates."""
        return self.name or (self.function.rpartition(":")[2] if self.function else self.kind)


class OptimizerConfig(Room):
    """How gradients become steps, and how small steps reach bfloat16 weights."""

    kind: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    """AdamW; Lion keeps half of its state and wants a third to a tenth of its learning rate; Adafactor keeps
    hardly any; Muon makes the steps of hidden matrices orthogonal (AdamW for the rest, same learning rate)."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak step size."""
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
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after warm-up; `linear` and `cosine` end at `final_share` of it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate left at the end of a schedule."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger global norm are scaled down to it."""
    max_bad_steps: int = Field(default=5, gt=0)
    """Stop after this many steps in a row with a loss or gradient that is not finite."""


class SftOptimizerConfig(OptimizerConfig):
    """The same optimiser with the learning rate that supervised training bears."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak step size."""


class SftConfig(Room):
    """Supervised fine-tuning on the references, before any reinforcement."""

    reference_column: str | None = None
    """Column with the answers to learn; data.reference_column otherwise."""
    steps: int = Field(default=200, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=16, gt=0)
    """Examples per step."""
    micro_batch_tokens: int = Field(default=4096, gt=0)
    """Token positions in one forward and backward pass; the gradient is the same whatever it is."""
    optimizer: SftOptimizerConfig = SftOptimizerConfig()


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


STEP_METRICS = (
    "reward/mean",
    "length/mean",
    "length/within",
    "length/exact",
    "length/unfinished",
    "ratio/mean",
    "clip_fraction",
    "kl",
    "loss",
    "grad_norm",
)
"""What a stage may wait for, beside ``reward/NAME`` of its own rewards."""


class UntilConfig(Room):
    """Move on early: `metric` has been at least `at_least` for `steps` steps in a row."""

    metric: str = "length/within"
    """Name of the metric, as in metrics.jsonl."""
    at_least: float
    """Value from which it is good enough."""
    steps: int = Field(default=5, gt=0)
    """Steps in a row for which it has to be."""


class StageConfig(Room):
    """One stage of a curriculum."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    """Its name in metrics and in evaluation/."""
    steps: int = Field(gt=0)
    """Steps at most."""
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    """What completions are paid for."""
    until: UntilConfig | None = None
    """Move on before `steps` once a metric is good enough."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The run's own otherwise."""
    optimizer: Literal["fresh", "kept"] = "kept"
    """Start with empty moments, or go on with those of the stage before."""
    reference: Literal["fresh", "kept"] = "kept"
    """KL to the policy as this stage found it, or to that of the stage before."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = [reward.label for reward in self.rewards]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"stage {self.name!r} has two rewards named {label!r}; give one another `name`"
                )
        known = (*STEP_METRICS, *(f"reward/{label}" for label in labels))
        if self.until and self.until.metric not in known:
            raise ValueError(
                f"stage {self.name!r} waits for {self.until.metric!r}, which is no metric of its steps; "
                f"there are {', '.join(known)}"
            )
        for reward in self.rewards:
            if reward.gate and reward.gate.reward not in labels:
                raise ValueError(
                    f"stage {self.name!r}: the gate of {reward.label!r} names {reward.gate.reward!r}, "
                    f"which is not among its rewards ({', '.join(labels)}); add it, with weight 0 if it is only a gate"
                )
        return self


class CheckpointConfig(Room):
    """When the run is saved."""

    every: int = Field(default=10, gt=0)
    """Steps between checkpoints."""
    keep: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones are removed once a newer one is whole."""


class ReportingConfig(Room):
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
    """Also evaluate the untrained policy made to write exactly `length.target` tokens."""


class ExportConfig(Room):
    """What is written to export/ when the run ends."""

    fused: bool = True
    """A model folder that mlx-lm and Hugging Face tokenizers load."""
    adapter: bool = True
    """With lora or dora: an mlx_lm adapter folder, and a PEFT one (LoRA only)."""


class RunConfig(Room):
    """A whole run."""

    name: str = Field(default="grpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder below `runs_dir`; a folder that holds another run is refused."""
    runs_dir: Path = Path("runs")
    """Where runs live."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """One seed gives one run, bit for bit, on one machine."""
    policy: PolicyConfig
    data: DataConfig = DataConfig()
    length: LengthConfig = LengthConfig()
    sampling: SamplingConfig = SamplingConfig()
    sft: SftConfig | None = None
    grpo: GrpoConfig = GrpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stages: tuple[StageConfig, ...] = ()
    """The curriculum; each recipe brings its own when this is left out."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    reporting: ReportingConfig = ReportingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        longest = self.length.target + self.length.tolerance + 1
        if self.length.target + 1 > self.sampling.max_tokens:
            raise ValueError(
                f"length.target {self.length.target} can never be reached with sampling.max_tokens "
                f"{self.sampling.max_tokens}: raise it to at least {longest} (target, tolerance and the stop token)"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name ({', '.join(names)}); give each its own")
        if "sft" in names:
            raise ValueError("a stage cannot be named 'sft': that is the supervised phase before the stages")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs_dir / self.name

    def to_json(self) -> dict[str, Any]:
        """Every resolved option as plain JSON values."""
        return self.model_dump(mode="json")
