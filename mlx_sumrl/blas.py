"""A fast BLAS for MLX on Linux.

The Linux wheel of MLX is linked against the reference BLAS (3 to 6 GFLOP/s in float32). Loading OpenBLAS into
the process before MLX makes the same calls about 40 times faster, so `mlx_sumrl` does that on import. On macOS
MLX uses Metal and Accelerate and nothing is done here. Never imports mlx.
"""

from __future__ import annotations

import ctypes
import sys

CANDIDATES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so", "libmkl_rt.so.2")
INSTALL_HINT = (
    "install OpenBLAS (Debian, Ubuntu: apt-get install libopenblas0-pthread; "
    "Fedora: dnf install openblas-threads)"
)


def preload() -> str | None:
    """Load the first BLAS found for MLX to use; its file name, or None (not Linux, none there, or too late)."""
    if not sys.platform.startswith("linux") or "mlx.core" in sys.modules:
        return None
    for name in CANDIDATES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None


LOADED: str | None = preload()
