"""Clients that take their time: headers and bodies that never end are cut off, and nobody else notices.

The same server and front door as a worker's, in a thread, with limits short enough to wait for.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from cluster.bearer import Bearer
from cluster.front_door import BodyLimits, FrontDoor
from cluster.http_server import TimedHeaders, make_server
from cluster.wire import Problem
from tests.cluster.running_worker import whole_answer

TOKEN = "a-token-of-these-tests-0123456789"
LIMITS = BodyLimits(json_bytes=1000, idle_s=0.2, first_s=0.6, slowest=1e6, drain_s=0.2)


class Impatient(TimedHeaders):
    header_s = 0.6


async def echo_length(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads its body to the end and says how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = FrontDoor(echo_length, Bearer(TOKEN), LIMITS, lambda route, status, seconds: None)
    server = make_server(app, "127.0.0.1", 0)
    server.config.http = Impatient
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    found = int(listening.getsockname()[1])
    yield found
    server.stop()
    thread.join()
    assert isinstance(server, uvicorn.Server)


def answered(connection: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    found = b""
    connection.settimeout(30)
    try:
        while piece := connection.recv(4096):
            found += piece
    except ConnectionResetError:
        pass
    return found


def others_are_served(port: int) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{port}/", content=b"12345", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert (answer.status_code, answer.text) == (200, "5")


HEAD = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


@pytest.mark.parametrize("sent", [b"", b"P", HEAD], ids=["nothing", "a letter", "all but the last line"])
def test_a_header_that_does_not_end_is_hung_up_on(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        others_are_served(port)
        assert answered(connection) == b""


def test_a_header_that_comes_letter_by_letter_is_hung_up_on(port: int) -> None:
    """The clock is not wound up by each letter."""
    gone = threading.Event()
    with socket.create_connection(("127.0.0.1", port)) as connection:

        def drip() -> None:
            for place in range(len(HEAD) - 1):  # would take six times the limit
                if gone.wait(0.04):
                    return
                try:
                    connection.sendall(HEAD[place : place + 1])
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert answered(connection) == b""
        gone.set()
        dripping.join()


def test_the_next_header_on_a_kept_connection_has_its_clock_too(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\nab")
        connection.settimeout(30)
        assert whole_answer(connection) == (200, b"2")
        connection.sendall(b"POST")
        assert answered(connection) == b""


@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_that_stops_coming_is_a_408(port: int, framing: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD + framing)
        others_are_served(port)
        found = answered(connection)
    assert found.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in found.lower()


def test_a_body_that_drips_is_a_408_too(port: int) -> None:
    gone = threading.Event()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 900\r\n\r\n")

        def drip() -> None:
            for _ in range(900):  # never idle for long, and never done
                if gone.wait(0.05):
                    return
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        found = answered(connection)
        gone.set()
        dripping.join()
    assert found.startswith(b"HTTP/1.1 408")


def test_a_refused_body_s_sender_sees_the_answer_and_is_hung_up_on(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 50_000)
        found = answered(connection)
    assert found.startswith(b"HTTP/1.1 413")
    answer = httpx.post(f"http://127.0.0.1:{port}/", content=b"x" * 5_000_000)
    assert answer.status_code == 401


def test_headers_without_end_are_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        try:
            connection.sendall(HEAD + b"X: " + b"y" * (1 << 20))
        except OSError:
            return  # hung up on in the middle of it
        assert answered(connection)[:12] in (b"", b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00 no TLS here\r\n\r\n", b"GET\r\n\r\n", HEAD + b"A b: c\r\n\r\n"]
)
def test_what_is_no_http_is_told_so(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        found = answered(connection)
    assert found.startswith(b"HTTP/1.1 400")
    assert Problem.model_validate_json(found.partition(b"\r\n\r\n")[2]).error
