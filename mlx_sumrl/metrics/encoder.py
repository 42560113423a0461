"""BERT and RoBERTa encoders in MLX: token ids -> vectors, for BERTScore.

Devlin et al. 2019 (arXiv:1810.04805) and Liu et al. 2019 (arXiv:1907.11692): learned positions, layer norm after each
sum, bidirectional attention. The two differ in where positions begin to count, and in their tokenizers. mlx-lm has
none of them, since they generate nothing.

Invariant: padding changes no vector of another token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from mlx_sumrl.errors import UserError

KINDS = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}
"""``model_type`` -> 1 where positions are counted from the padding id's on (fairseq's way), 0 where from 0."""
_ACTIVATIONS = {"gelu": nn.gelu, "gelu_new": nn.gelu_approx, "relu": nn.relu}
_OLD_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What of an encoder's ``config.json`` matters here."""

    kind: str
    layers: int
    heads: int
    epsilon: float
    activation: str
    first_position: int
    positions: int
    """Most tokens that it reads."""
    name: str
    """What the config says that it is called; may be empty."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Raises `UserError` for what is no BERT or RoBERTa."""
        content = _config(folder)
        kind = content.get("model_type")
        if kind not in KINDS:
            raise UserError(
                f"{folder} holds a model of type {kind!r}; BERTScore takes an encoder of type {', '.join(KINDS)}"
            )
        positions = content.get("position_embedding_type") or "absolute"
        activation = content.get("hidden_act", "gelu")
        if positions != "absolute" or activation not in _ACTIVATIONS:
            raise UserError(
                f"the encoder in {folder} has {positions} positions and the activation {activation!r}; BERTScore takes "
                f"absolute positions and {', '.join(_ACTIVATIONS)}: name another encoder"
            )
        try:
            first = int(content.get("pad_token_id", 1)) + 1 if KINDS[kind] else 0
            return cls(
                kind=kind,
                layers=int(content["num_hidden_layers"]),
                heads=int(content["num_attention_heads"]),
                epsilon=float(content.get("layer_norm_eps", 1e-12)),
                activation=activation,
                first_position=first,
                positions=int(content["max_position_embeddings"]) - first,
                name=str(content.get("_name_or_path") or ""),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder}/config.json does not say what an encoder is made of ({error!r}); copy it from where the "
                "encoder came from"
            ) from error


class Encoder:
    """The first ``layers`` layers of an encoder in a folder, in float32."""

    def __init__(self, folder: Path, shape: EncoderShape, layers: int) -> None:
        """Raises `UserError` where weights are missing, or are no safetensors."""
        self._shape = shape
        self._layers = layers
        self._weights = _weights(folder)
        for name in (
            *_EMBEDDINGS,
            *(f"encoder.layer.{at}.{part}" for at in range(layers) for part in _LAYER),
        ):
            if name not in self._weights:
                raise UserError(
                    f"the weights in {folder} have no {name}: they are not those of a whole {shape.kind} encoder of "
                    f"{layers} layers; name another folder"
                )

    def __call__(self, token_ids_NT: mx.array, mask_NT: mx.array) -> mx.array:
        """Vectors of the last layer taken [N, T, D], of ids padded to the same length.

        Args:
            token_ids_NT: at most `EncoderShape.positions` tokens.
            mask_NT: true where there is a token; padding follows.
        """
        at_T = mx.arange(token_ids_NT.shape[1]) + self._shape.first_position
        vectors_NTD = (
            self._weights["embeddings.word_embeddings.weight"][token_ids_NT]
            + self._weights["embeddings.position_embeddings.weight"][at_T]
            + self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        vectors_NTD = self._norm(vectors_NTD, "embeddings")
        # Added to the scores before softmax: what is no token gets no weight.
        hidden_N11T = mx.where(mask_NT, 0.0, -1e9)[:, None, None, :]
        for at in range(self._layers):
            vectors_NTD = self._layer(vectors_NTD, hidden_N11T, f"encoder.layer.{at}")
        return vectors_NTD

    def _layer(self, vectors_NTD: mx.array, hidden_N11T: mx.array, name: str) -> mx.array:
        count, length, width = vectors_NTD.shape
        heads = self._shape.heads

        def split(part: str) -> mx.array:  # [N, H, T, D / H]
            projected = self._linear(vectors_NTD, f"{name}.attention.self.{part}")
            return projected.reshape(count, length, heads, width // heads).transpose(0, 2, 1, 3)

        attended = mx.fast.scaled_dot_product_attention(
            split("query"), split("key"), split("value"), scale=(width // heads) ** -0.5, mask=hidden_N11T
        )
        attended = attended.transpose(0, 2, 1, 3).reshape(count, length, width)
        attended = self._linear(attended, f"{name}.attention.output.dense")
        vectors_NTD = self._norm(vectors_NTD + attended, f"{name}.attention.output")
        wide = _ACTIVATIONS[self._shape.activation](self._linear(vectors_NTD, f"{name}.intermediate.dense"))
        return self._norm(vectors_NTD + self._linear(wide, f"{name}.output.dense"), f"{name}.output")

    def _linear(self, x: mx.array, name: str) -> mx.array:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: mx.array, name: str) -> mx.array:
        weight, bias = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        return mx.fast.layer_norm(x, weight, bias, self._shape.epsilon)


_EMBEDDINGS = (
    *(f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
    *(f"embeddings.LayerNorm.{part}" for part in ("weight", "bias")),
)
_LAYER = tuple(
    f"{name}.{part}"
    for name in (
        *(f"attention.self.{one}" for one in ("query", "key", "value")),
        *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense"),
        *("output.dense", "output.LayerNorm"),
    )
    for part in ("weight", "bias")
)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no config.json: name the folder of a BERT or RoBERTa encoder, as `hf download "
            "roberta-large --local-dir roberta-large` makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); copy it from where the encoder came from"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__} and no options of an encoder")
    return content


def _weights(folder: Path) -> dict[str, mx.array]:
    """All weights by name, in float32, without what stands before ``embeddings`` and ``encoder``."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} holds no .safetensors file, and nothing else is read; take a revision that has one, or convert "
            "it with transformers' save_pretrained"
        )
    weights: dict[str, mx.array] = {}
    for file in files:
        try:
            held = mx.load(str(file))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} is no whole safetensors file ({error}); fetch it again") from error
        assert isinstance(held, dict)
        for name, value in held.items():
            for old, new in _OLD_NAMES.items():
                name = name.replace(old, new)
            for prefix in ("embeddings.", "encoder."):
                begin = 0 if name.startswith(prefix) else name.find(f".{prefix}") + 1
                if begin or name.startswith(prefix):
                    weights[name[begin:]] = value.astype(mx.float32)
                    break
    return weights
