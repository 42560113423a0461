"""Options: the model that is trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.room import Room

Dtype = Literal["float32", "bfloat16"]
DEFAULT_DTYPE: Dtype = "bfloat16"
ReferenceKind = Literal["copy", "8bit", "4bit"]
REFERENCE_BITS: dict[ReferenceKind, int] = {"8bit": 8, "4bit": 4}
"""Bits of a weight of a quantised reference."""


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
