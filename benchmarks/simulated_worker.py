"""A simulated worker: speaks `cluster.wire` over real HTTP, and samples nothing. For benchmarks and tests.

Its "policy" is the number in the file that it was sent, and its completions are the prompt's own ids, so that what
was sent, what was activated and which prompt was answered can all be read from what it says. Latency, speed and
faults are set. `benchmarks.simulated_workers` runs some.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.simulated_faults import STOP, Fault, spoiled
from benchmarks.small_http import Answer, Request
from cluster.anteroom import Anteroom
from cluster.gate import AbortedError, Gate
from cluster.wire import (
    API,
    Activated,
    ActivateRequest,
    CompletionReply,
    Features,
    GenerateReply,
    GenerateRequest,
    GroupReply,
    Health,
    Info,
    Load,
    Manifest,
    Message,
    ModelFingerprint,
    Problem,
    ScoreReply,
    ScoreRequest,
    Stored,
    prompt_fingerprint,
)

FINGERPRINT = ModelFingerprint(config="a" * 64, tokenizer="b" * 64)
WEIGHTS = "adapter_model.safetensors"
STARTED_WITH = 0.5
"""The "weights" of version 0."""
LATE_S = 0.02
"""A busy machine wakes a sleeper so much too late."""
State = Literal["ready", "starting", "activating"]


@dataclass
class Behaviour:
    """How a simulated worker is; may be changed while it runs."""

    latency_s: float = 0.0
    """Of a request, however many are under way."""
    tokens_per_second: float | None = None
    """Requests queue for this; None: no queue."""
    tokens: int = 8
    """Of a completion, the stop token included; cut at max_tokens."""
    activate_s: float = 0.0
    batch: bool = False
    score: bool = True
    filters: bool = True
    deltas: bool = True
    token: str | None = None
    fingerprint: ModelFingerprint = FINGERPRINT
    api: int = API
    canary_off: float = 0.0
    """Added to every log-probability of a score."""
    ready: bool = True
    late_s: float = 0.2
    """How late the fault `late` answers."""
    faults: deque[Fault | None] = field(default_factory=deque)
    """Of the next requests to generate, one each."""


def logprob_of(weights: float) -> float:
    """What this "policy" gives every token."""
    return -weights


class SimulatedWorker:
    """One worker and what it has seen."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.state: State = "ready"
        self.version = 0
        self.weights = {0: STARTED_WITH}
        self.requests: list[GenerateRequest] = []
        """All that it was asked to generate."""
        self.activations: list[int] = []
        self.files_received = 0
        self.running = 0
        self.most_running = 0
        self.most_running_at_activation = 0
        self.early = 0
        """Requests that came before their version was active."""
        self.cut_off_after: int | None = None
        """Close the connection after so many bodies of weight files, once."""
        self.receive_gate = asyncio.Event()
        """Files are taken in only while it is set."""
        self.receive_gate.set()
        self.receiving = 0
        self.manifests: dict[int, Manifest] = {}
        self._files: dict[int, dict[str, bytes]] = {}
        self._gate = Gate()
        self._switching = asyncio.Lock()
        self._anteroom = Anteroom(lambda: self.version)
        self._turn = asyncio.Lock()
        self._free_at = 0.0

    def restart(self) -> None:
        """As a process that comes up again with nothing but its model."""
        self.version, self.weights = 0, {0: STARTED_WITH}
        self.manifests.clear()
        self._files.clear()

    def forget_manifests(self) -> None:
        """As if all that is held had come from another run."""
        self.manifests.clear()

    async def answer(self, request: Request) -> Answer:
        """Of any route."""
        if self.behaviour.token is not None and request.bearer != self.behaviour.token:
            return _problem(401, "wrong token")
        parts = request.path.strip("/").split("/")[1:]
        match request.method, parts:
            case "GET", ["info"]:
                return _ok(self._info())
            case "GET", ["health"]:
                state: State = self.state if self.behaviour.ready else "starting"
                return _ok(Health(state=state, policy_version=self.version, restarts=0, seconds_in_state=0.0))
            case "POST", ["generate"]:
                return await self._generate(GenerateRequest.model_validate_json(request.body))
            case "POST", ["score"]:
                asked = ScoreRequest.model_validate_json(request.body)
                one = logprob_of(self.weights[self.version]) + self.behaviour.canary_off
                logprobs = (one,) * (len(asked.token_ids) - 1)
                return _ok(ScoreReply(policy_version=self.version, logprobs=logprobs))
            case "POST", ["weights", version]:
                return self._announced(int(version), Manifest.model_validate_json(request.body))
            case "POST", ["weights", version, "complete"]:
                return self._completed(int(version))
            case "PUT", ["weights", version, name]:
                self.receiving += 1
                await self.receive_gate.wait()
                self.receiving -= 1
                return self._received(int(version), name, request.body)
            case "POST", ["activate"]:
                return await self._activate(ActivateRequest.model_validate_json(request.body))
        return _problem(404, f"no route {request.method} {request.path}")

    def _info(self) -> Info:
        how = self.behaviour
        return Info(
            api=how.api,
            engine="mlx" if how.batch else "vllm",
            versions={"simulated": "1"},
            features=Features(
                adapters=True, full_weights="in_place", score=how.score, filters=how.filters, batch=how.batch
            ),
            model=how.fingerprint,
            policy_version=self.version,
            holds=tuple(sorted(self.weights)),
            max_tokens=4096,
            load=Load(running=self.running, waiting=0, tokens_per_second=0.0),
        )

    def _announced(self, version: int, manifest: Manifest) -> Answer:
        if version in self.weights and self.manifests.get(version) != manifest:
            if version == self.version:
                return _problem(409, f"another version {version} is active")
            del self.weights[version]
        if manifest.kind == "delta" and not (self.behaviour.deltas and manifest.base in self.weights):
            return _problem(409, f"version {manifest.base} is not held")
        if self.manifests.get(version) != manifest:
            self._files[version] = {}
        self.manifests[version] = manifest
        return _ok(self._stored(version))

    def _received(self, version: int, name: str, body: bytes) -> Answer:
        if self.cut_off_after is not None:
            self.cut_off_after -= 1
            if self.cut_off_after < 0:
                self.cut_off_after = None
                return Answer(0, b"", cut_at=0)
        said = self.manifests[version].files.get(name)
        if said is None or hashlib.sha256(body).hexdigest() != said.sha256:
            return _problem(422, f"the file {name} is not the one that was announced")
        self._files[version][name] = body
        self.files_received += 1
        return _ok(self._stored(version))

    def _completed(self, version: int) -> Answer:
        stored = self._stored(version)
        if not stored.missing:
            self.weights[version] = float(self._files[version][WEIGHTS].split()[0])
            stored = self._stored(version)
        return _ok(stored)

    def _stored(self, version: int) -> Stored:
        missing = tuple(name for name in self.manifests[version].files if name not in self._files[version])
        return Stored(version=version, missing=missing, complete=version in self.weights)

    async def _activate(self, request: ActivateRequest) -> Answer:
        if request.version not in self.weights:
            return _problem(404, f"version {request.version} is not here")
        async with self._switching:
            await self._anteroom.all_have_come(request.after)
            with self._anteroom.activating(request.version):
                return await self._switched(request)

    async def _switched(self, request: ActivateRequest) -> Answer:
        async with self._gate.closed(request.abort_after_s) as aborted:
            self.most_running_at_activation = max(self.most_running_at_activation, self.running)
            if self.behaviour.activate_s:
                self.state = "activating"
                try:
                    await asyncio.sleep(self.behaviour.activate_s)
                finally:
                    self.state = "ready"
            self.version = request.version
            self.activations.append(request.version)
        return _ok(Activated(version=self.version, seconds=0.0, aborted=aborted))

    async def _generate(self, request: GenerateRequest) -> Answer:
        self.requests.append(request)
        self._anteroom.has_come(request.request_id)
        fault = self.behaviour.faults.popleft() if self.behaviour.faults else None
        version = request.policy_version
        if version is not None and version > self.version and version in self.weights:
            self.early += 1
            await self._anteroom.ready_for(version)
        try:
            async with self._gate.passage():
                return await self._sampled(request, fault)
        except AbortedError:
            return _problem(409, "cut off")

    async def _sampled(self, request: GenerateRequest, fault: Fault | None) -> Answer:
        if request.policy_version not in (None, self.version):
            return _problem(409, f"version {self.version} is active, not {request.policy_version}")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        begun = asyncio.get_running_loop().time()
        try:
            reply = self._groups(request)
            answer = _ok(reply)
            await self._work(reply, begun)  # what making the answer took is a part of the time that is set
            if fault is None:
                return answer
            return await self._faulty(fault, reply)
        finally:
            self.running -= 1

    def _groups(self, request: GenerateRequest) -> GenerateReply:
        logprob = logprob_of(self.weights[self.version])
        groups = []
        for prompt in request.prompts:
            completions = []
            for _ in range(request.group_size):
                body = [prompt[i % len(prompt)] for i in range(self.behaviour.tokens - 1)]
                ids = (*body, STOP)[: request.draw.max_tokens]
                completions.append(
                    CompletionReply(
                        token_ids=ids,
                        logprobs=(logprob,) * len(ids),
                        finish_reason="stop" if ids[-1] == STOP else "length",
                    )
                )
            groups.append(GroupReply(prompt=prompt_fingerprint(prompt), completions=tuple(completions)))
        return GenerateReply(request_id=request.request_id, policy_version=self.version, groups=tuple(groups))

    async def _work(self, reply: GenerateReply, begun: float) -> None:
        clock, rate = asyncio.get_running_loop().time, self.behaviour.tokens_per_second
        end = begun + self.behaviour.latency_s
        if rate is not None:
            tokens = sum(len(one.token_ids) for group in reply.groups for one in group.completions)
            async with self._turn:  # a request that is cancelled leaves the queue
                # A sleep that was too long is made up for: the speed holds over many requests.
                own = max(clock() - LATE_S, self._free_at) + tokens / rate
                await asyncio.sleep(own - clock())
                self._free_at = own
        await asyncio.sleep(end - clock())

    async def _faulty(self, fault: Fault, reply: GenerateReply) -> Answer:
        if fault == "error":
            return _problem(500, "something broke")
        if fault == "unavailable":
            return _problem(503, "the engine is not up")
        if fault == "conflict":
            return _problem(409, "not now")
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "late":
            await asyncio.sleep(self.behaviour.late_s)
            return _ok(reply)
        if fault == "close":
            return Answer(0, b"", cut_at=0)
        if fault == "garbage":
            return Answer(200, b"\x00\xff{not json")
        whole = json.dumps(spoiled(fault, reply.model_dump(mode="json"))).encode()
        return Answer(200, whole, cut_at=len(whole) // 2 if fault == "truncate" else None)


def _ok(message: Message) -> Answer:
    return Answer(200, message.model_dump_json().encode())


def _problem(status: int, error: str) -> Answer:
    return Answer(status, Problem(error=error).model_dump_json().encode())
