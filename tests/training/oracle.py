"""The loss family again, in float64, token by token, from the papers' formulas: what the tests compare with.

Nothing here is shared with the library, not even the padded layout: completions are lists of any length.
What a formula freezes (stop-gradient) is computed from a second set of log-probabilities, ``frozen``, so that
central differences in the first set alone give the true gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ragged = list[list[float]]
"""One number per completion and token."""


@dataclass(frozen=True)
class LossSpec:
    """Which member of the family."""

    kind: str  # grpo | bnpo | dr_grpo | dapo | gspo
    correction: str = "clip"  # clip | truncate | mask | none
    level: str | None = None  # token | sequence | None, the kind's own
    epsilon_low: float = 0.2
    epsilon_high: float | None = None  # None: epsilon_low, 0.28 for dapo
    cap: float = 2.0
    beta: float = 0.0
    kl: str = "k3_weighted"  # k2 | k3 | k3_weighted

    @property
    def own_level(self) -> str:
        return self.level or {"gspo": "sequence"}.get(self.kind, "token")

    @property
    def bounds(self) -> tuple[float, float]:
        high = self.epsilon_high
        if high is None:
            high = 0.28 if self.kind == "dapo" else self.epsilon_low
        return 1 - self.epsilon_low, 1 + high


def loss(
    logprobs: Ragged,
    frozen: Ragged,
    sampler: Ragged,
    reference: Ragged,
    advantages: Sequence[float],
    spec: LossSpec,
    max_tokens: int,
) -> float:
    """The loss of a whole batch; ``frozen`` are the log-probabilities that stop-gradients see."""
    per_completion = []
    for i, advantage in enumerate(advantages):
        now, held = _ratios(logprobs[i], sampler[i], spec), _ratios(frozen[i], sampler[i], spec)
        token_losses = []
        for t, logprob in enumerate(logprobs[i]):
            value = _policy_term(now[t], held[t], advantage, logprob, spec)
            if spec.beta > 0:
                own_ratio = math.exp(logprob - sampler[i][t])
                value += spec.beta * _kl_term(logprob, reference[i][t], own_ratio, spec)
            token_losses.append(value)
        per_completion.append(token_losses)
    if spec.kind in ("grpo", "gspo"):  # mean over completions of the mean over tokens
        return sum(sum(tokens) / len(tokens) for tokens in per_completion) / len(per_completion)
    everything = sum(sum(tokens) for tokens in per_completion)
    if spec.kind == "dr_grpo":  # divided by a constant: the longest a completion may be
        return everything / (len(per_completion) * max_tokens)
    return everything / sum(len(tokens) for tokens in per_completion)  # bnpo, dapo: mean over all tokens


def _ratios(logprobs: list[float], sampler: list[float], spec: LossSpec) -> list[float]:
    """p / q of each token, or, the same for all of them, the geometric mean over the completion."""
    logs = [p - q for p, q in zip(logprobs, sampler, strict=True)]
    if spec.own_level == "sequence":
        logs = [sum(logs) / len(logs)] * len(logs)
    return [math.exp(x) for x in logs]


def _policy_term(ratio: float, held: float, advantage: float, logprob: float, spec: LossSpec) -> float:
    if spec.correction == "none":
        return -ratio * advantage
    if spec.correction == "clip":
        low, high = spec.bounds
        return -min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if spec.correction == "truncate":
        return -min(held, spec.cap) * advantage * logprob
    weight = held if 1 / spec.cap <= held <= spec.cap else 0.0
    return -weight * advantage * logprob


def _kl_term(logprob: float, reference: float, ratio: float, spec: LossSpec) -> float:
    d = reference - logprob
    if spec.kl == "k2":
        return d * d / 2
    k3 = math.exp(d) - d - 1
    return ratio * k3 if spec.kl == "k3_weighted" else k3


def log_softmax(theta: Floats) -> Floats:
    """Log-probabilities [..., V] of logits [..., V]."""
    shifted = theta - theta.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def finite_differences(f: Callable[[Floats], float], x: Floats, step: float = 1e-5) -> Floats:
    """Central differences of f at x, each entry in turn: exact to about step², 1e-10."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient


@dataclass(frozen=True)
class TabularBatch:
    """Completions of a policy that is a table of logits; ``contexts`` says which row each token is drawn from."""

    contexts: list[list[int]]
    tokens: list[list[int]]
    sampler: Ragged
    reference: Ragged
    advantages: list[float]
    max_tokens: int

    def logprobs(self, theta: Floats) -> Ragged:
        table = log_softmax(theta)
        return [
            [float(table[c, v]) for c, v in zip(contexts, tokens, strict=True)]
            for contexts, tokens in zip(self.contexts, self.tokens, strict=True)
        ]

    def loss(self, theta: Floats, frozen_theta: Floats, spec: LossSpec) -> float:
        now, held = self.logprobs(theta), self.logprobs(frozen_theta)
        return loss(now, held, self.sampler, self.reference, self.advantages, spec, self.max_tokens)

    def gradient(self, theta: Floats, spec: LossSpec) -> Floats:
        return finite_differences(lambda moved: self.loss(moved, theta, spec), theta)

    def ratios(self, theta: Floats) -> Ragged:
        return [
            [math.exp(p - q) for p, q in zip(now, sampler, strict=True)]
            for now, sampler in zip(self.logprobs(theta), self.sampler, strict=True)
        ]


def padded(rows: Sequence[Sequence[float]], fill: float) -> Floats:
    """Rows of different lengths as one array, padded on the right."""
    out = np.full((len(rows), max(map(len, rows))), fill, np.float64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def relative_error(found: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Distance over the length of the truth."""
    truth = np.asarray(truth, np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - truth) / np.linalg.norm(truth))
