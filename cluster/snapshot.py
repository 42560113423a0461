"""`Snapshot`: one version of the policy as it leaves the trainer, and what it must answer elsewhere.

Invariant: it is taken while the weights stand still and does not change afterwards, so that what is sent, what is
activated and what the canary is held against are the same policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Snapshot:
    """A version's files and its canary."""

    version: int
    kind: Literal["adapter", "full"]
    """`adapter`: a PEFT folder. `full`: safetensors of all weights, as Hugging Face lays them out."""
    folder: Path
    """Plain files, all of which are sent; it belongs to the sampler from now on, which removes it in the end."""
    canary_logprobs: tuple[float, ...]
    """log p of every canary token but the first, at temperature 1, unfiltered."""
    greedy_ids: tuple[int, ...] = ()
    """What the policy says after the canary, most likely token by token: for engines that cannot score a text."""
    greedy_logprobs: tuple[float, ...] = ()
    """log p of each of them at temperature 1."""


@dataclass(frozen=True)
class Canary:
    """A fixed text."""

    token_ids: tuple[int, ...]
    """Two at least."""
    stop_ids: tuple[int, ...]
    """The policy's, for the greedy form."""
