"""What MLX can do on this machine, asked in a process of its own: a broken driver may crash or hang it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.check import Check, first_line, output_of
from benchmarks.products import product_rates
from mlx_sumrl import blas
from mlx_sumrl.reporting.memory_estimate import GIB

PROBE_SECONDS = 90.0
"""The first compiled function on a CPU calls the C++ compiler, which takes seconds."""
SLOW_GFLOPS = 20.0
"""The reference BLAS does 3 to 6 in float32, OpenBLAS on two cores 160 and more."""
SIZE = 768
MEASURE_SECONDS = 1.0
MARK = "FACTS"


def main() -> None:
    """Print the facts as one JSON line; runs in the child process."""
    from importlib.metadata import version

    import mlx.core as mx

    facts: dict[str, Any] = {
        "version": version("mlx"),
        "device": str(mx.default_device()),
        "blas": blas.LOADED,
    }
    facts["metal"], facts["cuda"] = mx.metal.is_available(), mx.cuda.is_available()
    facts["info"] = {
        name: value for name, value in mx.device_info().items() if isinstance(value, int | float | str)
    }

    facts["gflops"] = max(product_rates(SIZE, MEASURE_SECONDS))

    try:
        x = mx.arange(8).astype(mx.float32)
        mx.eval(mx.compile(lambda x: mx.exp(x) * 2 + mx.sin(x))(x))
        facts["compiled"] = None
    except Exception as error:
        facts["compiled"] = first_line(error)
    print(MARK + json.dumps(facts))


def mlx_facts(seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """What MLX says of itself and how fast it is; ``{"error": ...}`` when it does not answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks.mlx_probe import main; main()"],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:.0f} s"}
    except OSError as error:
        return {"error": first_line(error)}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            facts: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return facts
    complaint = done.stderr.strip().splitlines()
    return {"error": complaint[-1] if complaint else f"ended with code {done.returncode}"}


def mlx_checks(facts: dict[str, Any]) -> list[Check]:
    """Version and device, memory the GPU may use, matrix products, and the compiler."""
    if "error" in facts:
        package = "mlx" if sys.platform == "darwin" else "'mlx[cpu]'"
        return [
            Check("mlx", facts["error"], "mend", f"pip install --force-reinstall {package}, then try again")
        ]
    backend = "Metal" if facts["metal"] else "CUDA" if facts["cuda"] else "CPU"
    gpu = "cpu" not in facts["device"].lower()
    checks = [Check("mlx", f"{facts['version']}, {backend}, default {facts['device']}", "ok")]
    if sys.platform == "darwin" and not facts["metal"]:
        checks = [Check("mlx", checks[0].found, "warn", "no Metal: training runs on the CPU, far slower")]
    if facts["metal"]:
        checks.append(_working_set(facts["info"]))
    checks.append(_products(facts, gpu))
    checks.append(_compiler(facts, gpu))
    return checks


def _working_set(info: dict[str, Any]) -> Check:
    recommended = int(info.get("max_recommended_working_set_size", 0))
    wired = output_of(["sysctl", "-n", "iogpu.wired_limit_mb"])
    limit = f", wired limit {wired} MB" if wired not in ("", "0") else ", wired limit as the system sets it"
    return Check("gpu memory", f"recommended working set {recommended / GIB:.1f} GB{limit}", "ok")


def _products(facts: dict[str, Any], gpu: bool) -> Check:
    found = f"{facts['gflops']:.0f} GFLOP/s in float32"
    if gpu:
        return Check("matrix products", found, "ok")
    found += f" ({facts['blas'] or 'the BLAS that MLX brings'})"
    if facts["gflops"] < SLOW_GFLOPS:
        advice = f"{blas.INSTALL_HINT}: up to 40 times faster" if sys.platform.startswith("linux") else ""
        return Check("matrix products", found, "warn", advice)
    return Check("matrix products", found, "ok")


def _compiler(facts: dict[str, Any], gpu: bool) -> Check:
    if facts["compiled"] is None:
        path = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++") or "not needed"
        return Check("mx.compile", "works" if gpu else f"works ({path})", "ok")
    advice = "install a C++ compiler (Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install)"
    return Check("mx.compile", facts["compiled"].splitlines()[0], "mend", advice)
