"""A SIMULATED TEACHER: a real HTTP server that answers chat completions by rule, and misbehaves by script.

It keeps its own account: every answer that it made is billed, whether it arrived or not, and every one that it sent
whole is noted. Its response ids are all the same, as some servers' are.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "simulated"
KEY = "sk-simulated-secret"
Script = Callable[[int, str], str]
"""(number of the request, counted from 1; the document) -> what is done with it, see `Handler.do_POST`."""
Event = Callable[[str, int], None]
"""(``request``, ``half`` or ``delivered``; number of the request)"""


def document_of(asked: dict[str, Any]) -> str:
    return str(asked["messages"][-1]["content"]).rpartition("\n\n")[2]


def summary_of(document: str) -> str:
    return "In short: " + " ".join(document.split()[:6])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    teacher: SimulatedTeacher

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed resets its connections, which is no news."""


class SimulatedTeacher:
    """A context manager; it listens on a free port of loopback."""

    def __init__(
        self,
        script: Script = lambda number, document: "answer",
        *,
        key: str | None = None,
        told: Callable[[dict[str, Any]], str] = document_of,
        logprobs: Callable[[str], Any] = lambda text: None,
    ) -> None:
        """`told` is what the script gets of a request; `logprobs` of a text go with it where they were asked for."""
        self.script = script
        self.told = told
        self.logprobs = logprobs
        self.key = key
        self.event: Event = lambda kind, number: None
        self.lock = threading.Condition()
        self.documents: list[str] = []
        """Of each request, in order of arrival."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.delivered: Counter[str] = Counter()
        """Document -> answers sent whole."""
        self.billed = Counter[str]()
        """Tokens of every answer made."""
        self.behaviours: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.teacher = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> SimulatedTeacher:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_until_idle(self) -> None:
        """Until every request that came is over, those of clients that are gone too."""
        with self.lock:
            assert self.lock.wait_for(lambda: self.under_way == 0, timeout=60)

    def cost(self, prompt: float, completion: float) -> float:
        """What it bills, at prices for a million tokens."""
        return (self.billed["prompt"] * prompt + self.billed["completion"] * completion) / 1e6


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.send(200, json.dumps({"data": [{"id": MODEL}]}).encode())
        else:
            self.send(404, b"Not Found")

    def do_POST(self) -> None:
        teacher = self.server.teacher
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.send(404, b"Not Found")
        document = teacher.told(asked)
        with teacher.lock:
            teacher.documents.append(document)
            teacher.bodies.append(asked)
            teacher.keys.append(self.headers.get("Authorization"))
            number = len(teacher.documents)
            teacher.under_way += 1
            teacher.most_under_way = max(teacher.most_under_way, teacher.under_way)
        try:
            self.behave(teacher, asked, document, number)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with teacher.lock:
                teacher.under_way -= 1
                teacher.lock.notify_all()

    def behave(self, teacher: SimulatedTeacher, asked: dict[str, Any], document: str, number: int) -> None:
        if teacher.key and self.headers.get("Authorization") != f"Bearer {teacher.key}":
            return self.error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if asked["model"] != MODEL:
            return self.error(404, f"The model `{asked['model']}` does not exist.")
        does, _, value = teacher.script(number, document).partition(" ")
        with teacher.lock:
            teacher.behaviours[does] += 1
        if does == "status":
            return self.error(int(value), f"status {value}, on purpose")
        if does == "busy":
            return self.error(429, "slow down", {"Retry-After": value} if value else {})
        if does == "page":
            return self.send(200, b"<html><body>Welcome</body></html>", {"Content-Type": "text/html"})
        if does == "elsewhere":
            return self.send(307, b"", {"Location": "http://user:pw@elsewhere.invalid/v1?k=v"})
        text = value if does == "says" else summary_of(document)
        usage: Any = {
            "prompt_tokens": 20 + sum(len(one["content"].split()) for one in asked["messages"]),
            "completion_tokens": len(text.split()),
        }
        with teacher.lock:
            teacher.billed["prompt"] += usage["prompt_tokens"]
            teacher.billed["completion"] += usage["completion_tokens"]
        teacher.event("request", number)
        if does == "hang":
            teacher.released.wait()
            self.close_connection = True
            return None
        if does == "usage":
            usage = json.loads(value)
        finish = "length" if does == "unfinished" else "stop"
        choice: dict[str, Any] = {"index": 0, "message": {"content": text}, "finish_reason": finish}
        if asked.get("logprobs"):
            choice["logprobs"] = teacher.logprobs(text)
        body = json.dumps(
            {
                "id": "chatcmpl-1",
                "model": f"{MODEL}-2026",
                "choices": [choice],
                "usage": usage,
            }
        ).encode()
        half = len(body) // 2
        if does == "half":
            return self.send(200, body[:half])
        self.begin(200, len(body))
        self.wfile.write(body[:half])
        self.wfile.flush()
        teacher.event("half", number)
        if does == "cut":
            self.close_connection = True
            return None
        self.wfile.write(body[half:])
        self.wfile.flush()
        with teacher.lock:
            teacher.delivered[document] += 1
        teacher.event("delivered", number)
        return None

    def error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps({"error": {"message": message}}).encode(), headers or {})

    def begin(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.begin(status, len(body), headers)
        self.wfile.write(body)
