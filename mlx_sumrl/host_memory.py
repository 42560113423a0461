"""Memory that one step frees is kept for the next, where MLX's arrays come from the C library's allocator.

glibc takes each large array from the system and hands it back when it is freed, so that every array of every step
is made of pages that the system has to clear first: measured, an elementwise operation on 10 MB took 5 to 18 times
as long, and a training step a sixth longer. MLX has a cache of its own, of 32 MB on a CPU. On a Mac, MLX's arrays
are Metal buffers and nothing is done here. Never imports mlx.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt (malloc.h)."""
LARGEST_KEPT = 1 << 30
"""Bytes: an array, or an end of the heap, that is larger goes back to the system."""


def keep_freed_memory() -> bool:
    """Ask the C library for it; False where that is not glibc. The process's peak stays what it was (measured)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    done = [mallopt(option, ctypes.c_int(LARGEST_KEPT)) for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)]
    return done == [1, 1]
