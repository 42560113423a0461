"""The MLX engine as a process of its own, behind plain JSON on loopback: what a cluster's worker supervises.

``python -m mlx_sumrl.rollouts.serve --model M --listen 127.0.0.1:PORT``; port 0 takes a free one, and the first line
on standard output says which. Routes::

    GET  /health   -> {"ready": bool, "versions": {name: version}, "max_tokens": prompt and completion together}
    POST /generate {"prompts": [[id]], "group_size", "sampling": {"temperature", "top_p", "top_k", "max_tokens",
                   "min_tokens"}, "seed", "stop_ids"} -> {"groups": [[{"token_ids", "logprobs", "finish_reason"}]]}
    POST /score    {"token_ids"} -> {"logprobs"}
    POST /load     {"kind": "adapter" | "full" | "none", "path"} -> {"seconds"}

Errors are {"error": one sentence}: 404, 405 an unknown route or method, 411, 413, 415, 422 a body that is not what the
route takes or does not fit the model, 500 a fault of this program, 503 no model to sample from.

Invariant: everything that computes is done by the main thread, one request after the other in the order in which
they came, so a `/load` divides what was asked before it from what is asked after it; a request whose client has gone
before its turn is never begun. The only address it listens on is one of loopback: there is no password.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import ipaddress
import json
import platform
import queue
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn, get_args

from pydantic import ValidationError

from mlx_sumrl.config import DEFAULT_DTYPE, Dtype, SamplingConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of
from mlx_sumrl.rollouts.engine import Engine, Generate, Load, Request, Score

MAX_BODY = 256 * 2**20
"""Bytes of a request: 4,096 prompts of 8,192 ids, each with its comma."""
IDLE = 75.0
"""Seconds that a connection may say nothing, between requests or within one."""
Work = Callable[[Engine, Any], dict[str, Any]]
ROUTES: dict[str, tuple[type[Request], Work]] = {
    "/generate": (Generate, Engine.generate),
    "/score": (Score, Engine.score),
    "/load": (Load, Engine.load),
}
PACKAGES = ("mlx", "mlx-lm", "mlx_sumrl")


class RefusedError(Exception):
    """Answered with a status and one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Job:
    """A request that waits for its turn."""

    work: Work
    asked: Request
    connection: socket.socket
    answer: Future[dict[str, Any]] = field(default_factory=Future)

    def is_wanted(self) -> bool:
        """Whether its client is still there: one that has gone can be read from, and there is nothing to read."""
        try:
            readable = select.select([self.connection], [], [], 0)[0]
            return not readable or bool(self.connection.recv(1, socket.MSG_PEEK))
        except (OSError, ValueError):
            return False


class Server(ThreadingHTTPServer):
    """Takes requests, a thread for each connection, and hands them to whoever empties `jobs`."""

    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.engine: Engine | None = None
        """What `/health` speaks of; None until the model is loaded."""
        super().__init__(address, Handler)

    def health(self) -> dict[str, Any]:
        """What `/health` answers, without waiting for anything."""
        engine = self.engine
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        return {
            "ready": engine is not None and engine.whole,
            "versions": {"python": platform.python_version(), **versions},
            "max_tokens": engine.max_tokens if engine else 0,
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no fault of this program; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        """`/health`."""
        if self.path == "/health":
            self._send(HTTPStatus.OK, self.server.health())
        elif self.path in ROUTES:
            self._send(HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"{self.path} takes POST, not GET"})
        else:
            self._send(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path}; see /health"})

    def do_POST(self) -> None:
        """All that computes."""
        try:
            body = self._body()
            if self.path not in ROUTES:
                known = self.path == "/health"
                status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
                raise RefusedError(
                    status, f"nothing can be posted to {self.path}; post to {', '.join(ROUTES)}"
                )
            kind, work = ROUTES[self.path]
            job = Job(work, _parsed(kind, body), self.connection)
            if self.server.engine is None:
                raise RefusedError(
                    HTTPStatus.SERVICE_UNAVAILABLE, "the model is still being loaded; ask again"
                )
            self.server.jobs.put(job)
            answer = job.answer.result()
        except RefusedError as refused:
            self._send(refused.status, {"error": str(refused)})
        else:
            self._send(HTTPStatus.OK, answer)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # until all of the body is read, what follows is no request
        if not length.isdecimal():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "a request needs a Content-Length")
        if len(length) > 12 or int(length) > MAX_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a body has at most {MAX_BODY} bytes; ask for less at once",
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        # A web page can post to loopback too, but not as JSON without asking first.
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a body is application/json")
        return body

    def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content, allow_nan=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not noted: the worker in front does that."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit code: 0 then, 2 for what the user has to mend."""
    return exit_code_of(lambda: serve(parsed(argv)))


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    default = SamplingConfig()
    parser = argparse.ArgumentParser(
        prog="python -m mlx_sumrl.rollouts.serve", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--model", required=True, help="a model folder or a hub id")
    parser.add_argument(
        "--listen", required=True, metavar="HOST:PORT", help="loopback only; port 0: any free"
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        default=default.max_rows,
        help=f"completions decoded at once, as sampling.max_rows of the run ({default.max_rows} otherwise)",
    )
    parser.add_argument("--cache-bits", type=int, choices=(4, 8), help="as sampling.cache_bits of the run")
    parser.add_argument("--dtype", choices=get_args(Dtype), default=DEFAULT_DTYPE, help="type of the weights")
    return parser.parse_args(argv)


def serve(options: argparse.Namespace) -> None:
    """Load the model and answer. Raises `UserError` for options, an address or a model that cannot be had."""
    if options.max_rows < 1:
        raise UserError(f"--max-rows {options.max_rows}: at least 1 completion is decoded at once")
    family, address = loopback(options.listen)
    try:
        server = Server(family, address)
    except OSError as error:
        raise UserError(
            f"--listen {options.listen} cannot be listened on ({error.strerror}); name another port"
        ) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        threading.Thread(target=server.serve_forever, daemon=True, name="connections").start()
        print(f"listening on {_shown(server)}", flush=True)
        engine = Engine(options.model, options.dtype, options.max_rows, options.cache_bits)
        server.engine = engine
        print("ready", flush=True)
        while True:
            _answer(server.jobs.get(), engine)
    finally:
        server.engine = None
        server.shutdown()
        server.server_close()


def loopback(listen: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Where to listen. Raises `UserError` for what is not ``HOST:PORT`` with a host of loopback."""
    host, colon, port = listen.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        place = ipaddress.ip_address(host)
    except ValueError:
        place = None
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535 or place is None:
        raise UserError(f"--listen {listen!r} is not HOST:PORT; write 127.0.0.1:8100")
    if not place.is_loopback:
        raise UserError(
            f"--listen {listen}: this server asks for no password and listens on loopback only; write "
            f"127.0.0.1:{port}, and let `python -m cluster.worker` face the network"
        )
    family = socket.AF_INET if place.version == 4 else socket.AF_INET6
    return family, (host, int(port))


def _answer(job: Job, engine: Engine) -> None:
    """Do what was asked, unless nobody waits for it any more."""
    if not job.is_wanted():
        job.answer.set_exception(ConnectionResetError())
        return
    try:
        if not engine.whole and not isinstance(job.asked, Load):
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE, "the last weights broke off on the way in; load others first"
            )
        job.answer.set_result(job.work(engine, job.asked))
    except RefusedError as refused:
        job.answer.set_exception(refused)
    except UserError as error:
        job.answer.set_exception(RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, " ".join(str(error).split())))
    except Exception as error:
        traceback.print_exc()
        sentence = f"{type(error).__name__}: {error}; see the engine's log"
        job.answer.set_exception(RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, " ".join(sentence.split())))
    except BaseException:  # the end of the process
        job.answer.set_exception(RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the engine is being stopped"))
        raise


def _parsed(kind: type[Request], body: bytes) -> Request:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {first['msg']}") from None


def _shown(server: Server) -> str:
    host, port = server.server_address[:2]
    return f"[{host!s}]:{port}" if server.address_family == socket.AF_INET6 else f"{host!s}:{port}"


def _end(*_: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
