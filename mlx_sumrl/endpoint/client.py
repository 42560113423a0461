"""One request to an OpenAI-compatible server, and what its failure means. Never imports mlx.

Invariant: every way a request can end is one of four: a `Reply`, which is paid for; a `FailedAttemptError`, which
may be tried again and says whether it may have been billed; a `RefusedRowError`, which this row alone is to blame
for; or a `UserError`, which every other row would meet too. The key is sent to the named server alone: it is in no
message, redirects are not followed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx

from mlx_sumrl.config import AskingConfig
from mlx_sumrl.errors import UserError

LONGEST_BODY = 16 * 2**20
"""Bytes of a response; a server that sends more is not answering the question."""
CONNECT_S = 15.0
_NEVER_BILLED = (408, 425, 429, 500, 503, 529)
_MAYBE_BILLED = (502, 504, 520, 522, 524)  # a gateway lost what the server behind it may have made
_RETRIED = _NEVER_BILLED + _MAYBE_BILLED
_OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "credit balance")

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """One token of an answer and what else was likely there."""

    token: str | None
    """The one that the server names; some do not name it, and mlx_lm.server names any of the likely ones."""
    likely: tuple[tuple[str, float], ...]
    """Tokens and their log-probabilities, the most likely first."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that came whole."""

    text: str
    reasoning: str | None
    """What the server gave apart from the answer as the model's thoughts."""
    finish_reason: str | None
    usage: tuple[int, int] | None
    """Prompt and completion tokens as the server counted them; None where it did not, or could not have."""
    model: str | None
    """The model as the server names it."""
    response_id: str | None
    tokens: tuple[TokenChoice, ...] | None = None
    """What was likely at each token, where the server says."""


class FailedAttemptError(Exception):
    """It may be tried again; its message is the reason it is counted under."""

    def __init__(self, why: str, *, billed: bool, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(why)
        self.billed = billed
        """Whether the server may have made, and billed, an answer."""
        self.detail = detail
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""


class RefusedRowError(Exception):
    """The server will not have this request; its message is the reason it is counted under."""

    def __init__(self, why: str, detail: str) -> None:
        super().__init__(why)
        self.detail = detail


class Endpoint:
    """The client; an asynchronous context manager."""

    def __init__(
        self,
        config: AskingConfig,
        server: str,
        *,
        named: str = "server",
        prefix: str = "--",
        fields: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """``server`` is the URL; the user gave it as option ``named``, and all options with ``prefix`` before them.
        ``fields`` are sent with each request, beside what ``config`` says.

        Raises `UserError` for a URL that is none, or a key that is not there.
        """
        self._prefix = prefix
        self.named = self.option(named)
        self._url = endpoint(server, self.named)
        self._config = config
        self._fields = dict(fields or {})
        self._key = _key(config.key_variable, environment, self.option("key_variable"))
        self.host = self._url.host + (f":{self._url.port}" if self._url.port else "")
        """The server, for people: no user, password, path or query."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(config.timeout_s, connect=min(CONNECT_S, config.timeout_s), pool=None),
            # Many servers close a connection that was idle for 5 s, perhaps just as a request is sent on it.
            limits=httpx.Limits(max_connections=config.concurrency, keepalive_expiry=2.0),
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    def option(self, name: str) -> str:
        """An option as the user writes it."""
        return f"{self._prefix}{name}"

    @property
    def sends_key_in_the_open(self) -> bool:
        """Whether the key travels unencrypted to another machine."""
        near = self._url.host in ("localhost", "127.0.0.1", "::1")
        return self._key is not None and self._url.scheme == "http" and not near

    async def complete(self, messages: Sequence[Message]) -> Reply:
        """One answer. Raises what the module's docstring says."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                status, headers, body = await self._post(messages)
        except TimeoutError:
            raise FailedAttemptError("time-out", billed=True) from None
        except (httpx.ConnectTimeout, httpx.ConnectError, httpx.PoolTimeout) as error:
            # Nothing was sent.
            raise FailedAttemptError("no connection", billed=False, detail=_cause(error)) from error
        except httpx.TimeoutException:
            raise FailedAttemptError("time-out", billed=True) from None
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise FailedAttemptError("connection broken", billed=True, detail=_cause(error)) from error
        if status == 200:
            return self._reply(headers, body)
        raise await self._failure(status, headers, body)

    async def _post(self, messages: Sequence[Message]) -> tuple[int, httpx.Headers, bytes]:
        content = json.dumps(request_body(self._config, messages, self._fields)).encode("ascii")
        headers = {"Content-Type": "application/json"}
        async with self._http.stream("POST", self._url, content=content, headers=headers) as response:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LONGEST_BODY:
                    raise FailedAttemptError("answer too large", billed=True)
            return response.status_code, response.headers, bytes(body)

    def _reply(self, headers: httpx.Headers, body: bytes) -> Reply:
        try:
            return read_reply(body)
        except (ValueError, RecursionError) as error:
            if "html" in headers.get("content-type", "").lower():
                raise UserError(
                    f"{self.host} answers with a web page instead of JSON: correct {self.named}; it is the address "
                    "of an OpenAI-compatible API"
                ) from None
            broken = isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError)
            why = "half or no JSON" if broken else "no answer in the response"
            raise FailedAttemptError(why, billed=True, detail=self._said(body)) from None

    async def _failure(self, status: int, headers: httpx.Headers, body: bytes) -> Exception:
        said = self._said(body)
        saying = f" ({said})" if said else ""
        if status in (401, 403):
            way_out = (
                f"put a key that it takes into the environment variable {self._config.key_variable}"
                if self._key
                else f"name the environment variable that holds its key with {self.option('key_variable')}"
            )
            return UserError(f"{self.host} refuses the key, or that there is none{saying}: {way_out}")
        if status == 402 or (
            status == 429 and any(word in body.decode(errors="replace") for word in _OUT_OF_MONEY)
        ):
            return UserError(
                f"{self.host} says that the account is out of money or quota{saying}: mend that there, then run "
                "the same command again"
            )
        if status in (404, 405) or "model_not_found" in body.decode(errors="replace"):
            models = await self._models()
            if models and self._config.model not in models:
                return UserError(
                    f"{self.host} has no model {self._config.model!r}{saying}: give {self.option('model')} one of "
                    f"{', '.join(models)}"
                )
            return UserError(
                f"{self.host} answers {status} at {self._url.path} for model {self._config.model!r}{saying}: "
                f"correct {self.named}, the address of an OpenAI-compatible API, or {self.option('model')}"
            )
        if 300 <= status < 400:
            target = headers.get("location", "elsewhere").rpartition("@")[2].partition("?")[0]
            return UserError(
                f"{self.host} sends on to {target}: give that address as {self.named}, if you trust it"
            )
        if status in _RETRIED or status >= 500:
            after = retry_after(headers.get("retry-after"))
            billed = status not in _NEVER_BILLED
            return FailedAttemptError(f"status {status}", billed=billed, detail=said, retry_after=after)
        return RefusedRowError(f"status {status}", said)

    async def _models(self) -> list[str]:
        """Names of the models that the server lists; none where it lists none."""
        path = self._url.path.removesuffix("/chat/completions") + "/models"
        try:
            response = await self._http.get(self._url.copy_with(path=path))
            return [str(one["id"]) for one in response.json()["data"]][:10]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def _said(self, body: bytes) -> str:
        """The server's own words on what is wrong: short, printable, and without the key."""
        text = body[:4000].decode(errors="replace")
        try:
            content = json.loads(body)
            error = content.get("error", content) if isinstance(content, dict) else content
            text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        except (ValueError, RecursionError):
            if "<html" in text.lower():
                text = ""
        if self._key:
            text = text.replace(self._key, "…")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= 200 else f"{text[:199]}…"


def endpoint(url: str, named: str) -> httpx.URL:
    """Where chat completions are asked for; ``url`` is with or without ``/v1``, or the whole route, and was given as
    the option ``named``.

    Raises `UserError` when it is no address.
    """
    shown = url.strip().rpartition("@")[2]  # without a password
    try:
        parsed = httpx.URL(url.strip())
    except (httpx.InvalidURL, TypeError, ValueError):
        raise UserError(f"{named} {shown!r} is no address: write it as http://127.0.0.1:8080") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(
            f"{named} {shown!r} is no address of a server: begin it with http:// or https://, as in "
            "http://127.0.0.1:8080"
        )
    path = parsed.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        versioned = re.fullmatch(r"v\d+\w*", path.rpartition("/")[2])
        path += "/chat/completions" if versioned else "/v1/chat/completions"
    return parsed.copy_with(path=path, fragment=None)


def request_body(
    config: AskingConfig, messages: Sequence[Message], fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is sent."""
    body: dict[str, Any] = {
        "model": config.model,
        "messages": list(messages),
        **config.extra,
        **(fields or {}),
    }
    body[config.max_tokens_field] = config.max_tokens
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.top_p is not None:
        body["top_p"] = config.top_p
    return body


def read_reply(body: bytes) -> Reply:
    """The answer in a response's body; ValueError where there is none."""
    content = json.loads(body)
    if not isinstance(content, dict):
        raise ValueError("the response is no JSON object")
    choices = content.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("the response holds no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("the choice holds no message")
    text = message.get("content")
    if isinstance(text, list):  # some servers answer in parts
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise ValueError("the message is no text")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    finish = choices[0].get("finish_reason")
    return Reply(
        text,
        reasoning if isinstance(reasoning, str) else None,
        finish if isinstance(finish, str) else None,
        _usage(content.get("usage"), text),
        _name(content.get("model")),
        _name(content.get("id")),
        _tokens(choices[0].get("logprobs")),
    )


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number or an HTTP date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max((date - (now or datetime.now(UTC))).total_seconds(), 0.0)


def _usage(usage: Any, text: str) -> tuple[int, int] | None:
    """Tokens as counted, where they can be true: every prompt has a token, and so has every text."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:  # a bool is an int to isinstance
        return None
    if prompt < 1 or completion < (1 if text else 0):
        return None
    return prompt, completion


def _tokens(logprobs: Any) -> tuple[TokenChoice, ...] | None:
    """``top_logprobs`` of each token; None where the server gave none that can be read."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    found = []
    for one in content:
        top = one.get("top_logprobs") if isinstance(one, dict) else None
        likely = [
            (other["token"], float(other["logprob"]))
            for other in (top if isinstance(top, list) else [])
            if isinstance(other, dict)
            and isinstance(other.get("token"), str)
            and _is_logprob(other.get("logprob"))
        ]
        token = one.get("token") if isinstance(one, dict) else None
        likely.sort(key=lambda pair: -pair[1])
        found.append(TokenChoice(token if isinstance(token, str) else None, tuple(likely)))
    return tuple(found) if any(one.likely for one in found) else None


def _is_logprob(value: Any) -> bool:
    """A finite number of at most 0, but for rounding."""
    return type(value) in (int, float) and -1e9 < value <= 1e-3


def _name(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _key(variable: str | None, environment: Mapping[str, str], named: str) -> str | None:
    if variable is None:
        return None
    key = environment.get(variable, "").strip()
    if not key and not re.fullmatch(r"[A-Z][A-Z0-9_]{0,39}", variable):
        raise UserError(  # its value is not shown: it may be the key itself
            f"{named} is the name of an environment variable, as OPENAI_API_KEY, and there is none of the "
            "given name: put the key into one, and give its name"
        )
    if not key:
        raise UserError(
            f"the environment variable {variable} ({named}) is not set: set it to the server's API key"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(
            f"the environment variable {variable} holds characters that no API key has: set it again"
        )
    return key


def _cause(error: BaseException) -> str:
    """The reason at the bottom of a connection's error."""
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:200]
