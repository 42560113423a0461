"""`WorkerClient`: every route of one worker, typed, bounded in time and size, and checked.

Invariant: a call returns an answer that belongs to what was asked, or raises a `WorkerError` that names the worker
and the reason; no reply, however long, slow or wrong, gets further than this file.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from cluster.connections import Connections
from cluster.nodes import NodesConfig, WorkerNode, token_of
from cluster.replies import complaint_about, complaint_about_score
from cluster.wire import (
    API,
    MAX_PROMPTS,
    PREFIX,
    Activated,
    ActivateRequest,
    GenerateReply,
    GenerateRequest,
    Health,
    Info,
    Manifest,
    ModelFingerprint,
    Problem,
    ScoreReply,
    ScoreRequest,
    Stored,
)

ReplyT = TypeVar("ReplyT", bound=BaseModel)
SMALL = 1 << 20
"""Bytes; no reply but one with tokens in it is longer."""
BYTES_A_TOKEN = 64
"""An id of up to 10 digits and a float of up to 24, with what stands between."""
CHUNK = 1 << 20
"""Bytes of a file in memory at a time."""


class WorkerError(Exception):
    """A worker did not do what it was asked; the message does not name it."""


class RefusedError(WorkerError):
    """It answered with an error of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NonsenseError(WorkerError):
    """It answered something that cannot be the answer."""


class MisfitError(WorkerError):
    """It will not do as it was started: another model, another API, another token, other log-probabilities."""


class WorkerClient:
    """One worker over HTTP; use and close it in one event loop."""

    def __init__(self, worker: WorkerNode, nodes: NodesConfig, vocabulary: int) -> None:
        """Raises `UserError` when the token cannot be read."""
        self.name = worker.name
        self.url = worker.url
        self.nodes = nodes
        self.vocabulary = vocabulary
        self.bytes_moved = 0
        """Of files, handed to the network so far."""
        token = token_of(worker)
        encrypted = worker.url.startswith("https")
        self._http = httpx.AsyncClient(
            base_url=worker.url + PREFIX,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=Connections(worker.url, ssl.create_default_context() if encrypted else None),
            timeout=httpx.Timeout(None, connect=nodes.connect_timeout_s),
            trust_env=False,  # a proxy of the environment is no way to a machine on the same network
        )

    async def close(self) -> None:
        """Give back its connections."""
        await self._http.aclose()

    async def info(self, model: ModelFingerprint | None) -> Info:
        """Who it is. Raises `MisfitError` for another API or another model than this one."""
        given = await self._ask("GET", "/info", Info, self.nodes.connect_timeout_s)
        if given.api != API:
            raise MisfitError(
                f"it speaks version {given.api} of the API, this trainer {API}; update the older one"
            )
        if model is not None and given.model != model:
            parts = [
                part for part in ("config", "tokenizer") if getattr(given.model, part) != getattr(model, part)
            ]
            raise MisfitError(
                f"its model has another {' and '.join(parts)} than the trainer's; start it with the same model"
            )
        return given

    async def health(self) -> Health:
        """Whether it can sample."""
        return await self._ask("GET", "/health", Health, self.nodes.connect_timeout_s)

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Groups in the order of the prompts. Raises `NonsenseError` for groups that cannot be theirs."""
        tokens = len(request.prompts) * request.group_size * request.draw.max_tokens
        limit = SMALL + tokens * BYTES_A_TOKEN + len(request.prompts) * request.group_size * 256
        reply = await self._ask(
            "POST", "/generate", GenerateReply, self.nodes.request_timeout_s, request, limit=limit
        )
        if wrong := complaint_about(reply, request, self.vocabulary):
            raise NonsenseError(f"it {wrong}")
        return reply

    async def score(self, request: ScoreRequest) -> ScoreReply:
        """log p of every token but the first. ``request`` names a version."""
        assert request.policy_version is not None
        limit = SMALL + len(request.token_ids) * BYTES_A_TOKEN
        reply = await self._ask(
            "POST", "/score", ScoreReply, self.nodes.request_timeout_s, request, limit=limit
        )
        if wrong := complaint_about_score(reply, len(request.token_ids), request.policy_version):
            raise NonsenseError(f"it {wrong}")
        return reply

    async def announce(self, version: int, manifest: Manifest) -> Stored:
        """Say what is about to be sent; what it already has is not missing."""
        return self._of(
            version,
            await self._ask("POST", f"/weights/{version}", Stored, self.nodes.connect_timeout_s, manifest),
        )

    async def send(self, version: int, path: Path) -> Stored:
        """Stream one file, by its name, never held whole."""
        size = path.stat().st_size
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        return self._of(
            version,
            await self._ask(
                "PUT",
                f"/weights/{version}/{path.name}",
                Stored,
                self.nodes.transfer_timeout_s,
                path.read_bytes() if size <= CHUNK else self._chunks(path),
                headers=headers,
            ),
        )

    async def complete(self, version: int) -> Stored:
        """All is sent: check it and take it in."""
        path, limit = f"/weights/{version}/complete", self.nodes.transfer_timeout_s
        return self._of(version, await self._ask("POST", path, Stored, limit))

    async def activate(self, version: int, after: Sequence[str] = ()) -> Activated:
        """Sample from this version; returns when it does. Requests ``after`` are answered before."""
        seconds = self.nodes.abort_after_s + self.nodes.activate_timeout_s
        request = ActivateRequest(
            version=version, abort_after_s=self.nodes.abort_after_s, after=tuple(after)[-MAX_PROMPTS:]
        )
        reply = await self._ask("POST", "/activate", Activated, seconds, request)
        if reply.version != version:
            raise NonsenseError(f"it activated version {reply.version}, not {version}")
        return reply

    @staticmethod
    def _of(version: int, stored: Stored) -> Stored:
        if stored.version != version:
            raise NonsenseError(f"it speaks of version {stored.version}, not {version}")
        return stored

    async def _chunks(self, path: Path) -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
                self.bytes_moved += len(chunk)

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[ReplyT],
        seconds: float,
        content: BaseModel | bytes | AsyncIterator[bytes] | None = None,
        *,
        headers: dict[str, str] | None = None,
        limit: int = SMALL,
    ) -> ReplyT:
        if isinstance(content, BaseModel):
            content = content.model_dump_json().encode()
            headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(seconds):
                request = self._http.build_request(method, path, content=content, headers=headers)
                response = await self._http.send(request, stream=True)
                try:
                    body = await _read(response, limit)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise WorkerError(f"it did not answer {path} within {seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise WorkerError(f"it cannot be reached for {path} ({reason})") from None
        if not response.is_success:
            raise _refusal(response.status_code, body, path)
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise NonsenseError(
                f"its answer to {path} is no {kind.__name__}: {where} {first['msg']}"
            ) from None


def _refusal(status: int, body: bytes, path: str) -> WorkerError:
    try:
        said = Problem.model_validate_json(body).error
    except ValidationError:
        said = "without saying why"
    message = f"it refused {path} with status {status}: {' '.join(said.split())[:300]}"
    if status in (401, 403):
        return MisfitError(f"{message}; give its token file in nodes.yaml")
    return RefusedError(status, message)


async def _read(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            raise NonsenseError(f"its answer is longer than {limit} bytes")
    return bytes(body)
