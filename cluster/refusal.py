"""What a worker refuses, as an exception that carries its HTTP status.

Invariant: the sentence is for people at the other end: it names the thing, the value and the way out, and never
holds a token, a header or a path outside of what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException


class Refusal(HTTPException):
    """A request that is not answered, and why; becomes a `cluster.wire.Problem` with this status.

    FastAPI lets its own exceptions through wherever they are raised, while it reads a body too.
    """

    def __init__(self, status: int, error: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, error, headers)
        self.status = status
        self.error = error

    def __str__(self) -> str:
        return self.error


def not_found(error: str) -> Refusal:
    """404: no such version or file."""
    return Refusal(404, error)


def not_now(error: str) -> Refusal:
    """409: another version is active, something is missing still."""
    return Refusal(409, error)


def too_large(error: str) -> Refusal:
    """413: more than is taken."""
    return Refusal(413, error)


def not_valid(error: str) -> Refusal:
    """422: not what the type asks for."""
    return Refusal(422, error)


def engine_down(error: str) -> Refusal:
    """503: the engine is not up."""
    return Refusal(503, error, {"Retry-After": "1"})
