"""Heads of every kind without a model below them, and what they should give: by hand, in numpy's float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

D = 64
KINDS = ("tied", "untied", "bias", "quantised", "quantised embedding", "8 bits", "lora", "dora", "lora bias")
RANK, SCALE = 3, 2.0

Arrays = dict[str, np.ndarray]


class HeadModel(nn.Module):
    """As much of a model as its head is: an embedding, and a head of its own unless ``tied``."""

    def __init__(self, embedding: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = embedding
        if head is not None:
            self.lm_head = head

    @property
    def head(self) -> nn.Module:
        return self.lm_head if "lm_head" in self else self.model.embed_tokens


def make_head(kind: str, V: int, dtype: mx.Dtype = mx.float32, cap: float | None = None) -> HeadModel:
    """Random weights, logits of size about 2 for hidden states of size 1; biases and adapters are not 0."""
    mx.random.seed(0)
    embedding = nn.Embedding(V, D)
    embedding.weight = (mx.random.normal((V, D)) * 2 / D**0.5).astype(dtype)
    linear = nn.Linear(D, V, bias="bias" in kind)
    linear.weight = (mx.random.normal((V, D)) * 2 / D**0.5).astype(dtype)
    if "bias" in kind:
        linear.bias = mx.random.normal((V,)).astype(dtype)
    head: nn.Module | None = linear
    if kind == "tied":
        head = None
    elif kind == "quantised embedding":
        embedding, head = nn.QuantizedEmbedding.from_embedding(embedding, 32, 4), None
    elif kind in ("quantised", "8 bits"):
        head = nn.QuantizedLinear.from_linear(linear, 32, 8 if kind == "8 bits" else 4)
    elif kind in ("lora", "dora", "lora bias"):
        adapter: Any = DoRALinear if kind == "dora" else LoRALinear
        head = adapter.from_base(linear, r=RANK, scale=SCALE)
        head.lora_a = mx.random.normal((D, RANK)) / D**0.5
        head.lora_b = mx.random.normal((RANK, V))
        head.linear.freeze()
    model = HeadModel(embedding, head)
    if cap is not None:
        model.final_logit_softcapping = cap
    if kind != "tied":
        model.model.embed_tokens.freeze()
    mx.eval(model.parameters())
    return model


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32), np.float64)


@dataclass(frozen=True)
class Truth:
    """Log-probabilities of targets, and gradients of their weighted sum."""

    logprobs: np.ndarray
    hidden: np.ndarray
    weights: Arrays
    """By the name inside the head; all that the head has, trained or not."""


def by_hand(
    model: HeadModel,
    hidden: mx.array,
    targets: mx.array,
    weights: np.ndarray,
    temperature: float = 1.0,
    cap: float | None = None,
    smoothing: float = 0.0,
) -> Truth:
    """Log-softmax of all logits at once, and the chain rule written out.

    Smoothed, each is a sum over the vocabulary of what the target has there times log p.
    """
    x, own = wide(hidden), _of_head(model)
    products = x @ own.matrix.T * own.magnitude + own.bias
    capped = products if cap is None else cap * np.tanh(products / cap)
    z = capped / temperature
    z = z - z.max(axis=-1, keepdims=True)
    table = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    rows, chosen = np.arange(len(x)), np.array(targets)
    wanted = np.full(table.shape, smoothing / table.shape[1])
    wanted[rows, chosen] += 1 - smoothing
    slope = wanted - np.exp(table)
    slope *= weights[:, None] / temperature
    if cap is not None:
        slope *= 1 - (capped / cap) ** 2
    d_matrix = (slope * own.magnitude).T @ x
    found = {
        "weight": d_matrix,
        "bias": slope.sum(axis=0),
        "m": (slope * (x @ own.matrix.T)).sum(axis=0) / own.norms,
    }
    if own.lora_a is not None and own.lora_b is not None:  # the matrix is W + scale (a b)^T
        found["lora_a"] = SCALE * d_matrix.T @ own.lora_b.T
        found["lora_b"] = SCALE * own.lora_a.T @ d_matrix.T
    return Truth((wanted * table).sum(axis=-1), (slope * own.magnitude) @ own.matrix, found)


@dataclass(frozen=True)
class _Wide:
    """A head in float64: logits are ``magnitude * (matrix x) + bias``."""

    matrix: np.ndarray
    bias: np.ndarray | float = 0.0
    magnitude: np.ndarray | float = 1.0
    norms: np.ndarray | float = 1.0
    lora_a: np.ndarray | None = None
    lora_b: np.ndarray | None = None


def _of_head(model: HeadModel) -> _Wide:
    head: Any = model.head
    if isinstance(head, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return _Wide(wide(mx.dequantize(head.weight, head.scales, head.biases, head.group_size, head.bits)))
    if not isinstance(head, LoRALinear | DoRALinear):
        return _Wide(wide(head.weight), wide(head.bias) if "bias" in head else 0.0)
    a, b = wide(head.lora_a), wide(head.lora_b)
    matrix = wide(head.linear.weight) + SCALE * (a @ b).T
    bias = wide(head.linear.bias) if "bias" in head.linear else 0.0
    if isinstance(head, LoRALinear):
        return _Wide(matrix, bias, lora_a=a, lora_b=b)
    norms = np.linalg.norm(matrix, axis=1)  # a constant of the gradient, as DoRA has it
    return _Wide(matrix, bias, wide(head.m) / norms, norms, a, b)
