"""The update rules that work number by number: AdamW and Lion.

A rule says how a weight is cut into slices, and what a slice should move by; it keeps its state in the dictionary
that it is given. Weight decay and how the change is written are not its business.
"""

from __future__ import annotations

from math import prod
from typing import Protocol

import mlx.core as mx

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training.moments import Moment, Part, flat_slices


class Rule(Protocol):
    """What an optimiser wants a weight to move by."""

    layout: dict[str, mx.Dtype]
    """First words of the names in its state, and the type of the arrays under them."""

    def slices(self, name: str, shape: tuple[int, ...]) -> list[slice]:
        """How the flattened weight is cut."""
        ...

    def wanted(self, part: Part, gradient: mx.array, state: Weights, key: mx.array) -> mx.array:
        """The change of a slice, flat, from its gradient, both float32; moves ``state`` on."""
        ...


class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, with bias correction."""

    def __init__(self, options: OptimizerConfig) -> None:
        self.betas, self.eps = options.betas, options.eps
        self.first = Moment("first", options.moments, signed=True)
        self.second = Moment("second", options.moments, signed=False)
        self.layout = self.first.layout | self.second.layout

    def slices(self, name: str, shape: tuple[int, ...]) -> list[slice]:
        """Of about the same size, whatever the weight is."""
        return flat_slices(prod(shape))

    def wanted(self, part: Part, gradient: mx.array, state: Weights, key: mx.array) -> mx.array:
        """-rate times the corrected first moment over the root of the corrected second."""
        beta1, beta2 = self.betas
        first = beta1 * self.first.read(state, part) + (1 - beta1) * gradient
        second = beta2 * self.second.read(state, part) + (1 - beta2) * mx.square(gradient)
        first_key, second_key = mx.random.split(key)
        self.first.write(state, part, first, first_key)
        self.second.write(state, part, second, second_key)
        corrected = mx.sqrt(second / (1 - beta2**part.count)) + self.eps
        return -part.rate * (first / (1 - beta1**part.count)) / corrected


class Lion:
    """Chen et al. 2023 (arXiv:2302.06675), program 1: the sign of an average, so that every number moves by a rate."""

    def __init__(self, options: OptimizerConfig) -> None:
        self.betas = options.betas
        self.first = Moment("first", options.moments, signed=True)
        self.layout = self.first.layout

    def slices(self, name: str, shape: tuple[int, ...]) -> list[slice]:
        """Of about the same size, whatever the weight is."""
        return flat_slices(prod(shape))

    def wanted(self, part: Part, gradient: mx.array, state: Weights, key: mx.array) -> mx.array:
        """-rate times the sign of beta1 m + (1 - beta1) g; m is then averaged with beta2."""
        beta1, beta2 = self.betas
        first = self.first.read(state, part)
        wanted = -part.rate * mx.sign(beta1 * first + (1 - beta1) * gradient)
        first = beta2 * first + (1 - beta2) * gradient
        mx.eval(wanted, first)  # nothing holds the old moment when the new one is put in its place
        self.first.write(state, part, first, key)
        return wanted
