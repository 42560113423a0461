"""`ScoringPool`: rewards computed in processes of their own while the training thread goes on. Never imports mlx.

Invariant: every group that is submitted gets its answer exactly once, with a number or NaN for each completion and
reward, or an error: whatever becomes of the processes. Where a reward's time-out for a group is over, the completion
that it is at is NaN, and the process is ended and replaced. A completion at which a process died is tried once more;
where that dies too, it is NaN. The group's other completions then have one more chance, and that is all: no group
takes longer than twice its time-outs. A process has one group at a time. After `close`, and after the end of this
process by whatever means, none of them is left.

Processes are started afresh, never forked: MLX's threads and buffers do not survive a fork, and a script without
``if __name__ == "__main__"`` would run again in each.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards.reward import Reward
from mlx_sumrl.rewards.scoring_process import (
    START_S,
    Begun,
    Done,
    Failed,
    Message,
    Ready,
    Scored,
    Task,
    for_the_pipe,
)
from mlx_sumrl.rollouts.types import Group

STARTS = 2
"""Processes in a row that may end before they are ready; then something is wrong with all of them."""


@dataclass(frozen=True, slots=True)
class GroupScores:
    """What R rewards said of the G completions of a group."""

    values_GR: NDArray[np.float64]
    """NaN where one had nothing to say, or was not there in time."""
    timeouts_R: NDArray[np.int64]
    """Completions that were not scored in time."""
    crashes_R: NDArray[np.int64]
    """Completions whose process died, twice."""


class _Job:
    """A group on its way."""

    def __init__(self, group: Group, rewards: Sequence[Reward], timeouts_s: Sequence[float]) -> None:
        self.group, self.rewards, self.timeouts_s = for_the_pipe(group), tuple(rewards), tuple(timeouts_s)
        self.future: Future[GroupScores] = Future()
        self.deaths = 0
        """Of processes that were at the reward that comes next."""
        self.strikes = [0] * len(rewards)
        """Completions of which each reward never spoke."""
        shape = (len(group.completions), len(rewards))
        self.values_GR = np.full(shape, np.nan)
        self.is_open_GR = np.ones(shape, dtype=bool)
        self.timeouts_R, self.crashes_R = np.zeros(shape[1], np.int64), np.zeros(shape[1], np.int64)

    def task(self) -> Task:
        """What is still to be done."""
        still = [
            (r, tuple(map(int, np.flatnonzero(column))))
            for r, column in enumerate(self.is_open_GR.T)
            if any(column)
        ]
        return Task(self.group, self.rewards, self.timeouts_s, tuple(still))

    def give_up(self, reward: int) -> int:
        """Leave the completion that this reward is at missing, and all after it where it is not the first such; how
        many these are."""
        left = np.flatnonzero(self.is_open_GR[:, reward])
        given_up = left if self.strikes[reward] else left[:1]
        self.strikes[reward] += 1
        self.is_open_GR[given_up, reward] = False
        return len(given_up)

    def answer(self) -> None:
        """Nothing is left to be done."""
        if not self.future.cancelled():
            self.future.set_result(GroupScores(self.values_GR, self.timeouts_R, self.crashes_R))


@dataclass(eq=False)
class _Worker:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    ready: bool = False
    job: _Job | None = None
    reward: int | None = None
    """What it is at."""
    deadline: float = field(default_factory=lambda: time.monotonic() + START_S)

    @classmethod
    def start(cls, warm: Sequence[Reward]) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            program = (
                f"import sys; sys.path[:] = {sys.path!r}\n"
                # nltk takes scipy where it finds it, for what nothing here uses: half of a start, and of its memory.
                "sys.modules['scipy'] = None\n"
                f"from mlx_sumrl.rewards.scoring_process import main\nmain({theirs.fileno()}, {os.getpid()})"
            )
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for the trainer, which ends them when its step is done
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        worker = cls(process, Connection(ours.detach()))
        with suppress(OSError):  # dead already, which is seen when it is read from
            worker.pipe.send(tuple(warm))
        return worker

    def end(self) -> int:
        """Its exit code; also of one that does not answer."""
        self.pipe.close()
        self.process.kill()
        return self.process.wait()


class ScoringPool:
    """Scores groups in ``processes`` processes. Starts them in the background; `close` it."""

    def __init__(self, processes: int, warm: Sequence[Reward] = ()) -> None:
        """``warm`` are rewards whose ``warm_up`` a process calls before it takes anything. Raises ValueError for no
        process."""
        if processes < 1:
            raise ValueError(f"a pool of {processes} processes scores nothing")
        self._processes, self._warm = processes, tuple(warm)
        self._workers: list[_Worker] = []
        self._waiting: deque[_Job] = deque()
        self._failed_starts = 0
        self._error: BaseException | None = None
        """What ended the pool."""
        self._lock = threading.Lock()
        self._inbox: list[_Job] = []
        self._closing = False
        self._bell, self._rope = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    def submit(
        self, group: Group, rewards: Sequence[Reward], timeouts_s: Sequence[float]
    ) -> Future[GroupScores]:
        """Begin on a group; may be called from any thread. Does not wait.

        The future raises `UserError` when no process can be started or a reward raises one, `RuntimeError` with the
        traceback for anything else that a reward raises, and `CancelledError` when the pool is closed.
        """
        job = _Job(group, rewards, timeouts_s)
        with self._lock:
            if self._closing:
                job.future.set_exception(self._error or CancelledError("the scoring pool is closed"))
            else:
                self._inbox.append(job)
                self._rope.send_bytes(b"!")
        return job.future

    @property
    def pids(self) -> list[int]:
        """The processes as they are now, for tests and for whoever looks for them."""
        return [worker.process.pid for worker in list(self._workers)]

    def close(self) -> None:
        """End all processes, and give up what is under way; may be called again."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._rope.send_bytes(b"!")
        self._thread.join()

    # All below runs in the pool's own thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
            self._error = CancelledError("the scoring pool was closed")
        except BaseException as error:
            self._error = error
        with self._lock:
            self._closing = True
            left = [*self._inbox, *self._waiting, *(one.job for one in self._workers if one.job)]
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        for job in left:
            job.future.set_exception(self._error)
        self._bell.close()
        self._rope.close()

    def _turn(self) -> None:
        while len(self._workers) < self._processes:
            self._workers.append(_Worker.start(self._warm))
        for worker in list(self._workers):
            if worker.ready and worker.job is None and self._waiting:
                self._give(worker, self._waiting.popleft())
        busy = [one for one in self._workers if not one.ready or one.job is not None]
        left = min((one.deadline for one in busy), default=math.inf) - time.monotonic()
        pipes = {one.pipe: one for one in self._workers}
        heard = wait([self._bell, *pipes], None if left == math.inf else max(left, 0.0))
        if self._bell in heard:
            with self._lock:
                self._bell.recv_bytes()
                self._waiting += self._inbox
                self._inbox.clear()
        for pipe in heard:
            if isinstance(pipe, Connection) and (worker_of := pipes.get(pipe)) is not None:
                self._listen(worker_of)
        now = time.monotonic()
        for worker in list(self._workers):
            if now > worker.deadline and (not worker.ready or worker.job is not None):
                self._out_of_time(worker)

    def _give(self, worker: _Worker, job: _Job) -> None:
        worker.job, worker.reward = job, None
        worker.deadline = math.inf
        try:
            worker.pipe.send(job.task())
        except OSError:
            self._died(worker)

    def _listen(self, worker: _Worker) -> None:
        """All that a process has said."""
        try:
            while worker in self._workers and worker.pipe.poll():
                self._heard(worker, worker.pipe.recv())
        except (EOFError, OSError):
            self._died(worker)

    def _heard(self, worker: _Worker, message: Message) -> None:
        job = worker.job
        match message:
            case Ready():
                worker.ready = True
                self._failed_starts = 0
            case Begun(reward) if job is not None:
                if worker.reward is not None:
                    job.deaths = 0  # those were of another reward
                worker.reward = reward
                worker.deadline = time.monotonic() + job.timeouts_s[reward]
            case Scored(reward, completion, value) if job is not None:
                job.values_GR[completion, reward] = value
                job.is_open_GR[completion, reward] = False
            case Failed(reward, text, is_user_error) if job is not None:
                name = job.rewards[reward].name
                raised = (
                    UserError(text) if is_user_error else RuntimeError(f"reward {name!r} raised:\n{text}")
                )
                job.future.set_exception(raised)
                worker.job = None
            case Done() if job is not None:
                worker.job = None
                job.answer()

    def _out_of_time(self, worker: _Worker) -> None:
        if worker.job is None or worker.reward is None:  # while it started
            self._died(worker)
            return
        worker.job.timeouts_R[worker.reward] += worker.job.give_up(worker.reward)
        self._again(worker.job)
        self._retire(worker)

    def _died(self, worker: _Worker) -> None:
        code = self._retire(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise UserError(
                    f"the processes that score completions end before they begin (exit code {code}): see what they "
                    "said above, or set scoring.processes to 0, which scores in the training thread"
                )
        if worker.job is not None:
            job = worker.job
            job.deaths += 1
            if job.deaths > 1:
                if worker.reward is None:  # it could not even be read
                    job.future.set_exception(
                        RuntimeError("a group could not be read by two processes; see above")
                    )
                    return
                job.crashes_R[worker.reward] += job.give_up(worker.reward)
                job.deaths = 0
            self._again(job)

    def _again(self, job: _Job) -> None:
        if job.is_open_GR.any():
            self._waiting.appendleft(job)
        else:
            job.answer()

    def _retire(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.end()
