"""The token: who is let in, who is held off, and where a worker may listen."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bearer import (
    MOST_ADDRESSES,
    WINDOW_S,
    WRONG_LOGINS,
    Bearer,
    check_exposure,
    network_of,
    others_can_read,
    read_token,
)
from cluster.refusal import Refusal
from mlx_sumrl.errors import UserError

TOKEN = "right-token-0123456789"
RIGHT = f"Bearer {TOKEN}".encode()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(bearer: Bearer, header: bytes | None, address: str = "192.0.2.1") -> int:
    try:
        bearer.check(header, address)
    except Refusal as refusal:
        return 999 if TOKEN in refusal.error else refusal.status
    return 200


def test_the_token_and_nothing_else_opens() -> None:
    bearer = Bearer(TOKEN)
    assert status(bearer, RIGHT) == 200
    assert status(bearer, f"bearer {TOKEN}".encode()) == 200
    for wrong in (b"", TOKEN.encode(), b"Basic " + TOKEN.encode(), RIGHT + b"x", RIGHT[:-1], b"Bearer \xff"):
        assert status(Bearer(TOKEN), wrong) == 401
    assert status(bearer, None) == 401


@given(st.text(string.printable, max_size=40))
def test_no_other_text_opens(text: str) -> None:
    expected = 200 if text.strip(" ") == TOKEN else 401
    assert status(Bearer(TOKEN), b"Bearer " + text.strip().encode()) == expected


def test_guessing_is_held_off_and_forgiven_after_the_window() -> None:
    clock = Clock()
    bearer = Bearer(TOKEN, clock)
    assert [status(bearer, b"Bearer wrong") for _ in range(WRONG_LOGINS)] == [401] * WRONG_LOGINS
    assert status(bearer, b"Bearer wrong") == 429
    assert status(bearer, RIGHT) == 429  # or a guess in the window would still be answered
    assert status(bearer, RIGHT, "192.0.2.2") == 200
    clock.now = WINDOW_S - 0.01
    assert status(bearer, RIGHT) == 429
    clock.now = WINDOW_S
    assert status(bearer, RIGHT) == 200
    assert bearer.failed_logins == WRONG_LOGINS + 3


def test_a_missing_token_is_no_guess() -> None:
    bearer = Bearer(TOKEN)
    assert {status(bearer, None) for _ in range(WRONG_LOGINS + 1)} == {401}
    assert status(bearer, RIGHT) == 200


def test_many_addresses_do_not_fill_the_memory() -> None:
    bearer = Bearer(TOKEN, Clock())
    for number in range(MOST_ADDRESSES + 10):
        status(bearer, b"Bearer wrong", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(bearer._wrong) == MOST_ADDRESSES


def test_one_client_is_one_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == "fe80::/64"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "192.168.1.5", "::", "fe80::1", "mac-mini.local", "", "127.0.0.1.evil"]
)
def test_the_network_needs_a_token(host: str) -> None:
    with pytest.raises(UserError, match="--token-file"):
        check_exposure(host, None)
    check_exposure(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.0.1", "::1", "localhost"])
def test_loopback_does_not(host: str) -> None:
    check_exposure(host, None)
    assert status(Bearer(None), None) == 200


@pytest.mark.parametrize(
    ("host", "origin", "let_in"),
    [
        (b"127.0.0.1:8700", None, True),
        (b"localhost:8700", None, True),
        (b"[::1]:8700", None, True),
        (b"rebound.example:8700", None, False),
        (None, None, False),
        (b"127.0.0.1:8700", b"https://page.example", False),
    ],
)
def test_without_a_token_no_web_page_is_let_in(
    host: bytes | None, origin: bytes | None, let_in: bool
) -> None:
    if let_in:
        Bearer(None).check(None, "127.0.0.1", host, origin)
    else:
        with pytest.raises(Refusal) as found:
            Bearer(None).check(None, "127.0.0.1", host, origin)
        assert found.value.status == 403


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 characters"),
        (b"short", "5 characters"),
        (b"x" * 513, "513"),
        (b"a b" * 10, "space"),
        (b"\xff", "ASCII"),
    ],
)
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_token(path)


def test_a_token_is_read_without_its_end_of_line(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    path.chmod(0o644)
    assert others_can_read(path)
    path.chmod(0o600)
    assert not others_can_read(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path / "missing")
