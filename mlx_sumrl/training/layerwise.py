"""The gradient of a batch block by block: gradient checkpointing with the order in our own hands.

Forward, every micro-batch goes through block after block, and only what each block read is kept. The head then
sees the completion tokens of all micro-batches at once. Backward, each block is computed again and differentiated,
micro-batch by micro-batch, and its gradient is complete before the block below begins.

So beside weights and gradients only one block of one micro-batch is ever alive, and no second copy of the
gradients is needed to add micro-batches up: a block's are added in float32 and then rounded once, to the type of
the weights. (Chen et al. 2016, arXiv:1604.06174, with a segment of one block.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.blocks import State, after_segment, embedded, predicting
from mlx_sumrl.policy.head import HeadOptions, head_gradient
from mlx_sumrl.policy.packing import PackedRows, Segment
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch, add_sums, number

BLOCKS = "model.layers."
EMBEDDING = "model.embed_tokens."
TABLE = EMBEDDING + "weight"


def layerwise_gradient(
    model: nn.Module, micro_batches: Sequence[MicroBatch], options: HeadOptions
) -> BatchGradient:
    """Loss and gradients with respect to the trainable weights; leaves traced arrays in the model."""
    weights = mlx_internals.named_arrays(model.trainable_parameters())
    segments = sum(len(batch.rows.segments) for batch in micro_batches)
    seed = int(mx.random.randint(0, 1 << 30).item())  # type: ignore[arg-type]
    blocks = [_Block(layer, i, seed + i * segments) for i, layer in enumerate(model.layers)]
    embedding = TABLE in weights
    trained = [i for i, block in enumerate(blocks) if block.names]
    lowest = 0 if embedding else min(trained, default=len(blocks))
    """The first block that a gradient has to reach."""

    states = [embedded(model, batch.rows) for batch in micro_batches]
    for block in blocks:
        for place, batch in enumerate(micro_batches):
            states[place] = block.forward(states[place], batch.rows)
        if block.index < lowest:
            block.read.clear()

    loss, sums, gradients, cotangents = _head(model, weights, micro_batches, states, options)
    states.clear()
    for block in reversed(blocks[lowest:]):
        to_state = block.index > lowest or embedding
        found, cotangents = block.backward(micro_batches, cotangents, to_state)
        gradients |= found
    if embedding:
        gradients[TABLE] = _of_table(weights[TABLE], gradients.pop(TABLE, None), micro_batches, cotangents)
        mx.eval(gradients[TABLE])
    return BatchGradient(loss, {name: gradients[name] for name in weights}, sums)


class _Block:
    """A block, and what it read of each micro-batch."""

    def __init__(self, layer: nn.Module, index: int, seed: int) -> None:
        self.layer, self.index = layer, index
        self.weights = mlx_internals.named_arrays(layer.trainable_parameters())
        self.names = list(self.weights)
        self.read: list[State] = []
        self.seed = seed
        """For the random numbers of the first segment, so that dropout is the same the second time."""
        self.seeds: list[int] = []

    def forward(self, state: State, rows: PackedRows) -> State:
        """What the next block reads; keeps what this one did."""
        self.read.append(state)
        self.seeds.append(self.seed)
        self.seed += len(rows.segments)
        left: dict[int, list[mx.array]] = {}
        following: State = []
        for at, segment in enumerate(rows.segments):
            before = [] if segment.after is None else left[segment.after]
            hidden, left[at] = self._run(state[at], segment, before, self.seeds[-1] + at)
            mx.eval(hidden, left[at])
            following.append(hidden)
        return following

    def backward(
        self, micro_batches: Sequence[MicroBatch], cotangents: list[State], to_state: bool
    ) -> tuple[Weights, list[State]]:
        """Gradients of the block's weights, and the cotangents of what it read."""
        total: list[mx.array] = []
        below: list[State] = []
        several = sum(len(batch.rows.segments) for batch in micro_batches) > 1
        for place, batch in enumerate(micro_batches):
            segments, read, seed = batch.rows.segments, self.read[place], self.seeds[place]
            below.append(list(read))
            # What others follow is run once more for what it leaves to them.
            left: dict[int, list[mx.array]] = {}
            for at, segment in enumerate(segments):
                if segment.followed:
                    before = [] if segment.after is None else left[segment.after]
                    left[at] = self._run(read[at], segment, before, seed + at)[1]
                    mx.eval(left[at])
            owed = {at: [mx.zeros_like(array) for array in arrays] for at, arrays in left.items()}
            for at, segment in reversed(list(enumerate(segments))):  # completions before their prompts
                before = [] if segment.after is None else left[segment.after]
                cotangent = [cotangents[place][at], *owed.pop(at, [])]
                own, below[place][at], back = self._of_segment(
                    segment, read[at], before, cotangent, seed + at, to_state
                )
                if several:
                    own = [array.astype(mx.float32) for array in own]
                total = [a + b for a, b in zip(total, own, strict=True)] if total else own
                del own, cotangent
                if segment.after is not None:
                    owed[segment.after] = [a + b for a, b in zip(owed[segment.after], back, strict=True)]
                mx.eval(total, below[place][at], owed)
            self.read[place], cotangents[place] = [], []
        gradients = {
            f"{BLOCKS}{self.index}.{name}": array.astype(weight.dtype)
            for (name, weight), array in zip(self.weights.items(), total, strict=True)
        }
        mx.eval(gradients)
        return gradients, below

    def _of_segment(
        self,
        segment: Segment,
        read: mx.array,
        before: list[mx.array],
        cotangent: list[mx.array],
        seed: int,
        to_state: bool,
    ) -> tuple[list[mx.array], mx.array, list[mx.array]]:
        """Gradients of the weights, of what the segment read, and of what it found left before it."""
        names, inputs = len(self.names), [read] if to_state else []

        def run(*arrays: mx.array) -> list[mx.array]:
            own = arrays[:names]
            self.layer.update(tree_unflatten(list(zip(self.names, own, strict=True))))
            hidden = arrays[names] if to_state else read
            hidden, found = self._run(hidden, segment, list(arrays[names + len(inputs) :]), seed)
            return [hidden, *found]

        _, found = mx.vjp(run, [*self.weights.values(), *inputs, *before], cotangent)
        self.layer.update(tree_unflatten(list(self.weights.items())))
        return found[:names], found[names] if to_state else read, found[names + len(inputs) :]

    def _run(
        self, hidden: mx.array, segment: Segment, before: list[mx.array], seed: int
    ) -> tuple[mx.array, list[mx.array]]:
        mx.random.seed(seed)
        return after_segment(self.layer, hidden, segment, before)


def _head(
    model: nn.Module,
    weights: Weights,
    micro_batches: Sequence[MicroBatch],
    states: list[State],
    options: HeadOptions,
) -> tuple[float, dict[str, float], Weights, list[State]]:
    """Loss, sums, gradients of head and last norm, and cotangents of what the last block made."""
    between = {
        name: array for name, array in weights.items() if not name.startswith((BLOCKS, EMBEDDING, "lm_head."))
    }
    names = list(between)

    def predict(*arrays: mx.array) -> list[mx.array]:
        """Hidden states of each micro-batch from the norm's weights and all states."""
        model.update(tree_unflatten(list(zip(names, arrays, strict=False))))
        rest = list(arrays[len(names) :])
        return [
            predicting(model, [rest.pop(0) for _ in batch.rows.segments], batch.rows)
            for batch in micro_batches
        ]

    def cost(logprobs_N: mx.array) -> Any:
        value, metrics, start = mx.array(0.0), [], 0
        for batch in micro_batches:
            end = start + batch.rows.targets_N.size
            share, found = batch.share(batch.rows.by_row(logprobs_N[start:end]))
            value, start = value + share, end
            metrics.append(found)
        return value, metrics

    primals = [*between.values(), *(array for state in states for array in state)]
    hidden = predict(*primals)
    mx.eval(hidden)
    targets_N = mx.concatenate([batch.rows.targets_N for batch in micro_batches])
    head = head_gradient(model, mx.concatenate(hidden), targets_N, options, cost)
    ends = np.cumsum([array.shape[0] for array in hidden])[:-1].tolist()
    _, found = mx.vjp(predict, primals, list(mx.split(head.hidden_ND, ends)))
    model.update(tree_unflatten(list(weights.items())))
    gradients = head.weights | dict(zip(names, found, strict=False))
    rest = found[len(names) :]
    cotangents = [[rest.pop(0) for _ in batch.rows.segments] for batch in micro_batches]
    mx.eval(gradients, cotangents)
    sums: dict[str, float] = {}
    for metrics in head.rest:
        add_sums(sums, metrics)
    return number(head.value), sums, gradients, cotangents


def _of_table(
    table: mx.array, of_head: mx.array | None, micro_batches: Sequence[MicroBatch], cotangents: list[State]
) -> mx.array:
    """The embedding's gradient: that of a tied head, and the rows that were read added in float32."""
    read = [np.array(segment.tokens_BL).reshape(-1) for b in micro_batches for segment in b.rows.segments]
    ids, place = np.unique(np.concatenate(read), return_inverse=True)
    values = [
        array.reshape(-1, array.shape[-1]).astype(mx.float32) for state in cotangents for array in state
    ]
    rows = mx.zeros((len(ids), table.shape[-1])).at[mx.array(place)].add(mx.concatenate(values))
    gradient = mx.zeros(table.shape, dtype=table.dtype) if of_head is None else of_head
    unique = mx.array(ids)
    rows = (gradient[unique].astype(mx.float32) + rows).astype(table.dtype)
    mx.eval(rows)  # now, so that nothing else reads the array when it is written to
    gradient[unique] = rows
    return gradient
