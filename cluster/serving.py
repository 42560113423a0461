"""What a worker does, without HTTP: sample, score, take weights in, say who it is.

Invariant: every answer carries the version that sampled it. A request is held while weights change, is answered by one
engine process from beginning to end or not at all, and a version is active only once an engine has taken it in.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.anteroom import Anteroom
from cluster.engines.base import EngineClient, EngineError, check_room
from cluster.gate import AbortedError, Gate
from cluster.refusal import engine_down, not_now, not_valid
from cluster.supervision import Supervision
from cluster.weight_store import BASE, Weights, WeightStore
from cluster.wire import (
    API,
    Activated,
    ActivateRequest,
    GenerateReply,
    GenerateRequest,
    GroupReply,
    Health,
    Info,
    Load,
    ModelFingerprint,
    ScoreReply,
    ScoreRequest,
    prompt_fingerprint,
)

Answer = TypeVar("Answer")
SPEED_OVER_S = 30.0
"""Seconds that `Load.tokens_per_second` is a mean of."""


class Serving:
    """One worker's engine, weights and requests."""

    def __init__(self, supervision: Supervision, store: WeightStore, model: ModelFingerprint) -> None:
        self.supervision = supervision
        self.store = store
        self.gate = Gate()
        self.anteroom = Anteroom(lambda: supervision.active.version)
        self.tokens_sampled = 0
        self._model = model
        self._previous: Weights = BASE
        self._switching = asyncio.Lock()
        self._sampled: deque[tuple[float, int]] = deque()

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Runs in a task of its own; see `Gate.passage`. Raises `Refusal`."""
        self.anteroom.has_come(request.request_id)

        async def ask(client: EngineClient) -> GenerateReply:
            assert self.supervision.probe is not None
            check_room(request, self.supervision.probe.max_tokens)
            groups = await client.generate(request)
            return GenerateReply(
                request_id=request.request_id,
                policy_version=client.weights.version,
                groups=tuple(
                    GroupReply(prompt=prompt_fingerprint(prompt), completions=completions)
                    for prompt, completions in zip(request.prompts, groups, strict=True)
                ),
            )

        reply = await self._answered(request.policy_version, ask)
        self._count(sum(len(one.token_ids) for group in reply.groups for one in group.completions))
        return reply

    async def score(self, request: ScoreRequest) -> ScoreReply:
        """Runs in a task of its own; see `Gate.passage`. Raises `Refusal`."""

        async def ask(client: EngineClient) -> ScoreReply:
            probe = self.supervision.probe
            assert probe is not None
            if not probe.features.score:
                raise not_valid("this worker's engine does not score texts; see features in /v1/info")
            if len(request.token_ids) >= probe.max_tokens:  # vLLM samples one more token
                raise not_valid(
                    f"the text has {len(request.token_ids)} tokens and this worker scores fewer than "
                    f"{probe.max_tokens}; shorten it"
                )
            logprobs = await client.score(request.token_ids)
            return ScoreReply(policy_version=client.weights.version, logprobs=logprobs)

        return await self._answered(request.policy_version, ask)

    async def activate(self, request: ActivateRequest) -> Activated:
        """Hold new requests, let running ones end, load. Raises `Refusal`; what was active is then still active."""
        began = time.monotonic()
        supervision = self.supervision
        async with self._switching:
            weights = self.store.weights(request.version)
            supervision.client()
            if weights == supervision.active:
                return Activated(version=weights.version, seconds=time.monotonic() - began, aborted=0)
            supervision.enter("activating")
            try:
                await self.anteroom.all_have_come(request.after)
                with self.anteroom.activating(weights.version):
                    async with self.gate.closed(request.abort_after_s) as aborted:
                        before = supervision.active
                        await supervision.switch(weights)
                        self._previous = before
            finally:
                if supervision.state == "activating":
                    supervision.settle()
            self.store.use(weights, self._previous)
            return Activated(version=weights.version, seconds=time.monotonic() - began, aborted=aborted)

    def info(self) -> Info:
        """Raises `Refusal` 503 before the first engine has answered."""
        probe = self.supervision.probe
        if probe is None:
            self.supervision.client()
            raise engine_down("the engine has not been probed yet; ask again when /v1/health says ready")
        return Info(
            api=API,
            engine=self.supervision.engine.kind,
            versions=probe.versions,
            features=probe.features,
            model=self._model,
            policy_version=self.supervision.active.version,
            holds=self.store.holds(),
            max_tokens=probe.max_tokens,
            load=self.load(),
        )

    def health(self) -> Health:
        """Whether it can sample, and since when."""
        supervision = self.supervision
        return Health(
            state=supervision.state,
            policy_version=supervision.active.version,
            restarts=supervision.restarts,
            seconds_in_state=supervision.seconds_in_state,
            detail=supervision.detail,
        )

    def load(self) -> Load:
        """What it is doing."""
        self._forget_old()
        tokens = sum(count for _, count in self._sampled)
        return Load(
            running=self.gate.running,
            waiting=self.gate.waiting + self.anteroom.waiting,
            tokens_per_second=tokens / SPEED_OVER_S,
        )

    async def _answered(
        self, version: int | None, ask: Callable[[EngineClient], Awaitable[Answer]]
    ) -> Answer:
        """``ask`` one engine process, between two changes of weights."""
        active = self.supervision.active.version
        if version is not None and version > active and version in self.store.holds():
            await self.anteroom.ready_for(version)
        try:
            async with self.gate.passage():
                client = self.supervision.client()
                active = client.weights.version
                if version is not None and version != active:
                    raise not_now(
                        f"version {active} is active, not {version}; activate it or ask for {active}"
                    )
                try:
                    answer = await ask(client)
                except EngineError as error:
                    raise engine_down(f"the engine did not answer: {error}") from None
                if not self.supervision.is_current(client):
                    raise engine_down("the engine ended while it answered; ask again")
                return answer
        except AbortedError:
            raise not_now("the request was cut off, since another version is activated; ask again") from None

    def _count(self, tokens: int) -> None:
        self.tokens_sampled += tokens
        self._sampled.append((time.monotonic(), tokens))
        self._forget_old()

    def _forget_old(self) -> None:
        while self._sampled and time.monotonic() - self._sampled[0][0] > SPEED_OVER_S:
            self._sampled.popleft()
