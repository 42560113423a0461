"""A process that scores: reads tasks from a pipe, writes one score after the other. Never imports mlx.

Invariant: it ends with the process that started it, however that ended. Waiting, it reads the end of the pipe; at
work, a thread sees that its parent has changed; stuck inside of a C function that holds the interpreter's lock, it is
ended by a watchdog that needs no Python.

What comes through the pipe is unpickled: it joins two processes of one run, and nobody else can write to it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from traceback import format_exc
from typing import NamedTuple

from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards.reward import Reward
from mlx_sumrl.rollouts.types import Group

START_S = 120.0
"""Longest time to import what is needed and to load what rewards look things up in."""
GRACE_S = 5.0
"""A process that should have been ended by its parent ends itself so much later."""
LOOK_S = 0.5
"""How often it is looked whether the parent is still there."""


@dataclass(frozen=True, slots=True)
class Task:
    """One group, and what is still to be scored of it."""

    group: Group
    rewards: tuple[Reward, ...]
    timeouts_s: tuple[float, ...]
    """One for each reward."""
    open: tuple[tuple[int, tuple[int, ...]], ...]
    """Reward and its completions, by their places."""


class Ready(NamedTuple):
    """Everything is loaded."""


class Begun(NamedTuple):
    """The clock of this reward starts."""

    reward: int


class Scored(NamedTuple):
    """What a reward said of a completion."""

    reward: int
    completion: int
    value: float


class Failed(NamedTuple):
    """A reward raised something, which is a fault of the program unless it is the user's to mend."""

    reward: int
    message: str
    """A sentence for the user, or a traceback."""
    is_user_error: bool


class Done(NamedTuple):
    """All of a task is scored."""


Message = Ready | Begun | Scored | Failed | Done


def for_the_pipe(group: Group) -> Group:
    """A group without what no reward in another process looks at: the prompt's ids and the log-probabilities."""
    example = replace(group.example, prompt_ids=())
    return Group(example, tuple(replace(completion, logprobs=()) for completion in group.completions))


def main(descriptor: int, parent_pid: int) -> None:
    """Serve the parent at the other end of this socket until it closes it. The first thing that comes are the rewards
    to warm up, then tasks."""
    faulthandler.enable(file=sys.stderr)
    threading.Thread(target=_end_with, args=(parent_pid,), daemon=True).start()
    with Connection(descriptor) as parent:
        try:
            _watched(START_S)
            warm_up(parent.recv())
            faulthandler.cancel_dump_traceback_later()
            parent.send(Ready())
            while True:
                _work(parent.recv(), parent)
        except (EOFError, OSError):  # the parent has closed its end, or is gone
            pass
    os._exit(0)  # nothing to tidy up, and a library's exit handlers may take seconds


def warm_up(rewards: Sequence[Reward]) -> None:
    """Score a made-up completion, so that no time-out counts what is read from disk once."""
    for reward in rewards:
        warm = getattr(reward, "warm_up", None)
        if warm is not None:
            warm()


def _work(task: Task, parent: Connection) -> None:
    example: Example = task.group.example
    for place, completions in task.open:
        parent.send(Begun(place))
        _watched(task.timeouts_s[place] + GRACE_S)
        for at in completions:
            try:
                [[value]] = task.rewards[place]([Group(example, (task.group.completions[at],))])
            except Exception as error:
                told = isinstance(error, UserError)
                parent.send(Failed(place, str(error) if told else format_exc(), told))
                return
            parent.send(Scored(place, at, float(value)))
        faulthandler.cancel_dump_traceback_later()
    parent.send(Done())


def _end_with(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(LOOK_S)
    os._exit(0)


def _watched(seconds: float) -> None:
    """End this process in so long, unless it is called off: done by a thread that the interpreter's lock can't hold."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_NOWHERE)


_NOWHERE = open(os.devnull, "w")  # noqa: SIM115  (faulthandler writes to it by its number, for as long as it lives)
