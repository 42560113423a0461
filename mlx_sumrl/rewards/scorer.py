"""`Scorer`: the rewards of a stage, computed beside the training where they take time. Never imports mlx.

Invariant: `Scorer.scores` says what `RewardSet.score` says of the same groups, to the bit, whatever was begun before
and wherever it was computed; only a completion that was not scored in time is missing (NaN). What was begun and is
never asked for is forgotten.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import ScoringConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards.own_thread import OwnThread
from mlx_sumrl.rewards.pool import GroupScores, ScoringPool
from mlx_sumrl.rewards.reward import Place, Reward, group_shape, place_of
from mlx_sumrl.rewards.scoring import RewardSet, Scores
from mlx_sumrl.rollouts.types import Group

MOST_PROCESSES = 4
KEPT_STEPS = 16
"""Steps after which a group that was begun and not asked for is forgotten."""

Key = tuple[Any, ...]
"""What two groups have in common that get the same scores."""


@dataclass(frozen=True, slots=True)
class _Begun:
    group: Group
    """Kept, so that no other example gets its `id`."""
    scores: Future[GroupScores]
    step: int


class Scorer:
    """Scores a stage's groups as they come. Entered as a context manager, it has processes and, left, ends them; as it
    is it scores in the calling thread.

    They are started in the background where a reward is worth it: ROUGE alone takes less time than a process
    takes memory.
    """

    def __init__(self, rewards: RewardSet, scoring: ScoringConfig) -> None:
        self.rewards = rewards
        self._timeouts_s = rewards.timeouts_s or (float("inf"),) * len(rewards.rewards)
        self._pooled = self._at("processes")
        self._processes = _processes(scoring, [rewards.rewards[r] for r in self._pooled])
        self._pool: ScoringPool | None = None
        self._thread = OwnThread[NDArray[np.float64]]("rewards")
        self._begun: dict[Key, _Begun] = {}
        self._lock = threading.Lock()
        self._step = 0
        self._report: dict[str, float] = {}

    @property
    def pool(self) -> ScoringPool | None:
        """The processes, where there are any."""
        return self._pool

    def begin(self, group: Group) -> None:
        """A group is complete, and `scores` will be asked for it: from any thread, and without waiting."""
        for reward in self.rewards.rewards:
            if (begins := getattr(reward, "begin", None)) is not None:  # it asks others, beside the training
                begins(group)
        if self._pool is None:
            return
        key = _key(group)
        with self._lock:
            if key not in self._begun:
                self._begun[key] = _Begun(group, self._submitted(group), self._step)

    def under_way(self) -> list[Future[GroupScores]]:
        """What was begun in processes and not asked for yet."""
        with self._lock:
            return [one.scores for one in self._begun.values()]

    def scores(self, groups: Sequence[Group]) -> Scores:
        """Of every completion, by every reward; waits for what is under way, and begins what is not.

        Raises:
            UserError: a reward had no score in time for any completion, or a user's function took too long or
                returned something unusable.
            ValueError: as `RewardSet.score`.
        """
        started = time.perf_counter()
        shape = group_shape(groups)
        said: list[NDArray[np.float64] | None] = [None] * len(self.rewards.rewards)
        for group in groups:
            self.begin(group)
        waited_for = {r: self._handed_over(self.rewards.rewards[r], groups) for r in self._at("thread")}
        for r in self._at("here") if self._pool else (*self._at("here"), *self._pooled):
            said[r] = self.rewards.rewards[r](groups)
        self._report = {}
        if self._pool is not None:
            for r, values_PG in zip(self._pooled, self._gathered(groups), strict=True):
                said[r] = values_PG
        for r, future in waited_for.items():
            said[r] = self._in_time(r, future)
        scores = self.rewards.combined([one for one in said if one is not None], shape)
        self._report["time/score"] = time.perf_counter() - started
        return scores

    def report(self) -> dict[str, float]:
        """Metrics of the last `scores`: ``time/score``, the seconds that it took; where there are any,
        ``reward/NAME/timeouts`` and ``reward/NAME/crashes``, completions without a score for that reason."""
        return dict(self._report)

    def close(self) -> None:
        """End what is under way; may be called again."""
        if self._pool is not None:
            self._pool.close()
        self._thread.close()
        for reward in self.rewards.rewards:
            if (close := getattr(reward, "close", None)) is not None:
                close()

    def __enter__(self) -> Self:
        if self._processes:
            self._pool = ScoringPool(self._processes, [self.rewards.rewards[r] for r in self._pooled])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _at(self, place: Place) -> list[int]:
        return [r for r, reward in enumerate(self.rewards.rewards) if place_of(reward) == place]

    def _submitted(self, group: Group) -> Future[GroupScores]:
        assert self._pool is not None
        pooled = [self.rewards.rewards[r] for r in self._pooled]
        return self._pool.submit(group, pooled, [self._timeouts_s[r] for r in self._pooled])

    def _gathered(self, groups: Sequence[Group]) -> list[NDArray[np.float64]]:
        """What the processes say, [P, G] for each of their rewards."""
        with self._lock:
            begun = [self._begun[_key(group)] for group in groups]
        answers = [one.scores.result() for one in begun]
        with self._lock:
            for group in groups:
                self._begun.pop(_key(group), None)
            self._step += 1
            for key in [key for key, one in self._begun.items() if one.step + KEPT_STEPS < self._step]:
                del self._begun[key]
        completions = sum(len(group.completions) for group in groups)
        for i, r in enumerate(self._pooled):
            timeouts = int(sum(one.timeouts_R[i] for one in answers))
            crashes = int(sum(one.crashes_R[i] for one in answers))
            self._note_missing(r, timeouts, crashes, completions)
        return [np.stack([one.values_GR[:, i] for one in answers]) for i in range(len(self._pooled))]

    def _note_missing(self, r: int, timeouts: int, crashes: int, completions: int) -> None:
        name = self.rewards.names[r]
        if timeouts == completions:
            raise UserError(
                f"reward {name!r} scored none of a step's {completions} completions within its time-out of "
                f"{self._timeouts_s[r]:g} s; raise its timeout_s, or leave it out"
            )
        if crashes == completions:
            raise UserError(
                f"reward {name!r} ended its process on each of a step's {completions} completions; leave it out"
            )
        if timeouts:
            self._report[f"reward/{name}/timeouts"] = float(timeouts)
        if crashes:
            self._report[f"reward/{name}/crashes"] = float(crashes)

    def _handed_over(self, reward: Reward, groups: Sequence[Group]) -> Future[NDArray[np.float64]]:
        return self._thread.submit(lambda: reward(groups))

    def _in_time(self, r: int, future: Future[NDArray[np.float64]]) -> NDArray[np.float64]:
        limit = self._timeouts_s[r]
        try:
            return future.result(None if limit == float("inf") else limit)
        except TimeoutError:
            if future.done():  # its own
                raise
            reward = self.rewards.rewards[r]
            where = getattr(reward, "location", reward.name)
            raise UserError(
                f"reward function {where!r} has not returned after {limit:g} s, and a function cannot be ended; raise "
                f"the timeout_s of reward {reward.name!r}, or mend it"
            ) from None


def _processes(scoring: ScoringConfig, pooled: Sequence[Reward]) -> int:
    """How many are worth it."""
    if not pooled:
        return 0
    if scoring.processes is not None:
        return scoring.processes
    if not any(getattr(reward, "takes_time", False) for reward in pooled):
        return 0
    return min(os.cpu_count() or 1, MOST_PROCESSES)


def _key(group: Group) -> Key:
    said = ((one.token_ids, one.text, one.finish_reason, one.length) for one in group.completions)
    return (id(group.example), *said)
