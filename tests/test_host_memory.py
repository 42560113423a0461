"""What is freed stays with the process: page faults of a large allocation made again, counted by the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlx_sumrl.host_memory import keep_freed_memory

PROGRAM = """
import ctypes, resource, sys
from mlx_sumrl.host_memory import keep_freed_memory
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "kept":
    assert keep_freed_memory()
size = 64 << 20
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = c.malloc(size)
    ctypes.memset(array, 1, size)
    c.free(array)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library here is not glibc")
def test_freed_memory_is_not_faulted_in_again() -> None:
    assert faults("as it comes") > 30  # huge pages of 2 MB are the fewest that 64 MB can be
    assert faults("kept") < 10
