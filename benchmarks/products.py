"""Matrix products: how many operations those of a GRPO step are, and how fast this machine does them.

Never imports mlx by itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.workload import Model

GIGA = 1e9


@dataclass(frozen=True)
class Size:
    """The size of a step."""

    group_size: int = 4
    prompt_tokens: int = 128
    new_tokens: int = 64
    vocabulary: int = 4096
    prompts: int = 2

    @property
    def made(self) -> int:
        """Tokens that a step samples and trains on."""
        return self.prompts * self.group_size * self.new_tokens

    def model(self) -> Model:
        """The model of `workload` with this vocabulary."""
        return Model(vocabulary=self.vocabulary)


def rollout_gflop(size: Size, model: Model) -> float:
    """10^9 operations of a rollout's products: each prompt read once for its group, a token at a time after that."""
    blocks, head = _done(size, model)
    return (blocks + head) / GIGA


def training_gflop(size: Size, model: Model) -> float:
    """10^9 operations of the products that training does: forward, and twice that backward.

    The prompt is read once for its group; masked scores are computed like others; the head reads completion
    tokens only, and its forward pass is done again in the backward pass.
    """
    blocks, head = _done(size, model)
    return (3 * blocks + 4 * head) / GIGA


def least_training_gflop(size: Size, model: Model) -> float:
    """10^9 operations of the products that training cannot do without: forward, and twice that backward.

    Each prompt once for its group; of a completion all tokens but the last, which predicts nothing; a token looks
    at itself and those before it and at no others; the head at completion tokens only; nothing is done twice.
    """
    P, G, L, T = size.prompts, size.group_size, size.prompt_tokens, size.new_tokens - 1
    read = P * (L + G * T)
    pairs = P * (L * (L + 1) // 2 + G * (T * L + T * (T + 1) // 2))
    return 3 * (_blocks(model, read, pairs) + _head(size, model)) / GIGA


def product_rates(side: int, seconds: float) -> list[float]:
    """10^9 operations a second of one float32 product of square matrices after the other, for so long."""
    import mlx.core as mx

    a, b = mx.random.normal((side, side)), mx.random.normal((side, side))
    mx.eval(a, b, a @ b)
    rates: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or not rates:
        start = time.perf_counter()
        mx.eval(a @ b)
        rates.append(2 * side**3 / (time.perf_counter() - start) / GIGA)
    return rates


def _done(size: Size, model: Model) -> tuple[float, float]:
    """Operations of one forward pass: in the blocks, and in the head."""
    read = size.prompts * size.prompt_tokens + size.made
    pairs = size.prompts * size.prompt_tokens**2 + size.made * (size.prompt_tokens + size.new_tokens)
    return _blocks(model, read, pairs), _head(size, model)


def _blocks(model: Model, read: int, pairs: int) -> float:
    """With ``read`` tokens of which each looks at some: ``pairs`` of a token and one that it looks at."""
    # Scores and their product with the values: 2 x 2 x hidden for each pair.
    return 2 * model.block_parameters * read + 4 * model.hidden * model.layers * pairs


def _head(size: Size, model: Model) -> float:
    return 2 * model.hidden * size.vocabulary * size.made
