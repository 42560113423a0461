"""Log-probabilities of tokens from final hidden states, in little memory: the head only where it counts.

Invariant: no array of tokens x vocabulary larger than the budget lives, forward or backward, whatever the model's
vocabulary and the number of tokens.

A head that is one matrix (tied to the embedding or not, quantised or not, with a bias or not), without a filter
of the sampler, is worked on in tiles: a range of tokens times a range of the vocabulary. The log-sum-exp is carried
from tile to tile (as in Milakov and Gimelshein 2018, arXiv:1805.02867), so each logit costs one exponential.

* A head that is trained makes its tiles again in the backward pass, vocabulary outside, tokens inside: a tile of
  its gradient is complete in float32 before it is rounded to the type of the weights. If all of it is one tile,
  the probabilities are kept instead and nothing is computed twice.
* A head that is not trained needs no second pass at all. With p the softmax, the gradient of log p(y) with
  respect to the hidden state is W_y - p W: a vector per token that is added up beside the log-sum-exp.

Everything else (a filter, which has to see whole rows; a head with adapters) goes through the model's own
head, a range of tokens at a time, each computed again in the backward pass.

`mx.depends` puts the tiles in a row, on all that the tile before has made: MLX would otherwise schedule what is
left of each at the end, and keep its logits until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.exponential import exp
from mlx_sumrl.policy.log_sum_exp import LogitRule, RunningTotals, columns
from mlx_sumrl.policy.mlx_internals import HeadMatrix
from mlx_sumrl.rollouts.filters import filtered_logits

ALIVE = 8
"""Arrays as large as a tile that live at once, about."""
TILE = 2_000_000
"""Bytes of a tile, where there is more than one and the budget allows; larger ones are not faster."""
NARROWEST = 2048
"""Vocabulary of a tile at least: with more tokens than that leaves room for, tokens are cut too."""


@dataclass(frozen=True)
class HeadOptions:
    """Which distribution the head speaks of, and how much memory it may take."""

    budget: int
    """Bytes that all arrays of tokens x vocabulary together may take."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    smoothing: float = 0.0
    """Share of each target that is spread over the whole vocabulary; see `LogitRule`. Not with a filter."""


@dataclass(frozen=True)
class Tiles:
    """How N tokens x V vocabulary are cut so that a tile of float32 stays within a budget."""

    tokens: tuple[slice, ...]
    vocabulary: tuple[slice, ...]

    @property
    def single(self) -> bool:
        """Whether there is nothing to cut."""
        return len(self.tokens) == len(self.vocabulary) == 1


def tiles(N: int, V: int, D: int, budget: int, keep: bool) -> Tiles:
    """A single one where it fits and what it made can be kept (``keep``), small ones otherwise; see `Tiles`.

    ``D``, the width of the hidden states, counts as N does: a tile's weights and their gradient are float32 too.
    """
    if keep and budget >= ALIVE * 4 * max(N, D) * V:
        return Tiles((slice(0, N),), (slice(0, V),))
    numbers = max(min(budget // ALIVE, TILE) // 4, 1)
    wide = min(V, max(NARROWEST, numbers // max(N, D)))
    long = max(1, min(N, numbers // wide))
    return Tiles(_ranges(N, long), _ranges(V, wide))


def token_logprobs(
    model: nn.Module,
    hidden_ND: mx.array,
    targets_N: mx.array,
    options: HeadOptions,
    differentiable: bool = True,
) -> mx.array:
    """log p(target) [N] float32 under the sampling distribution, from hidden states after the last norm.

    With ``smoothing``, the mean log p over a smoothed target. Differentiable with respect to the hidden states and to
    the head's trainable weights, unless ``differentiable`` is False, which is faster.
    """
    matrix = _matrix(model, options)
    if matrix is None:
        return _by_tokens(model, hidden_ND, targets_N, options)
    hidden_ND = hidden_ND.astype(mx.float32)
    logits = _rule(model, options)
    trained = differentiable and mlx_internals.head_is_trained(model)
    cut = tiles(targets_N.size, mlx_internals.vocabulary(model), matrix.width, options.budget, keep=trained)
    if not differentiable:
        return _forward(hidden_ND, matrix, targets_N, cut, logits, _later, keep=False).logprobs
    compute = _trained_head if trained else _frozen_head
    return compute(matrix, targets_N, cut, logits)(hidden_ND)


@dataclass(frozen=True)
class HeadGradient:
    """What a cost of log-probabilities asks of the head and of what is below it."""

    value: mx.array
    """The cost."""
    rest: Any
    """What the cost function returned beside it."""
    hidden_ND: mx.array
    """Gradient with respect to the hidden states, in their type."""
    weights: dict[str, mx.array]
    """Gradients of the head's trainable weights by their names in the model."""


def head_gradient(
    model: nn.Module,
    hidden_ND: mx.array,
    targets_N: mx.array,
    options: HeadOptions,
    cost: Callable[[mx.array], tuple[mx.array, Any]],
) -> HeadGradient:
    """Cost of log p(target) [N] and its gradient, tile by tile: less memory than differentiating a graph takes.

    ``cost`` returns the cost of log-probabilities [N], and anything else. Leaves traced arrays in the head.
    """
    matrix = _matrix(model, options)
    priced = mx.value_and_grad(cost)
    if matrix is None:
        weights = mlx_internals.head_weights(model)

        def through(weights: Any, hidden: mx.array) -> Any:
            model.update(weights)
            return cost(_by_tokens(model, hidden, targets_N, options))

        (value, rest), (found, d_hidden) = mx.value_and_grad(through, argnums=(0, 1))(weights, hidden_ND)
        mx.eval(value, rest, found, d_hidden)
        return HeadGradient(value, rest, d_hidden, mlx_internals.named_arrays(found))
    hidden = hidden_ND.astype(mx.float32)
    logits = _rule(model, options)
    trained = mlx_internals.head_is_trained(model)
    cut = tiles(targets_N.size, mlx_internals.vocabulary(model), matrix.width, options.budget, keep=trained)
    gradients: dict[str, mx.array] = {}
    if trained:
        made = _forward(hidden, matrix, targets_N, cut, logits, mx.eval)
        (value, rest), cotangent_N = priced(made.logprobs)
        d_hidden, *of_head = _backward(hidden, matrix, targets_N, cut, logits, made, cotangent_N, mx.eval)
        names = mlx_internals.head_names(model)
        gradients = dict(zip(names, of_head, strict=True))
    else:
        logprobs_N, slopes_ND = _slopes(hidden, matrix, targets_N, cut, logits, mx.eval)
        (value, rest), cotangent_N = priced(logprobs_N)
        d_hidden = slopes_ND * cotangent_N[:, None]
    d_hidden = d_hidden.astype(hidden_ND.dtype)
    mx.eval(value, rest, d_hidden, gradients)
    return HeadGradient(value, rest, d_hidden, gradients)


def _matrix(model: nn.Module, options: HeadOptions) -> HeadMatrix | None:
    """The head's matrix, where tiles do; None where rows of logits have to be whole or the head is no matrix."""
    filtered = options.top_p < 1 or 0 < options.top_k < mlx_internals.vocabulary(model)
    if filtered and options.smoothing:
        raise ValueError("a filter makes logits of -inf, and their mean is no target to learn")
    return None if filtered else mlx_internals.head_matrix(model)


def _rule(model: nn.Module, options: HeadOptions) -> LogitRule:
    return LogitRule(1 / options.temperature, mlx_internals.soft_cap(model), options.smoothing)


Compute = Callable[[mx.array], mx.array]
"""From hidden states to log-probabilities."""


def _trained_head(matrix: HeadMatrix, targets_N: mx.array, cut: Tiles, logits: LogitRule) -> Compute:
    """With gradients to hidden states, weight and bias, as part of a graph."""

    def holding(arrays: Sequence[mx.array]) -> HeadMatrix:
        return replace(matrix, weight=arrays[0], bias=arrays[1] if len(arrays) > 1 else None)

    @mx.custom_function
    def compute(hidden: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
        made = _forward(hidden, holding(weights), targets_N, cut, logits, _later)
        return (made.logprobs, made.log_totals, *made.kept)

    @compute.vjp
    def compute_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        hidden, *weights = primals
        made = _Made(outputs[0], outputs[1], list(outputs[2:]))
        return _backward(hidden, holding(weights), targets_N, cut, logits, made, cotangents[0], _later)

    weights = [matrix.weight, *([] if matrix.bias is None else [matrix.bias])]
    return lambda hidden: compute(hidden, *weights)[0]  # type: ignore[index]


def _frozen_head(matrix: HeadMatrix, targets_N: mx.array, cut: Tiles, logits: LogitRule) -> Compute:
    """With gradients to hidden states alone, which are made on the way."""

    @mx.custom_function
    def compute(hidden: mx.array) -> tuple[mx.array, mx.array]:
        return _slopes(hidden, matrix, targets_N, cut, logits, _later)

    @compute.vjp
    def compute_vjp(
        primals: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> mx.array:
        return outputs[1] * cotangents[0][:, None]

    return lambda hidden: compute(hidden)[0]  # type: ignore[index]


Settle = Callable[..., Any]
"""What is done with the arrays of a tile before the next: nothing in a graph, `mx.eval` outside of one."""


def _later(*arrays: Any) -> None:
    """Leave them to whoever evaluates the graph; `mx.depends` keeps the order."""


@dataclass(frozen=True)
class _Made:
    """What the forward pass leaves; [N] each."""

    logprobs: mx.array
    """Smoothed, where they are asked for so."""
    log_totals: mx.array
    kept: list[mx.array]
    """Of a single tile: its probabilities, and its logits where they are capped."""


def _forward(
    hidden: mx.array,
    matrix: HeadMatrix,
    targets_N: mx.array,
    cut: Tiles,
    logits: LogitRule,
    settle: Settle,
    keep: bool = True,
) -> _Made:
    """Log-probabilities and what a backward pass needs."""
    parts: list[RunningTotals] = []
    kept: list[mx.array] = []
    for tokens in cut.tokens:
        targets = targets_N[tokens]
        (h,) = mx.depends([hidden[tokens]], [part.logprobs for part in parts[-1:]])
        running = RunningTotals.start(targets.size, logits)
        for rows in cut.vocabulary:
            (h,) = mx.depends([h], running.added)
            z = logits.of(h, *_tile(matrix, rows))
            running, e = running.add(z, targets, rows)
            if cut.single and keep:
                settle(running.top, running.chosen, e)
                kept = [e / running.total[:, None], *([] if logits.cap is None else [z])]
            del z, e  # nothing but the graph holds them when it is computed
            settle(running.top, running.added, kept)
        parts.append(running)
    logprobs = mx.concatenate([logits.asked(part, matrix.weight.shape[0]) for part in parts])
    return _Made(logprobs, mx.concatenate([part.log_total for part in parts]), kept)


def _backward(
    hidden: mx.array,
    matrix: HeadMatrix,
    targets_N: mx.array,
    cut: Tiles,
    logits: LogitRule,
    made: _Made,
    cotangent_N: mx.array,
    settle: Settle,
) -> tuple[mx.array, ...]:
    """Gradients of hidden states, weight and, where there is one, bias."""
    d_hidden = [mx.zeros(hidden[tokens].shape) for tokens in cut.tokens]
    d_weight = mx.zeros(matrix.weight.shape, dtype=matrix.weight.dtype)
    settle(d_weight)
    d_bias = []
    for rows in cut.vocabulary:
        w, b = _tile(matrix, rows)
        of_weight, of_bias = mx.zeros(w.shape), mx.zeros(w.shape[:1])
        for place, tokens in enumerate(cut.tokens):
            (h,) = mx.depends([hidden[tokens]], [d_hidden[place], of_weight, of_bias, d_weight])
            if cut.single:
                p, z = made.kept[0], made.kept[-1]
                made.kept.clear()  # so that they go as soon as they are used
            else:
                z = logits.of(h, w, b)
                p = exp(z - made.log_totals[tokens, None])
            if logits.smoothing:
                p = p - logits.smoothing / matrix.weight.shape[0]
            dz = p * -cotangent_N[tokens, None]
            column, inside = columns(targets_N[tokens], rows)
            own = cotangent_N[tokens] * (1 - logits.smoothing) if logits.smoothing else cotangent_N[tokens]
            dz = dz.at[mx.arange(column.size), column].add(mx.where(inside, own, 0.0))
            dz = logits.back(dz, z)
            del p, z
            d_hidden[place] = d_hidden[place] + dz @ w
            of_weight, of_bias = of_weight + dz.T @ h, of_bias + dz.sum(axis=0)
            del dz
            settle(d_hidden[place], of_weight, of_bias)
        d_weight[rows] = of_weight.astype(d_weight.dtype)
        settle(d_weight)
        d_bias.append(of_bias)
    gradients = [mx.concatenate(d_hidden), d_weight]
    if matrix.bias is not None:
        gradients.append(mx.concatenate(d_bias).astype(matrix.bias.dtype))
    return tuple(gradients)


def _slopes(
    hidden: mx.array,
    matrix: HeadMatrix,
    targets_N: mx.array,
    cut: Tiles,
    logits: LogitRule,
    settle: Settle,
) -> tuple[mx.array, mx.array]:
    """Log-probabilities [N], and the gradient of each with respect to its hidden state [N, D]."""
    logprobs: list[mx.array] = []
    slopes: list[mx.array] = []
    for tokens in cut.tokens:
        targets = targets_N[tokens]
        (h,) = mx.depends([hidden[tokens]], slopes[-1:])
        running, mean, spread = RunningTotals.start(targets.size, logits), mx.zeros(h.shape), mx.zeros((1, 1))
        for rows in cut.vocabulary:
            (h,) = mx.depends([h], [*running.added, mean, spread])
            w, b = _tile(matrix, rows)
            z, top = logits.of(h, w, b), running.top
            running, e = running.add(z, targets, rows)
            mean = mean * mx.exp(top - running.top)[:, None] + logits.back(e, z) @ w
            if logits.smoothing:
                spread = spread + logits.spread(z, w, matrix.weight.shape[0])
            del z, e
            settle(running.top, running.added, mean, spread)
        logprobs.append(logits.asked(running, matrix.weight.shape[0]))
        own = logits.back(mx.full((targets.size, 1), 1 - logits.smoothing), running.chosen[:, None])
        slope = matrix.rows(targets) * own - mean / running.total[:, None]
        slopes.append(slope + spread if logits.smoothing else slope)
        settle(slopes[-1])
    return mx.concatenate(logprobs), mx.concatenate(slopes)


def _by_tokens(model: nn.Module, hidden_ND: mx.array, targets_N: mx.array, options: HeadOptions) -> mx.array:
    """The same through the model's own head, as many tokens at a time as fit the budget."""
    rows = max(options.budget // (ALIVE * 4 * mlx_internals.vocabulary(model)), 1)
    # mx.checkpoint takes gradients to all of its arguments and to nothing else: the head's weights have to be
    # among them, and the targets must not.
    weights = mlx_internals.head_weights(model)
    # The same random numbers each time, for the dropout of an adapter on the head.
    seed = int(mx.random.randint(0, 1 << 30).item())  # type: ignore[arg-type]
    parts: list[mx.array] = []
    for tokens in _ranges(targets_N.size, rows):
        targets = targets_N[tokens]

        def logprobs(
            weights: Any, hidden: mx.array, targets: mx.array = targets, seed: int = seed + tokens.start
        ) -> mx.array:
            mx.random.seed(seed)
            model.update(weights)
            z = filtered_logits(
                mlx_internals.head(model, hidden),
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                keep=targets,
            )
            chosen = mx.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
            if options.smoothing:  # by linearity: the target is a mixture
                chosen = (1 - options.smoothing) * chosen + options.smoothing * z.mean(axis=-1)
            return chosen - mx.logsumexp(z, axis=-1)

        (hidden,) = mx.depends([hidden_ND[tokens]], parts[-1:])
        parts.append(mx.checkpoint(logprobs)(weights, hidden))
    return mx.concatenate(parts)


def _tile(matrix: HeadMatrix, rows: slice) -> tuple[mx.array, mx.array | None]:
    """Weight and bias of a range of the vocabulary, float32."""
    return matrix.rows(rows), None if matrix.bias is None else matrix.bias[rows].astype(mx.float32)


def _ranges(size: int, step: int) -> tuple[slice, ...]:
    return tuple(slice(start, min(start + step, size)) for start in range(0, size, step))
