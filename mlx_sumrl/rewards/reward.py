"""What a reward is: something with a name that turns P groups of G completions into a [P, G] array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.data.example import Example
from mlx_sumrl.rollouts.types import Completion, Group

Place = Literal["here", "processes", "thread"]
"""Where a reward is computed. ``here``: in the training thread, since it takes no time, or since it computes with MLX.
``processes``: group by group in worker processes, completion by completion; the reward is pickled, and its module
never imports mlx. ``thread``: all groups of a step at once, in one other thread of this process, as it keeps state."""


class Reward(Protocol):
    """Scores completions. Built-in rewards and a user's own function are the same to the training loop.

    One that asks others beside the training also has ``begin(group)``, called as soon as a group is complete, and
    ``close()``.
    """

    @property
    def name(self) -> str:
        """Its name in metrics and gates."""
        ...

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Float64 array of shape [P, G]; NaN where the reward has nothing to say about a completion."""
        ...


def place_of(reward: Reward) -> Place:
    """Its ``place``; ``here`` for one that names none."""
    place: Place = getattr(reward, "place", "here")
    return place


def group_shape(groups: Sequence[Group]) -> tuple[int, int]:
    """Number of prompts P and of completions per prompt G.

    Raises:
        ValueError: no groups, an empty group, or groups of different sizes, which no [P, G] array can hold.
    """
    sizes = sorted({len(group.completions) for group in groups})
    if len(sizes) != 1 or sizes[0] == 0:
        raise ValueError(
            f"rewards need groups of one size and at least one completion each, got {len(groups)} groups "
            f"of sizes {sizes}"
        )
    return len(groups), sizes[0]


def score_each(groups: Sequence[Group], score: Callable[[Example, Completion], float]) -> NDArray[np.float64]:
    """``score`` of every completion on its own, shape [P, G].

    Raises:
        ValueError: as `group_shape`.
    """
    scores_PG = np.empty(group_shape(groups), dtype=np.float64)
    for p, group in enumerate(groups):
        for g, completion in enumerate(group.completions):
            scores_PG[p, g] = score(group.example, completion)
    return scores_PG
