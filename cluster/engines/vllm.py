"""vLLM, and vllm-metal, which is vLLM's server over MLX on a Mac.

Invariant: one request to vLLM for each prompt, with a seed of its own made from the request's seed and the prompt's
place, so an answer does not depend on which other prompts came along; no other token stops than the request's; and
each load has its own cache salt, so keys and values of one set of weights are never used with another.

What is relied on was seen with vLLM 0.32.0: FACTS.md, and the notes at each place.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx

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
from cluster.refusal import Refusal, not_valid
from cluster.weight_store import Weights
from cluster.wire import CompletionReply, Features, GenerateRequest

BASE_NAME, ADAPTER_NAME = "policy", "policy-adapter"
INSIDE = Path(__file__).with_name("inside_vllm")
EXTENSION = "sumrl_vllm_worker.PolicyWeights"
MOST_REQUESTS = 256
"""Prompts handed to vLLM at once; it batches them as it sees fit, and each is a connection."""
FLOOR = -9999.0
"""What vLLM writes for minus infinity."""


class Vllm(Engine):
    """``vllm serve`` on loopback."""

    def __init__(
        self, options: EngineOptions, executable: str, kind: Literal["vllm", "vllm-metal"] = "vllm"
    ) -> None:
        super().__init__(options)
        self.kind = kind
        self._executable = executable

    def command(self, port: int, weights: Weights) -> list[str]:
        options = self.options
        start = self.starts_with(weights)
        return [
            self._executable,
            "serve",
            str(start.folder or options.model),
            *("--host", LOOPBACK, "--port", str(port)),
            *("--served-model-name", BASE_NAME),
            *("--enable-lora", "--max-lora-rank", str(options.max_rank)),
            # Log-probabilities after temperature and filters: those of the distribution that was drawn from.
            *("--logprobs-mode", "processed_logprobs"),
            # Otherwise the model's own generation_config.json fills in a temperature and filters.
            *("--generation-config", "vllm"),
            # On a CPU, 0.32.0 dies of a request with a seed whose prompt is read in parts ("CPU Generator does not use
            # offset"): it takes back what it drew at the end of a part. So a prompt waits until it fits whole.
            *(("--no-enable-chunked-prefill",) if self.kind == "vllm" else ()),
            *(("--worker-extension-cls", EXTENSION) if self.kind == "vllm" else ()),
            *(("--dtype", options.dtype) if options.dtype else ()),
            *(("--max-model-len", str(options.max_model_len)) if options.max_model_len else ()),
            *options.extra,
        ]

    def environment(self) -> Mapping[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(INSIDE), os.environ.get("PYTHONPATH")])),
            "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc and /reset_prefix_cache; loopback only, see base
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing is to be fetched
        }

    def starts_with(self, weights: Weights) -> Weights:
        return (
            weights if self.kind == "vllm-metal" and weights.kind == "full" else super().starts_with(weights)
        )

    def loads_in_place(self, now: Weights, then: Weights) -> bool:
        """vllm-metal has no ``reload_weights``: other whole weights mean another process."""
        if self.kind == "vllm":
            return True
        return now.kind != "full" and then.kind != "full"

    def client(self, port: int, weights: Weights) -> EngineClient:
        return VllmClient(port, weights, self)


class VllmClient(EngineClient):
    """One ``vllm serve`` process."""

    def __init__(self, port: int, weights: Weights, engine: Vllm) -> None:
        super().__init__(port, weights)
        self._engine = engine
        self._base = str(weights.folder or engine.options.model)
        """The folder whose whole weights it has."""
        self._adapter: str | None = None
        """Its name for the adapter that was loaded last."""
        self._salt = uuid.uuid4().hex
        self._at_once = asyncio.Semaphore(MOST_REQUESTS)

    async def probe(self) -> Probe:
        routes = (await self._get("/openapi.json") or {}).get("paths", {})
        models = await self._get("/v1/models") or {}
        vllm = (await self._get("/version") or {}).get("version", "unknown")
        try:
            max_tokens = int(models["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise EngineError("vLLM does not say its max_model_len in /v1/models") from None
        in_place = self._engine.kind == "vllm" and "/collective_rpc" in routes
        return Probe(
            features=Features(
                adapters="/v1/load_lora_adapter" in routes,
                full_weights="in_place" if in_place else "restart",
                score=await self._scores(),
                filters=await self._filters(),
                batch=False,
            ),
            versions={"python": sys.version.split()[0], "vllm": str(vllm)},
            max_tokens=max_tokens,
        )

    async def generate(self, request: GenerateRequest) -> list[tuple[CompletionReply, ...]]:
        if request.draw.min_tokens and self._engine.kind == "vllm-metal":
            raise not_valid("vllm-metal knows no min_tokens; leave it 0, or use --engine vllm or mlx")
        groups = [asyncio.create_task(self._group(request, place)) for place in range(len(request.prompts))]
        try:
            return await asyncio.gather(*groups)
        finally:  # one that failed, or a request that was aborted, takes the others with it: vLLM drops them
            for group in groups:
                group.cancel()
            await asyncio.gather(*groups, return_exceptions=True)

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        content = {"prompt": list(token_ids), "max_tokens": 1, "prompt_logprobs": 0}
        choices = await self._choices(content, expected=1)
        listed = choices[0].get("prompt_logprobs") or []
        try:
            found = [
                entry[str(token)]["logprob"] for token, entry in zip(token_ids[1:], listed[1:], strict=True)
            ]
        except (KeyError, TypeError, ValueError):
            raise EngineError("vLLM's prompt_logprobs do not fit the prompt") from None
        return checked_scores(found, token_ids)

    async def load(self, weights: Weights) -> None:
        """Whole weights in place; LoRA under a new name each time, the old one's place in memory being the only one.

        vLLM 0.32.0 keeps ``load_inplace`` with the adapter and reads its folder again for every batch (seen: the
        engine ends when the folder goes). Only vllm-metal, which has no other way, is asked for that.
        """
        base = str((weights.folder if weights.kind == "full" else None) or self._engine.options.model)
        if base != self._base:
            self._base = ""
            reload = {"method": "load_policy", "kwargs": {"path": base}}  # see inside_vllm
            await self._post("/collective_rpc", reload, refusal=LoadError)
            self._base = base
        if weights.kind == "adapter":
            in_place = self._engine.kind == "vllm-metal"
            name = ADAPTER_NAME if in_place else f"{ADAPTER_NAME}-{uuid.uuid4().hex[:12]}"
            adapter = {"lora_name": name, "lora_path": str(weights.folder), "load_inplace": in_place}
            await self._post("/v1/load_lora_adapter", adapter, refusal=LoadError)
            old, self._adapter = self._adapter, name
            if old not in (None, name):
                await self._post("/v1/unload_lora_adapter", {"lora_name": old}, refusal=LoadError)
        self._salt = uuid.uuid4().hex
        self.weights = weights
        # The salt makes old entries unreachable; this frees their room. An engine without the route lets them age.
        try:
            await self._http.post("/reset_prefix_cache")
        except httpx.HTTPError as error:
            raise EngineError(f"vLLM broke off /reset_prefix_cache ({type(error).__name__})") from None

    async def _group(self, request: GenerateRequest, place: int) -> tuple[CompletionReply, ...]:
        draw = request.draw
        # All answers of a greedy prompt are one answer; vLLM refuses n > 1 at temperature 0.
        n = request.group_size if draw.temperature > 0 else 1
        content = {
            "prompt": list(request.prompts[place]),
            "n": n,
            "max_tokens": draw.max_tokens,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "top_k": draw.top_k,
            "logprobs": 0,
            "return_token_ids": True,
            "seed": seed_of(request.seed, place),
            "stop_token_ids": list(request.stop_ids),
            "ignore_eos": True,  # the model's own end counts only where the request names it
            **({"min_tokens": draw.min_tokens} if draw.min_tokens else {}),
        }
        async with self._at_once:
            choices = await self._choices(content, expected=n)
        replies = []
        for choice in choices:
            logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
            if FLOOR in logprobs:
                raise EngineError("vLLM sampled a token of probability 0")
            replies.append(
                checked_completion(
                    choice.get("token_ids") or [], logprobs, str(choice.get("finish_reason")), request
                )
            )
        return tuple(replies * (request.group_size // n))

    async def _choices(self, content: dict[str, Any], expected: int) -> list[dict[str, Any]]:
        name = self._adapter if self.weights.kind == "adapter" else BASE_NAME
        answer = await self._post("/v1/completions", {"model": name, "cache_salt": self._salt, **content})
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if (
            not isinstance(choices, list)
            or not all(isinstance(choice, dict) for choice in choices)
            or sorted(choice.get("index", -1) for choice in choices) != list(range(expected))
        ):
            raise EngineError(f"vLLM did not answer with the {expected} choices it was asked for")
        return sorted(choices, key=lambda choice: int(choice["index"]))

    async def _scores(self) -> bool:
        """Whether it gives the log-probabilities of a prompt."""
        try:
            await self.score([0, 1, 0])
        except (EngineError, Refusal):
            return False
        return True

    async def _filters(self) -> bool:
        """Whether its log-probabilities are those after the filters: the only token left then has probability 1."""
        content = {"prompt": [0, 1], "max_tokens": 1, "top_k": 1, "logprobs": 0, "temperature": 1.0}
        choices = await self._choices(content, expected=1)
        logprobs = (choices[0].get("logprobs") or {}).get("token_logprobs") or [None]
        return logprobs[0] is not None and abs(logprobs[0]) < 1e-6


def seed_of(seed: int, place: int) -> int:
    """The seed of the prompt at ``place`` of a request, below 2^62: vLLM adds a completion's place to it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:8], "little") >> 2
