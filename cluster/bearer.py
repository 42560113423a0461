"""Who may ask a worker anything: the one bearer token, and how often a wrong one is taken.

Invariant: every request passes here before a byte of its body is read; a token is compared in constant time, is never
logged, and never leaves this file but as its hash. An address that was wrong too often is not listened to for a
while, not even with the right token: otherwise the limit would not slow down guessing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

from cluster.refusal import Refusal
from mlx_sumrl.errors import UserError

SHORTEST_TOKEN = 16
LONGEST_TOKEN = 512
WRONG_LOGINS = 10
"""Wrong tokens from one address within `WINDOW_S` before it is held off."""
WINDOW_S = 60.0
MOST_ADDRESSES = 10_000
"""Addresses remembered; the one that was wrong longest ago is forgotten first."""
HOW_TO_MAKE_ONE = "make one with: (umask 077; openssl rand -hex 32 > FILE)"


def read_token(path: Path) -> str:
    """The token in a file, white space around it left out.

    Raises `UserError` where the file is missing, or holds something that is no token.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UserError(
            f"the token file {path} cannot be read ({error.strerror}); {HOW_TO_MAKE_ONE}"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"the token file {path} is not plain ASCII text; {HOW_TO_MAKE_ONE}") from None
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        raise UserError(
            f"the token in {path} has {len(token)} characters; it needs {SHORTEST_TOKEN} to {LONGEST_TOKEN}: "
            f"{HOW_TO_MAKE_ONE}"
        )
    if not all(33 <= ord(letter) <= 126 for letter in token):
        raise UserError(f"the token in {path} holds a space or a control character; {HOW_TO_MAKE_ONE}")
    return token


def others_can_read(path: Path) -> bool:
    """Whether a file's mode lets other users of the machine read it."""
    return bool(path.stat().st_mode & 0o077)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None) -> None:
    """Raises `UserError` for a worker that anyone on the network could use."""
    if token is None and not is_loopback(host):
        raise UserError(
            f"--listen {host} is open to the network and there is no --token-file; name one, or listen on "
            f"127.0.0.1 ({HOW_TO_MAKE_ONE})"
        )


class Bearer:
    """Checks the Authorization header of every request."""

    def __init__(self, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """``token`` None lets everyone in: for loopback only, see `check_exposure`."""
        self._expected = None if token is None else _hash(token.encode("ascii"))
        self._clock = clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self.failed_logins = 0
        """Wrong tokens so far, those not listened to included."""

    def check(
        self,
        authorization: bytes | None,
        address: str,
        host: bytes | None = b"localhost",
        origin: bytes | None = None,
    ) -> None:
        """Raises `Refusal` 401 without the token, 429 after too many wrong ones from this address.

        403 where there is no token and the request may be a web page's; ``host`` and ``origin`` are its headers.
        """
        if self._expected is None:
            _check_no_browser(host, origin)
            return
        if authorization is None:  # not a guess: nothing is learnt from it, so it is not counted
            raise Refusal(401, "this worker asks for a token: Authorization: Bearer ...", CHALLENGE)
        key = network_of(address)
        wait_s = self._held_off_s(key)
        if wait_s > 0:
            self.failed_logins += 1
            raise Refusal(
                429,
                f"too many wrong tokens from {key}; wait {math.ceil(wait_s)} seconds",
                {"Retry-After": str(math.ceil(wait_s))},
            )
        scheme, _, given = authorization.partition(b" ")
        # Hashes have one length whatever was sent, so the comparison tells nothing about the token's.
        right = hmac.compare_digest(_hash(given.strip()), self._expected)
        if not right or scheme.lower() != b"bearer":
            self._note(key)
            raise Refusal(
                401, "the token is not this worker's; compare the token files of both sides", CHALLENGE
            )

    def _held_off_s(self, key: str) -> float:
        times = self._wrong.get(key)
        if times is None:
            return 0.0
        now = self._clock()
        while times and now - times[0] >= WINDOW_S:
            times.popleft()
        if not times:
            del self._wrong[key]
            return 0.0
        return times[0] + WINDOW_S - now if len(times) >= WRONG_LOGINS else 0.0

    def _note(self, key: str) -> None:
        self.failed_logins += 1
        self._wrong.setdefault(key, deque()).append(self._clock())
        self._wrong.move_to_end(key)
        while len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)


CHALLENGE = {"WWW-Authenticate": 'Bearer realm="mlx_sumrl worker"'}


def network_of(address: str) -> str:
    """What is counted as one client: an IPv4 address, or the /64 network that one client has of IPv6."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


def _check_no_browser(host: bytes | None, origin: bytes | None) -> None:
    """On loopback without a token, any web page that is open on this machine could ask, by a name of its own too."""
    name = (host or b"").decode("latin-1")
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
    if origin is not None or not is_loopback(name):
        raise Refusal(403, "without --token-file this worker answers programs on its own machine only")


def _hash(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
