"""Rewards that misbehave, in a module of their own so that worker processes can import it; never imports mlx."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Group


@dataclass(frozen=True)
class Obeys:
    """Does what a completion's text says; its value is the number at the end of the text."""

    name: str = "obeys"
    folder: str = ""
    """Where it leaves a file for each completion that it was asked about."""
    place: ClassVar[str] = "processes"
    takes_time: ClassVar[bool] = True

    def __call__(self, groups: Sequence[Group]) -> np.ndarray:
        return score_each(groups, lambda example, completion: self.one(example.id, completion.text))

    def one(self, row: str, text: str) -> float:
        word, number = text.split()
        if self.folder:
            Path(self.folder, f"{row}-{number}-{time.monotonic_ns()}").touch()
        match word:
            case "sleep":
                time.sleep(600)
            case "stuck":  # in C, with the interpreter's lock held
                re.match(r"(a+)+$", "a" * 60 + "b")
            case "slow":
                time.sleep(0.2)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "once" if len(list(Path(self.folder).glob(f"{row}-{number}-*"))) == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
            case "raise":
                raise ZeroDivisionError("by hand")
            case "user":
                raise UserError("mend it")
            case "mlx":
                return float(sum(one.partition(".")[0] in ("mlx", "mlx_lm") for one in sys.modules))
            case "pid":
                return float(os.getpid())
        return float(number)


@dataclass(frozen=True)
class Plain:
    """The number at the end of the text."""

    name: str = "plain"
    place: ClassVar[str] = "processes"

    def __call__(self, groups: Sequence[Group]) -> np.ndarray:
        return score_each(groups, lambda _, completion: float(completion.text.split()[1]))
