"""``nodes.yaml``: which workers there are, and how far the trainer trusts and waits for them.

Invariant: every default of the trainer's side lives here, and what is read has been checked as a whole: workers
have names of their own, and options that contradict one another are refused in one sentence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from cluster.hosts import HostConfig
from mlx_sumrl.config import Room
from mlx_sumrl.errors import UserError
from mlx_sumrl.options import tree
from mlx_sumrl.options.command_line import read_yaml
from mlx_sumrl.options.errors import shown, suggestion, validation_sentence

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,79}")


class WorkerNode(Room):
    """One worker, started by hand or by the launcher."""

    url: str
    """Where it listens, as `http://192.168.1.12:8500`."""
    name: str = ""
    """What metrics and messages call it; host and port of the url otherwise."""
    token_file: Path | None = None
    """File that holds its bearer token; the one of all workers otherwise."""

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        plain = parts.scheme in ("http", "https") and parts.hostname and port != -1
        if not plain or parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(f"{url!r} is no worker's address; write it as http://HOST:PORT")
        return url.rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        given = {"url": given} if isinstance(given, str) else given
        if isinstance(given, dict) and isinstance(given.get("url"), str) and not given.get("name"):
            given = {**given, "name": urlsplit(given["url"]).netloc}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot name a worker: use letters, digits, and . _ : - between")
        return self


class NodesConfig(Room):
    """The cluster as the trainer sees it."""

    workers: tuple[WorkerNode, ...] = ()
    """Workers: plain URLs, or `{url, name, token_file}`."""
    hosts: tuple[HostConfig, ...] = ()
    """Machines on which `python -m cluster.launch` starts workers; each is also a worker, by `host` and `listen`."""
    token_file: Path | None = None
    """File that holds the bearer token of every worker that names none of its own."""
    max_staleness: int = Field(default=1, ge=0)
    """Policy versions by which a group may be older than the policy it trains; an older one is asked for again.
    0 samples nothing ahead: the trainer waits for its rollouts. With 1 a version travels and its groups come back
    within two steps; with 2 there is a step to spare, which pays where a step takes a fraction of a second."""
    publish_every: int = Field(default=1, gt=0)
    """Steps that a version lasts on the workers; sent earlier where `max_staleness` would be exceeded."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    """A request unanswered for so long is asked of another worker."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """For a connection, and for the small routes (health, info)."""
    wait_for_workers_s: float = Field(default=600.0, ge=0)
    """With no worker left, how long to wait for one before the run stops with a checkpoint."""
    heartbeat_s: float = Field(default=5.0, gt=0)
    """How often a worker's health is asked for."""
    evict_after: int = Field(default=3, gt=0)
    """Failures in a row after which a worker is left out until it is healthy, current and passes the canary."""
    return_after_s: float = Field(default=0.5, gt=0)
    """Before a lost worker is tried again; doubled each time, at most `return_at_most_s`."""
    return_at_most_s: float = Field(default=5.0, gt=0)
    """Longest time between two tries."""
    hedge: bool = True
    """Ask an idle worker for a second copy of what another one is slow with; the first answer counts."""
    max_in_flight: int = Field(default=64, gt=0)
    """Groups asked of one worker at a time; those of an engine that samples in batches all go at once."""
    canary_tolerance: float = Field(default=1e-2, gt=0)
    """Largest difference between a worker's and the trainer's log-probabilities of the canary text. 1e-2 suits
    bfloat16; use 1e-4 where both compute in float32."""
    abort_after_s: float = Field(default=120.0, ge=0)
    """A new version waits so long for requests that run under the old one."""
    activate_timeout_s: float = Field(default=300.0, gt=0)
    """For an engine to take a new version up, a restart of it included, once its requests have ended."""
    transfer_timeout_s: float = Field(default=1800.0, gt=0)
    """For one file of weights to arrive."""
    max_weights_bytes: int = Field(default=1 << 37, gt=0)
    """Largest version that is sent; a larger one stops the run before it fills a worker's disk."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_staleness < self.publish_every - 1:
            raise ValueError(
                f"max_staleness {self.max_staleness} refuses what publish_every {self.publish_every} makes: "
                f"versions get {self.publish_every - 1} steps old; set max_staleness to at least "
                f"{self.publish_every - 1}, or publish_every to at most {self.max_staleness + 1}"
            )
        if self.return_at_most_s < self.return_after_s:
            raise ValueError(
                f"return_at_most_s {self.return_at_most_s} is below return_after_s {self.return_after_s}; raise it"
            )
        workers = self.all_workers()
        if not workers:
            raise ValueError("workers is empty; name at least one, as `workers: [http://HOST:PORT]`")
        for what, values in (
            ("name", [one.name for one in workers]),
            ("url", [one.url for one in workers]),
        ):
            if twice := next((one for one in values if values.count(one) > 1), None):
                raise ValueError(f"two workers have the {what} {twice!r}; give each one of its own")
        return self

    def all_workers(self) -> tuple[WorkerNode, ...]:
        """Those that are listed, then one for each host; the shared token file filled in."""
        workers = (*self.workers, *(_worker_on(host) for host in self.hosts))
        return tuple(
            one.model_copy(update={"token_file": one.token_file or self.token_file}) for one in workers
        )


def _worker_on(host: HostConfig) -> WorkerNode:
    address = f"[{host.host}]" if ":" in host.host else host.host
    # A host's own token_file is a path over there.
    return WorkerNode(
        url=f"http://{address}:{host.listen_port}", name=host.title, token_file=host.trainer_token_file
    )


def read_nodes(path: Path) -> NodesConfig:
    """What a ``nodes.yaml`` says; paths in it are relative to it. Raises `UserError`."""
    given = read_yaml(path)
    for unknown in tree.unknown_keys(NodesConfig, given):
        value = shown(tree.lookup(given, unknown))
        raise UserError(
            f"{path}: unknown option {tree.dotted(unknown)} (value {value}); {suggestion(NodesConfig, unknown)}"
        )
    try:
        nodes = NodesConfig.model_validate(given)
    except ValidationError as error:
        raise UserError(f"{path}: {validation_sentence(NodesConfig, error, lambda _: '')}") from None
    own = path.resolve().parent

    def beside(file: Path | None) -> Path | None:
        return None if file is None else own / file.expanduser()

    workers = tuple(one.model_copy(update={"token_file": beside(one.token_file)}) for one in nodes.workers)
    hosts = tuple(
        one.model_copy(update={"trainer_token_file": beside(one.trainer_token_file)}) for one in nodes.hosts
    )
    return nodes.model_copy(
        update={"workers": workers, "hosts": hosts, "token_file": beside(nodes.token_file)}
    )


def read_hosts(path: Path) -> tuple[HostConfig, ...]:
    """The machines of a ``nodes.yaml`` on which workers are to be started. Raises `UserError`."""
    hosts = read_nodes(path).hosts
    if not hosts:
        raise UserError(
            f"{path} has no `hosts`: list the machines on which workers are to be started; workers named by their "
            "URL under `workers` are started by hand"
        )
    return hosts


def token_of(worker: WorkerNode) -> str | None:
    """The worker's bearer token, or None where it has no file. Raises `UserError`."""
    if worker.token_file is None:
        return None
    try:
        token = worker.token_file.expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no plain text"
        raise UserError(
            f"the token file {worker.token_file} of worker {worker.name} cannot be read ({reason}); "
            "write the token that the worker was started with into it"
        ) from None
    if not token or len(token.split()) != 1:
        raise UserError(
            f"the token file {worker.token_file} of worker {worker.name} holds no single word; write the token "
            "that the worker was started with into it"
        )
    return token
