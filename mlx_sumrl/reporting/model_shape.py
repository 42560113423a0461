"""`ModelShape`: a model's sizes by its config.json, and the parameters that follow. Never imports mlx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from mlx_sumrl.errors import UserError

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
TIED_BY_DEFAULT = {"phi3": False, "qwen3": False}
"""Where config.json does not say; as mlx-lm builds the family."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the llama family tree (qwen2, llama, phi3, qwen3), or an LFM2 hybrid."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """The head shares the embedding's matrix."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Queries and keys are normalised, with one weight per head dimension."""
    fused: bool = False
    """One matrix for query, key and value, and one for gate and up (phi3)."""
    conv_layers: int = 0
    """Blocks with a short convolution in place of attention (LFM2)."""
    conv_kernel: int = 0
    conv_bias: bool = False
    quantization: tuple[int, int] | None = None
    """Bits and group size of quantised matrices."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Sizes from the content of a model's config.json; `UserError` when it lacks one."""
        family = str(config.get("model_type", ""))
        missing = [name for name in NEEDED if not isinstance(config.get(name), int)]
        if missing:
            raise UserError(
                f"the model's config.json (model_type {family!r}) lacks {', '.join(missing)}; "
                "use a model of the qwen2, llama, phi3, qwen3 or lfm2 family"
            )
        hidden, layers, heads = (int(config[name]) for name in NEEDED[:3])
        attention_layers = layers
        if family == "lfm2":
            kinds = config.get("layer_types") or []
            full = config.get("full_attn_idxs")
            attention_layers = len(full) if full is not None else kinds.count("full_attention")
        quantization = config.get("quantization") or config.get("quantization_config")
        return cls(
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=_intermediate(config, family),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", TIED_BY_DEFAULT.get(family, True)))
            or family == "lfm2",
            qkv_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
            output_bias=family == "llama" and bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=family in ("qwen3", "lfm2"),
            fused=family == "phi3",
            conv_layers=layers - attention_layers,
            conv_kernel=int(config.get("conv_L_cache") or 0),
            conv_bias=bool(config.get("conv_bias", False)),
            quantization=_bits(quantization),
        )

    @property
    def attention_layers(self) -> int:
        """Blocks with attention, and so with keys and values to keep."""
        return self.layers - self.conv_layers

    def block_matrices(self, attention: bool) -> list[tuple[int, int]]:
        """(inputs, outputs) of each linear layer in one block: what LoRA puts adapters on."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if not attention:
            mixer = [(self.hidden, 3 * self.hidden), (self.hidden, self.hidden)]
        elif self.fused:
            mixer = [(self.hidden, query + 2 * keys), (query, self.hidden)]
        else:
            mixer = [(self.hidden, query), (self.hidden, keys), (self.hidden, keys), (query, self.hidden)]
        up = [(self.hidden, 2 * self.intermediate)] if self.fused else [(self.hidden, self.intermediate)] * 2
        return [*mixer, *up, (self.intermediate, self.hidden)]

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the embedding, the head and the linear layers: what quantisation makes smaller."""
        blocks = sum(
            count * sum(inputs * outputs for inputs, outputs in self.block_matrices(attention))
            for attention, count in ((True, self.attention_layers), (False, self.conv_layers))
        )
        return blocks + self.vocab * self.hidden * (1 if self.tied else 2)

    def packable_parameters(self, group: int) -> int:
        """Of those, what quantisation with this group size packs: it has to divide a matrix's width."""
        blocks = sum(
            count * sum(i * o for i, o in self.block_matrices(attention) if i % group == 0)
            for attention, count in ((True, self.attention_layers), (False, self.conv_layers))
        )
        return blocks + self.vocab * self.hidden * (1 if self.tied else 2) * (self.hidden % group == 0)

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (
            self.qkv_bias * (query + 2 * keys)
            + self.output_bias * self.hidden
            + self.qk_norm * 2 * self.head_dim
        )
        convolution = self.hidden * self.conv_kernel + self.conv_bias * 5 * self.hidden
        mlp = self.mlp_bias * (2 * self.intermediate + self.hidden)
        norms = (2 * self.layers + 1) * self.hidden
        return (
            self.matrix_parameters
            + self.attention_layers * attention
            + self.conv_layers * convolution
            + self.layers * mlp
            + norms
        )

    def adapter_parameters(self, rank: int, layers: int = -1, dora: bool = False) -> int:
        """Parameters of adapters on every linear layer of the last ``layers`` blocks; 0 and -1 mean all.

        A hybrid's blocks are taken as evenly mixed when not all of them get adapters.
        """
        share = 1.0 if layers <= 0 else min(layers / self.layers, 1.0)
        total = sum(
            count
            * sum(
                rank * (inputs + outputs) + dora * outputs
                for inputs, outputs in self.block_matrices(attention)
            )
            for attention, count in ((True, self.attention_layers), (False, self.conv_layers))
        )
        return round(total * share)


def _intermediate(config: Mapping[str, Any], family: str) -> int:
    if family != "lfm2":
        return int(config.get("intermediate_size") or 4 * int(config["hidden_size"]))
    size = int(config.get("block_ff_dim") or config["intermediate_size"])
    if config.get("block_auto_adjust_ff_dim", False):
        # As mlx-lm's lfm2.MLP: two thirds, scaled, rounded up to a multiple.
        size = int(2 * size / 3)
        if (factor := config.get("block_ffn_dim_multiplier")) is not None:
            size = int(factor * size)
        multiple = int(config["block_multiple_of"])
        size = multiple * ((size + multiple - 1) // multiple)
    return size


def _bits(quantization: Any) -> tuple[int, int] | None:
    if not isinstance(quantization, Mapping) or "bits" not in quantization:
        return None
    return int(quantization["bits"]), int(quantization.get("group_size", 64))
