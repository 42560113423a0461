"""Is this machine ready to train? ``python -m benchmarks.doctor [--json]``

Invariant: it ends, whatever is broken: what could hang or crash (MLX, the network) runs in a process or
thread that is given up after a while. Exit code 0 when everything that training needs is there, 1 otherwise;
an unreachable hub, a missing WordNet or a slow BLAS are warnings only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from benchmarks.check import Check, output_of, within
from benchmarks.mlx_probe import mlx_checks, mlx_facts
from mlx_sumrl.reporting.memory_estimate import GIB, machine_memory

HUB_SECONDS = 3.0
LOW_DISK = 10 * GIB
LEAST_DISK = GIB
LEAST_MEMORY = 4 * GIB
OLDEST_MACOS = 14
OPTIONAL = {
    "tensorboard": "mlx_sumrl[track]",
    "wandb": "mlx_sumrl[track]",
    "mlx-lm-lora": "mlx_sumrl[bench]",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)

    checks = examine()
    ready = all(check.verdict != "mend" for check in checks)
    if arguments.json:
        print(json.dumps({"ready": ready, "checks": [asdict(check) for check in checks]}, ensure_ascii=False))
    else:
        Console().print(table(checks))
        print("ready to train" if ready else "not ready: see the lines marked mend")
    return 0 if ready else 1


def examine() -> list[Check]:
    """Every check, in the order of the table."""
    return [
        chip(),
        memory(),
        system(),
        python(),
        packages(),
        *mlx_checks(mlx_facts()),
        disk(Path.cwd()),
        hub(),
        wordnet(),
        optional_packages(),
    ]


def table(checks: Sequence[Check]) -> Table:
    """The checks for a person."""
    # fold: a path or an address is shown whole.
    shown = Table("check", Column("found", overflow="fold"), "", Column("what to do", overflow="fold"))
    styles = {"ok": "green", "warn": "yellow", "mend": "bold red"}
    for check in checks:
        verdict = Text(check.verdict, style=styles[check.verdict])
        shown.add_row(check.name, Text(check.found), verdict, Text(check.advice))
    return shown


def chip() -> Check:
    """Processor and cores."""
    name = (
        output_of(["sysctl", "-n", "machdep.cpu.brand_string"]) if sys.platform == "darwin" else _linux_chip()
    )
    found = f"{name or platform.processor() or 'unknown'} ({platform.machine()}), {os.cpu_count()} cores"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return Check(
            "chip", found, "mend", "use an arm64 Python on Apple Silicon (this one is Intel or Rosetta)"
        )
    return Check("chip", found, "ok")


def memory() -> Check:
    """Memory there is and memory that is free."""
    total, free = machine_memory(), int(psutil.virtual_memory().available)
    found = f"{total / GIB:.1f} GB, {free / GIB:.1f} GB free"
    if free < LEAST_MEMORY:
        return Check("memory", found, "warn", "close other programs: a 0.5B model with LoRA wants about 4 GB")
    return Check("memory", found, "ok")


def system() -> Check:
    """The operating system."""
    if sys.platform == "darwin":
        version = platform.mac_ver()[0]
        old = int(version.split(".")[0] or 0) < OLDEST_MACOS
        advice = f"update to macOS {OLDEST_MACOS} or newer, which MLX needs" if old else ""
        return Check("system", f"macOS {version}", "mend" if old else "ok", advice)
    if sys.platform.startswith("linux"):
        return Check("system", platform.platform(), "ok")
    return Check("system", platform.platform(), "mend", "use macOS on Apple Silicon, or Linux")


def python() -> Check:
    """The interpreter."""
    return Check("python", f"{platform.python_version()} ({sys.executable})", "ok")


def packages() -> Check:
    """Whether what mlx_sumrl requires is installed, in versions that it knows."""
    from packaging.requirements import Requirement

    try:
        own = importlib.metadata.version("mlx_sumrl")
        stated = importlib.metadata.requires("mlx_sumrl") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", "mlx_sumrl is not installed", "warn", "pip install -e . in its folder")
    wrong = []
    for line in stated:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, not {requirement.specifier}")
    if wrong:
        return Check("packages", "; ".join(wrong), "mend", "pip install -e . in the folder of mlx_sumrl")
    return Check("packages", f"mlx_sumrl {own} and all that it requires", "ok")


def disk(folder: Path) -> Check:
    """Room for checkpoints."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GB free in {folder}"
    if free < LOW_DISK:
        advice = (
            "free some, or set --runs_dir elsewhere: a 0.5B model's checkpoint with full tuning takes 5 GB"
        )
        return Check("disk", found, "mend" if free < LEAST_DISK else "warn", advice)
    return Check("disk", found, "ok")


def hub() -> Check:
    """Whether models and data can be fetched from the Hugging Face hub."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    advice = "models and data are read from local folders and from what was fetched before"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check("hub", "HF_HUB_OFFLINE is set", "warn", advice)

    def ask() -> Check:
        import httpx

        start = time.perf_counter()
        answer = httpx.head(address, timeout=HUB_SECONDS)
        if answer.is_server_error:
            return Check("hub", f"{address} answered {answer.status_code}", "warn", advice)
        return Check("hub", f"{address} in {time.perf_counter() - start:.1f} s", "ok")

    # httpx's timeout does not bound looking up the name.
    unreachable = Check("hub", f"{address} does not answer", "warn", advice)
    return within(HUB_SECONDS + 1, ask, unreachable)


def wordnet() -> Check:
    """Whether METEOR can be computed."""
    advice = (
        "for METEOR: python -m nltk.downloader wordnet, or set NLTK_DATA to a folder with corpora/wordnet.zip"
    )

    def find() -> Check:
        import nltk

        for name in ("corpora/wordnet", "corpora/wordnet.zip"):
            try:
                return Check("WordNet", str(nltk.data.find(name)), "ok")
            except LookupError:
                continue
        return Check("WordNet", "not found", "warn", advice)

    return within(30, find, Check("WordNet", "the search does not end", "warn", advice))


def optional_packages() -> Check:
    """Packages that add something, and how to get those that are missing."""
    found, missing = [], []
    for name in OPTIONAL:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    extras = " ".join(f"'{extra}'" for extra in dict.fromkeys(OPTIONAL[name] for name in missing))
    advice = f"{', '.join(missing)}: pip install {extras}" if missing else ""
    return Check("optional", ", ".join(found) or "none", "ok", advice)


def _linux_chip() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    # os._exit: a thread that still waits for the network must not hold the process up.
    code = main()
    sys.stdout.flush()
    os._exit(code)
