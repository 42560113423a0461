"""The library's own sampler, a process of its own: ``python -m mlx_sumrl.rollouts.serve``.

Invariant: all prompts of a request go to it as one batch in their order, with the request's own seed, so that its
groups are, bit for bit, those of a local sampler. This file never imports mlx: it speaks JSON to that process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.engines.base import (
    LOOPBACK,
    Engine,
    EngineClient,
    EngineError,
    EngineOptions,
    LoadError,
    Probe,
    checked_completion,
    checked_scores,
)
from cluster.weight_store import Weights
from cluster.wire import CompletionReply, Features, GenerateRequest

SERVE = (sys.executable, "-m", "mlx_sumrl.rollouts.serve")


class Mlx(Engine):
    """mlx_sumrl's sampler on loopback."""

    kind = "mlx"

    def __init__(self, options: EngineOptions, program: Sequence[str] = SERVE) -> None:
        super().__init__(options)
        self._program = tuple(program)

    def command(self, port: int, weights: Weights) -> list[str]:
        options = self.options
        return [
            *self._program,
            *("--model", str(options.model), "--listen", f"{LOOPBACK}:{port}"),
            *(("--dtype", options.dtype) if options.dtype else ()),
            *options.extra,
        ]

    def environment(self) -> Mapping[str, str]:
        """The program is found where this file was, wherever the worker was started."""
        root = str(Path(__file__).parents[2])
        return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}

    def client(self, port: int, weights: Weights) -> EngineClient:
        return MlxClient(port, weights)


class MlxClient(EngineClient):
    """One such process."""

    async def healthy(self) -> bool:
        """It answers before its model is loaded, and after whole weights that broke off, but is then not ready."""
        try:
            health = await self._get("/health")
        except EngineError:
            return False
        return isinstance(health, dict) and health.get("ready") is True

    async def probe(self) -> Probe:
        health = await self._get("/health")
        try:
            versions = {str(name): str(version) for name, version in health["versions"].items()}
            max_tokens = int(health["max_tokens"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise EngineError("the mlx engine does not say its versions and max_tokens in /health") from None
        return Probe(
            features=Features(adapters=True, full_weights="in_place", score=True, filters=True, batch=True),
            versions={"python": sys.version.split()[0], **versions},
            max_tokens=max_tokens,
        )

    async def generate(self, request: GenerateRequest) -> list[tuple[CompletionReply, ...]]:
        answer = await self._post(
            "/generate",
            {
                "prompts": request.prompts,
                "group_size": request.group_size,
                "sampling": request.draw.model_dump(),
                "seed": request.seed,
                "stop_ids": request.stop_ids,
            },
        )
        groups = answer.get("groups") if isinstance(answer, dict) else None
        if not isinstance(groups, list) or [_count(group) for group in groups] != [request.group_size] * len(
            request.prompts
        ):
            raise EngineError("the mlx engine did not answer every prompt as often as it was asked to")
        try:
            return [
                tuple(
                    checked_completion(one["token_ids"], one["logprobs"], one["finish_reason"], request)
                    for one in group
                )
                for group in groups
            ]
        except (KeyError, TypeError):
            raise EngineError("the mlx engine's completions lack ids, log-probabilities or an end") from None

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        answer = await self._post("/score", {"token_ids": list(token_ids)})
        if not isinstance(answer, dict) or not isinstance(answer.get("logprobs"), list):
            raise EngineError("the mlx engine did not score the text")
        return checked_scores(answer["logprobs"], token_ids)

    async def load(self, weights: Weights) -> None:
        content = {"kind": weights.kind, "path": None if weights.folder is None else str(weights.folder)}
        await self._post("/load", content, refusal=LoadError)
        self.weights = weights


def _count(group: Any) -> int:
    return len(group) if isinstance(group, list) else -1
