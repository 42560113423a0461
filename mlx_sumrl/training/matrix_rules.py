"""The update rules that look at whole matrices: Adafactor and Muon, as mlx.optimizers computes them.

theirs.apply_single returns the parameter minus its update in the parameter's type; given zeros in float32 it
returns the update itself, which is then written like any other.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import mlx.core as mx
import mlx.optimizers

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training import moments
from mlx_sumrl.training.moments import Moment, Part, kept_array
from mlx_sumrl.training.rules import AdamW


class Adafactor:
    """Shazeer and Stern 2018 (arXiv:1804.04235): a second moment per row and per column, no first.

    The learning rate is the one given, neither relative to the step nor to the weight's size. A matrix larger
    than a slice is taken as a stack of bands of rows, each with columns and a clip of its own, so that no
    float32 copy of an embedding is needed. What is kept is float32: it is small.
    """

    def __init__(self, options: OptimizerConfig) -> None:
        self.theirs: Any = mlx.optimizers.Adafactor(
            learning_rate=0.0, relative_step=False, scale_parameter=False
        )
        self.layout = dict.fromkeys(("row", "column", "square"), mx.float32)

    def slices(self, name: str, shape: tuple[int, ...]) -> list[slice]:
        """Bands of whole rows; a vector is one slice."""
        size = prod(shape)
        if len(shape) < 2:
            return [slice(0, size)]
        columns = size // shape[0]
        step = max(1, moments.SLICE // columns) * columns
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]

    def wanted(self, part: Part, gradient: mx.array, state: Weights, key: mx.array) -> mx.array:
        """-rate times the gradient over the root of its factored second moment, clipped to a mean square of 1."""
        self.theirs.state["step"] = mx.array(part.count, dtype=mx.uint64)
        self.theirs.state["learning_rate"] = mx.array(part.rate, dtype=mx.float32)
        if len(part.shape) < 2:
            square = kept_array(state, "square", part, part.size)
            held = {"exp_avg_sq": square[:]}
            wanted: mx.array = self.theirs.apply_single(gradient, mx.zeros_like(gradient), held)
            square[:] = held["exp_avg_sq"]
            return wanted
        columns = part.size // part.shape[0]
        bands = len(self.slices(part.name, part.shape))
        row = kept_array(state, "row", part, part.shape[0])
        column = kept_array(state, "column", part, bands * columns)
        rows = slice(part.flat.start // columns, part.flat.stop // columns)
        band = slice(part.index * columns, (part.index + 1) * columns)
        held = {"exp_avg_sq_row": row[rows], "exp_avg_sq_col": column[band]}
        matrix = gradient.reshape(-1, columns)
        wanted = self.theirs.apply_single(matrix, mx.zeros_like(matrix), held)
        row[rows], column[band] = held["exp_avg_sq_row"], held["exp_avg_sq_col"]
        return wanted.reshape(-1)


class Muon:
    """Jordan et al. 2024: the momentum of a hidden matrix made orthogonal; AdamW for all other weights.

    Its update is scaled to the root mean square 0.2 of a usual AdamW step (Liu et al. 2025, arXiv:2502.16982),
    so that both share one learning rate. The momentum is the first of ``betas``.
    """

    def __init__(self, options: OptimizerConfig) -> None:
        self.theirs: Any = mlx.optimizers.Muon(learning_rate=0.0, momentum=options.betas[0], weight_decay=0.0)
        self.others = AdamW(options)
        self.momentum = Moment("momentum", options.moments, signed=True)
        self.layout = self.others.layout | self.momentum.layout

    def slices(self, name: str, shape: tuple[int, ...]) -> list[slice]:
        """A hidden matrix whole: it cannot be made orthogonal in pieces."""
        return [slice(0, prod(shape))] if _hidden(name, shape) else self.others.slices(name, shape)

    def wanted(self, part: Part, gradient: mx.array, state: Weights, key: mx.array) -> mx.array:
        """-rate x 0.2 x root(larger side) times the orthogonal matrix nearest to the momentum."""
        if not _hidden(part.name, part.shape):
            return self.others.wanted(part, gradient, state, key)
        # Theirs multiplies by root(rows / columns) for a tall matrix, by 1 for a wide one.
        rate = part.rate * 0.2 * sqrt(part.shape[1])
        self.theirs.state["learning_rate"] = mx.array(rate, dtype=mx.float32)
        matrix = gradient.reshape(part.shape)
        held = {"v": self.momentum.read(state, part).reshape(part.shape)}
        wanted: mx.array = self.theirs.apply_single(matrix, mx.zeros_like(matrix), held)
        self.momentum.write(state, part, held["v"].reshape(-1), key)
        return wanted.reshape(-1)


def _hidden(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a matrix between hidden states: neither embedding nor head, no vector."""
    return len(shape) == 2 and "embed" not in name and "lm_head" not in name
