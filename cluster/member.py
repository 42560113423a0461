"""`Member`: one worker as the trainer sees it: what it holds, what it was asked, how it has behaved.

Invariant: groups are asked of a member only while it is live (healthy, and the right model), open (no change of
version going on) and at a known version; `Member.lost` ends all three at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.delivery import Delivery
from cluster.throughput import Throughput
from cluster.wire import Draw, Info
from cluster.worker_client import WorkerClient


@dataclass(eq=False)
class Batch:
    """One call of ``sample``, as it is worked on."""

    number: int
    prompts: Sequence[tuple[int, ...]]
    group_size: int
    draw: Draw
    seed: int
    floor: int
    """Oldest version that may sample it."""
    delivery: Delivery
    pending: list[int] = field(default_factory=list)
    """Places that no member has."""
    avoid: dict[int, Member] = field(default_factory=dict)
    """Who failed last with a place."""
    flights: dict[int, list[Flight]] = field(default_factory=dict)
    """Requests under way, by place."""
    done: asyncio.Future[None] | None = None
    """Made when the batch is waited for; ends with it, or with what ends the run."""
    progress_at: float = 0.0
    """When it was last begun, waited for or delivered to."""


@dataclass(eq=False)
class Flight:
    """One request under way."""

    name: str
    """No other request of this run, or of another, is called so."""
    member: Member
    batch: Batch
    places: tuple[int, ...]
    tokens: float
    """Expected."""
    version: int
    trust: asyncio.Event
    """Of the member in that version."""
    started: float
    due: float
    task: asyncio.Task[None] | None = None


@dataclass(eq=False)
class Member:
    """One worker."""

    client: WorkerClient
    throughput: Throughput = field(default_factory=Throughput)
    info: Info | None = None
    live: bool = False
    open: bool = False
    version: int | None = None
    closed_at: float = 0.0
    """When it stopped being open."""
    verified: set[int] = field(default_factory=set)
    """Versions that passed the canary here; what a delta may start from."""
    flights: set[Flight] = field(default_factory=set)
    queue: deque[tuple[Batch, int]] = field(default_factory=deque)
    """Planned for it, and not asked yet."""
    failures: int = 0
    in_a_row: int = 0
    misfits: int = 0
    """Times in a row that it would not do as it was started."""
    suspect: bool = False
    """It failed, and has not been looked at since."""
    last_error: str = "it has not answered yet"
    retry_in: float = 0.0
    """Seconds before it is tried again."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """There is something to do for whoever tends it."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Nothing is asked of it."""
    trust: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its version passed the canary; until then nothing that it samples under it is taken."""

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def name(self) -> str:
        """What metrics and messages call it."""
        return self.client.name

    @property
    def takes_batches(self) -> bool:
        """Its engine samples all prompts of a request as one batch."""
        return self.info is not None and self.info.features.batch

    @property
    def asked_now(self) -> int:
        """Requests under way for the version that it is at, or about to be."""
        return sum(one.version == self.version for one in self.flights)

    def due_in(self, now: float) -> float:
        """Seconds until all that is asked of it should be here."""
        return max((one.due - now for one in self.flights), default=0.0)

    def draw_problem(self, draw: Draw) -> str | None:
        """What is wrong with asking it to draw like that, and the way out; None where it can, or is not known yet."""
        shaped = draw.temperature != 1.0 or draw.top_p < 1.0 or draw.top_k > 0 or draw.min_tokens > 0
        if not shaped or self.info is None or self.info.features.filters:
            return None
        return (
            "gives log-probabilities before temperature and filters, and is asked to draw at temperature "
            f"{draw.temperature:g}, top_p {draw.top_p:g}, top_k {draw.top_k}, min_tokens {draw.min_tokens}: start it "
            "with --engine mlx or vllm; set temperature 1.0 (that of a stage too), top_p 1.0, top_k 0 and min_tokens "
            "0; or take it out of nodes.yaml"
        )

    def at(self, version: int) -> None:
        """It is at this version from now on, which has not passed the canary."""
        self.version, self.trust = version, asyncio.Event()

    def close_gate(self, now: float) -> None:
        """Ask nothing new of it."""
        if self.open:
            self.open, self.closed_at = False, now

    def lost(self, now: float) -> None:
        """It is not there until it has been admitted again."""
        self.close_gate(now)
        self.trust = asyncio.Event()
        self.live, self.version, self.suspect = False, None, False

    def metrics(self) -> dict[str, float]:
        """By the names of the metrics file; version -1 while it has none."""
        return {
            f"cluster/{self.name}/version": float(-1 if self.version is None else self.version),
            f"cluster/{self.name}/tokens_per_second": self.throughput.measured or 0.0,
            f"cluster/{self.name}/in_flight": float(sum(len(one.places) for one in self.flights)),
            f"cluster/{self.name}/failures": float(self.failures),
        }

    def status(self) -> str:
        """For the progress line, as ``mini-2 v12 830/s 3 asked 1 failed``."""
        asked = sum(len(one.places) for one in self.flights)
        held = f"v{self.version}" if self.version is not None and self.live else "away"
        failed = f" {self.failures} failed" if self.failures else ""
        return f"{self.name} {held} {self.throughput.measured or 0.0:,.0f}/s {asked} asked{failed}"
