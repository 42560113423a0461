"""`Delivery`: the account of one batch. `Totals`: that of a run.

Invariant: asked = delivered + open, place by place; a place is delivered once, by a group of its own prompt, and
what comes for it again is counted and dropped. `Delivery.closed` asserts that nothing is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from cluster.wire import GroupReply, prompt_fingerprint


@dataclass
class Totals:
    """Groups, since the run began."""

    asked: int = 0
    delivered: int = 0
    """Handed to the training loop."""
    requeued: int = 0
    """Asked again, for whatever reason: ``failed`` and ``stale`` together."""
    failed: int = 0
    """Asked again after an error, a time-out or nonsense."""
    stale: int = 0
    """Asked again because the policy had moved on too far."""
    hedged: int = 0
    """Second copies asked for."""
    duplicates: int = 0
    """Answers that came after another one; dropped."""
    discarded: int = 0
    """Asked for ahead, and then not wanted."""

    @property
    def lost(self) -> int:
        """Asked, and neither delivered nor discarded; 0 whenever no batch is open."""
        return self.asked - self.delivered - self.discarded

    def metrics(self) -> dict[str, float]:
        """By the names of the metrics file."""
        counts = {f"cluster/{one.name}": float(getattr(self, one.name)) for one in fields(self)}
        return {**counts, "cluster/lost": float(self.lost)}


@dataclass(frozen=True, slots=True)
class Delivered:
    """One group, with what it was sampled under."""

    group: GroupReply
    version: int
    worker: str


@dataclass
class Delivery:
    """Which places of a batch are still open."""

    prompts: Sequence[Sequence[int]]
    totals: Totals
    done: dict[int, Delivered] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fingerprints = [prompt_fingerprint(prompt) for prompt in self.prompts]
        self.totals.asked += len(self.prompts)

    @property
    def whole(self) -> bool:
        """Every place is delivered."""
        return len(self.done) == len(self.prompts)

    def take(self, place: int, delivered: Delivered) -> bool:
        """Keep the first group of a place; False for any after it."""
        assert delivered.group.prompt == self.fingerprints[place], (
            "a group would be delivered to another's prompt"
        )
        if place in self.done:
            self.totals.duplicates += 1
            return False
        self.done[place] = delivered
        return True

    def too_old(self, floor: int) -> list[int]:
        """Places whose group is older than ``floor``, open again from now on."""
        places = [place for place, one in self.done.items() if one.version < floor]
        for place in places:
            del self.done[place]
        self.gone_stale(len(places))
        return sorted(places)

    def gone_stale(self, places: int) -> None:
        """So many places are asked again because what was, or would be, delivered is too old."""
        self.totals.stale += places
        self.totals.requeued += places

    def failed(self, places: int) -> None:
        """So many open places are asked again."""
        self.totals.failed += places
        self.totals.requeued += places

    def closed(self) -> list[Delivered]:
        """All groups in the order of the prompts."""
        assert sorted(self.done) == list(range(len(self.prompts))), "a batch is closed with places open"
        groups = [self.done[place] for place in range(len(self.prompts))]
        assert [one.group.prompt for one in groups] == self.fingerprints
        self.totals.delivered += len(groups)
        return groups

    def discarded(self) -> None:
        """Nobody wants this batch any more."""
        self.totals.discarded += len(self.prompts)
