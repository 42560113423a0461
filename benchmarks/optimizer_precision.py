"""How near does training in bfloat16 come to training in float32? ``python -m benchmarks.optimizer_precision [--json]``

1,000 steps of AdamW at a learning rate of 1e-6 on bfloat16 weights of size 0.02, with every way to write an update
(`optimizer.rounding`) and to keep the moments (`optimizer.moments`), beside one run of float32 weights and moments,
the master, that begins at the same numbers and sees the same gradients. Gradients are the same at each step, or
have noise as large as themselves, or ten times as large. What is compared is the way from the start to the end:

- projection: of the way on the master's, over the master's length; 1 when all of it arrived
- cosine: between the two ways; 1 when nothing but it arrived
- distance: between the two ends, over the master's length; 0 when they are the same
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal, get_args

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training.optimizer import Optimizer

Rounding = Literal["stochastic", "compensated", "nearest"]
Storage = Literal["float32", "bfloat16", "blocks8"]

SIGNAL_TO_NOISE = {"constant": None, "noisy": 1.0, "very noisy": 0.1}
"""Root mean square of the gradient over that of its noise; None: no noise."""
WEIGHTS = 10_000
SIZE = 0.02
"""Standard deviation of the weights."""
STEPS = 1_000
RATE = 1e-6
SEED = 0


@dataclass(frozen=True)
class Row:
    """How one mode did with one kind of gradient."""

    rounding: Rounding
    moments: Storage
    gradients: str
    projection: float
    cosine: float
    distance: float
    kept_fraction: float
    """Mean of what the optimiser itself reported, over all gradients of this mode."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizer_precision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps, {STEPS} otherwise")
    parser.add_argument("--weights", type=int, default=WEIGHTS, help=f"of each kind, {WEIGHTS} otherwise")
    arguments = parser.parse_args(argv)

    started = time.perf_counter()
    rows = measure(arguments.steps, arguments.weights)
    seconds = time.perf_counter() - started
    if arguments.json:
        settings = {
            "steps": arguments.steps,
            "weights": arguments.weights,
            "size": SIZE,
            "learning_rate": RATE,
        }
        print(json.dumps({**settings, "seconds": seconds, "rows": [asdict(row) for row in rows]}))
    else:
        Console().print(table(rows))
        print(
            f"{arguments.steps} steps at {RATE:g} on {arguments.weights} weights of size {SIZE}: {seconds:.0f} s"
        )
    return 0


def measure(steps: int, weights: int) -> list[Row]:
    """All modes in lockstep, so that each gradient is drawn once."""
    generator = np.random.default_rng(SEED)
    start = {
        name: mx.array(generator.normal(scale=SIZE, size=weights)).astype(mx.bfloat16)
        for name in SIGNAL_TO_NOISE
    }
    signal = {name: mx.array(generator.normal(size=weights), dtype=mx.float32) for name in SIGNAL_TO_NOISE}
    master = Optimizer(OptimizerConfig(), SEED)
    mastered: Weights = {name: array.astype(mx.float32) for name, array in start.items()}
    modes = list(product(get_args(Rounding), get_args(Storage)))
    optimizers = [Optimizer(OptimizerConfig(rounding=r, moments=m), SEED) for r, m in modes]
    trained = [start] * len(modes)
    kept = [0.0] * len(modes)
    for step in range(steps):
        gradients = _gradients(signal, step)
        mastered, _ = master.step(mastered, gradients, RATE)
        for i, optimizer in enumerate(optimizers):
            trained[i], report = optimizer.step(trained[i], gradients, RATE)
            kept[i] += report.kept_fraction / steps
    rows = []
    for (rounding, moments), optimizer, weights_of_mode, share in zip(
        modes, optimizers, trained, kept, strict=True
    ):
        held = {name: optimizer.state().get(f"compensation.{name}") for name in start}
        for name in SIGNAL_TO_NOISE:
            way = _way(start[name], weights_of_mode[name], held[name])
            rows.append(
                Row(rounding, moments, name, *compared(way, _way(start[name], mastered[name])), share)
            )
    return rows


def table(rows: Sequence[Row]) -> Table:
    """A line for each mode, three numbers for each kind of gradient."""
    kinds = [Column(f"{name}\nproj. cos. dist.", justify="right") for name in SIGNAL_TO_NOISE]
    found = Table(Column("rounding"), Column("moments"), *kinds, Column("kept", justify="right"))
    for first in range(0, len(rows), len(kinds)):
        mode = rows[first : first + len(kinds)]
        numbers = [f"{row.projection:.3f} {row.cosine:.3f} {row.distance:.3f}" for row in mode]
        found.add_row(mode[0].rounding, mode[0].moments, *numbers, f"{mode[0].kept_fraction:.3f}")
    return found


def _gradients(signal: Weights, step: int) -> Weights:
    keys = mx.random.split(mx.random.key(SEED * 1_000_003 + step), len(signal))
    gradients: Weights = {}
    for (name, array), key in zip(signal.items(), keys, strict=True):
        ratio = SIGNAL_TO_NOISE[name]
        noise = mx.random.normal(array.shape, key=key) / ratio if ratio is not None else 0.0
        gradients[name] = array + noise
    mx.eval(gradients)
    return gradients


def _way(start: mx.array, end: mx.array, held: mx.array | None = None) -> np.ndarray:
    """float64, what a compensation holds counted."""
    way = np.array(end.astype(mx.float32), np.float64) - np.array(start.astype(mx.float32), np.float64)
    return way if held is None else way + np.array(held.astype(mx.float32), np.float64)


def compared(way: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Projection, cosine, distance."""
    length, product_ = float(np.linalg.norm(truth)), float(way @ truth)
    own = float(np.linalg.norm(way))
    cosine = product_ / (own * length) if own > 0 else 0.0
    return product_ / length**2, cosine, float(np.linalg.norm(way - truth)) / length


if __name__ == "__main__":
    sys.exit(main())
