"""What a worker asks of an engine, whichever it is.

Invariant: an `Engine` says how a process is started and holds nothing that changes; an `EngineClient` talks to one
such process and to no other, so an answer that came through it was sampled by the weights that were loaded through
it. What an engine answers is checked before it is passed on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.refusal import not_valid
from cluster.weight_store import BASE, Weights
from cluster.wire import CompletionReply, EngineKind, Features, GenerateRequest

LOOPBACK = "127.0.0.1"
CONNECT_S = 5.0
"""To connect on loopback; answers may take as long as they do, since sampling does."""
PROBE_S = 10.0
"""For an engine to say that it is well."""
NOT_VALID = (400, 422)
ROUNDING = 1e-3
"""A log-probability may lie this much above 0: a float32 sum over a large vocabulary does."""


class EngineError(Exception):
    """The engine is gone, does not answer, or answers nonsense."""


class LoadError(Exception):
    """The engine did not take weights in; the message is its own. What it samples from now is not known."""


@dataclass(frozen=True)
class Probe:
    """What a running engine was found to be able to do."""

    features: Features
    versions: dict[str, str]
    max_tokens: int
    """Longest prompt and completion together."""


@dataclass(frozen=True)
class EngineOptions:
    """What the engines have in common, as the worker's command line says it."""

    model: Path
    dtype: str | None = None
    """None leaves it to the engine."""
    max_model_len: int | None = None
    """Tokens; None leaves it to the engine."""
    max_rank: int = 32
    """Largest LoRA rank."""
    extra: tuple[str, ...] = ()
    """More words for the engine's own command line."""


class Engine(ABC):
    """How one kind of engine is started."""

    kind: EngineKind

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @abstractmethod
    def command(self, port: int, weights: Weights) -> list[str]:
        """Program and arguments that listen on this port of loopback; ``weights`` are to be served in the end."""

    def environment(self) -> Mapping[str, str]:
        """What is added to the worker's own environment."""
        return {}

    def starts_with(self, weights: Weights) -> Weights:
        """What a process started for these weights samples from at once; the rest is loaded."""
        return BASE

    def loads_in_place(self, now: Weights, then: Weights) -> bool:
        """Whether a running engine that has ``now`` can be given ``then``."""
        return True

    @abstractmethod
    def client(self, port: int, weights: Weights) -> EngineClient:
        """To a process started with `command`; ``weights`` are what it `starts_with`."""


class EngineClient(ABC):
    """One running engine."""

    def __init__(self, port: int, weights: Weights) -> None:
        self.weights = weights
        """What it samples from."""
        self._http = httpx.AsyncClient(
            base_url=f"http://{LOOPBACK}:{port}",
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,  # a proxy in the environment is not for loopback
        )

    async def healthy(self) -> bool:
        """Whether it answers that it is well."""
        try:
            response = await self._http.get("/health", timeout=PROBE_S)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    @abstractmethod
    async def probe(self) -> Probe:
        """Find out what it can do; on a process that has just become healthy."""

    @abstractmethod
    async def generate(self, request: GenerateRequest) -> list[tuple[CompletionReply, ...]]:
        """``group_size`` completions for each prompt, in order."""

    @abstractmethod
    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """log p of every token but the first, at temperature 1, unfiltered."""

    @abstractmethod
    async def load(self, weights: Weights) -> None:
        """Sample from these now. Raises `LoadError`."""

    async def close(self) -> None:
        """Cut every connection."""
        await self._http.aclose()

    async def _post(self, path: str, content: Any, *, refusal: type[Exception] = EngineError) -> Any:
        """The JSON that comes back.

        Raises `EngineError` for no answer, ``refusal`` for a status that is not 200, and `Refusal` 422 where it is
        the request that the engine finds fault with, as an id beyond its vocabulary.
        """
        try:
            response = await self._http.post(path, json=content)
        except httpx.HTTPError as error:
            raise EngineError(f"the engine broke off {path} ({type(error).__name__})") from None
        if response.status_code in NOT_VALID and refusal is EngineError:
            raise not_valid(f"the engine refuses the request: {response.text[:300]}")
        if response.status_code != 200:
            raise refusal(f"the engine answered {path} with {response.status_code}: {response.text[:500]}")
        return self._json(path, response)

    async def _get(self, path: str) -> Any:
        try:
            response = await self._http.get(path, timeout=PROBE_S)
        except httpx.HTTPError as error:
            raise EngineError(f"the engine broke off {path} ({type(error).__name__})") from None
        if response.status_code != 200:
            raise EngineError(f"the engine answered {path} with {response.status_code}")
        return self._json(path, response)

    def _json(self, path: str, response: httpx.Response) -> Any:
        if not response.content or "json" not in response.headers.get("content-type", ""):
            return None
        try:
            return response.json()
        except ValueError:
            raise EngineError(f"the engine's answer to {path} is not JSON") from None


def check_room(request: GenerateRequest, max_tokens: int) -> None:
    """Raises `Refusal` 422 where a prompt and its longest completion do not fit."""
    longest = max(len(prompt) for prompt in request.prompts) + request.draw.max_tokens
    if longest > max_tokens:
        raise not_valid(
            f"prompt and completion may have {longest} tokens together and this worker takes {max_tokens}; "
            "shorten one, or start it with a larger --max-model-len"
        )


def checked_completion(
    token_ids: Sequence[int], logprobs: Sequence[float | None], finish_reason: str, request: GenerateRequest
) -> CompletionReply:
    """A completion as it travels. Raises `EngineError` for one that the request cannot have had."""
    draw, stop = request.draw, set(request.stop_ids)
    fault = None
    if not 1 <= len(token_ids) <= draw.max_tokens:
        fault = f"{len(token_ids)} tokens of at most {draw.max_tokens}"
    elif len(logprobs) != len(token_ids):
        fault = f"{len(logprobs)} log-probabilities of {len(token_ids)} tokens"
    elif not all(type(one) is int and one >= 0 for one in token_ids):
        fault = "something that is no token id"
    elif not all(isinstance(one, int | float) and math.isfinite(one) and one <= ROUNDING for one in logprobs):
        fault = "something that is no log-probability"
    elif any(one in stop for one in token_ids[:-1]):
        fault = "a stop token before the end"
    elif finish_reason == "stop" and token_ids[-1] not in stop:
        fault = "an end that is no stop token"
    elif finish_reason == "length" and (token_ids[-1] in stop or len(token_ids) < draw.max_tokens):
        fault = f"a cut after {len(token_ids)} of {draw.max_tokens} tokens"
    if fault is not None or finish_reason not in ("stop", "length"):
        raise EngineError(f"the engine's completion has {fault or f'the end {finish_reason!a:.40}'}")
    return CompletionReply.model_validate(
        {"token_ids": tuple(token_ids), "logprobs": tuple(logprobs), "finish_reason": finish_reason}
    )


def checked_scores(logprobs: Sequence[float | None], token_ids: Sequence[int]) -> tuple[float, ...]:
    """Scores as they travel. Raises `EngineError` where they are not one number for each token but the first."""
    numbers = tuple(one for one in logprobs if one is not None and math.isfinite(one) and one <= ROUNDING)
    if len(numbers) != len(token_ids) - 1 or len(logprobs) != len(numbers):
        raise EngineError(f"the engine scored {len(numbers)} of {len(token_ids) - 1} tokens")
    return numbers
