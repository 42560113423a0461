"""Seeds for every use of randomness, from the run's one seed."""

from __future__ import annotations

import zlib

import numpy as np


def derived_seed(seed: int, purpose: str, *counters: int) -> int:
    """A seed in [0, 2**31) that depends on all of its arguments and repeats for the same ones."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *counters])
    return int(sequence.generate_state(1)[0]) >> 1
