"""What does it cost to send whole weights that moved a step? ``python -m benchmarks.weight_sync [--toy] [--json]``

A model of a real shape with random bfloat16 weights takes one AdamW step of 2e-6 with stochastic rounding, by the
library's own optimiser on random gradients. What changed is sent as a patch; the other side rebuilds the weights,
checks their fingerprint and writes them. Each part in a fresh process; MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import load_now, measured, shown, summary
from benchmarks.shapes import SHAPES, make_shape
from mlx_sumrl.errors import UserError

RATE = 2e-6
MEASURED = ("seconds", "processor", "flushed", "memory")
"""What another process may measure otherwise."""
MB = 1e-6
HELD_EQUAL = (
    f"random bfloat16 weights of size .02; one step of AdamW at {RATE:g}, stochastic rounding, random gradients, all "
    "else as the library has it",
    "rebuilding counts until the folder has its name: reading the base and the patch, decoding, the sha256 of all "
    "weights, writing; then every byte is compared with the trainer's file, beside the clock",
    "memory is the growth of the process's largest resident size, its libraries loaded before",
)
NOT_EQUAL = (
    "both versions are read from the system's file cache, and written into it; the disk's own time is 'flushed'",
    "an engine's reload is measured apart: the MLX engine's; vLLM's is its own",
    "a first step of Adam moves every weight by the rate, later ones move most by less and change fewer values",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.weight_sync",
        question=__doc__,
        options=options,
        measure=measure,
        work=work,
        table=table,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--shape", choices=tuple(SHAPES), help="qwen2.5-0.5b otherwise")
    parser.add_argument("--repeats", type=positive, default=3, help="processes for each part")


def measure(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    shape = asked.shape or ("toy" if asked.toy else "qwen2.5-0.5b")
    report = opened_report("weight_sync", HELD_EQUAL, NOT_EQUAL, shape=shape, repeats=asked.repeats)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"{shape}: making random weights, and one step", file=sys.stderr, flush=True)
        make_shape(folder / "base", shape)
        report["step"] = _done("step", folder)
        for part in ("patch", "rebuild", "reload"):
            results = [_done(part, folder) for _ in range(asked.repeats)]
            quantities = [name for name in MEASURED if name in results[0]]
            report[part] = {name: summary([result[name] for result in results]) for name in quantities}
            report[part] |= {name: value for name, value in results[0].items() if name not in quantities}
            for result in results:
                if result.get("exact") is False:
                    raise UserError(f"{shape}: the rebuilt weights are not those that were sent")
    report["machine_load"] = load_now()
    return report


def _done(part: str, folder: Path) -> dict[str, Any]:
    return measured("benchmarks.weight_sync", {"part": part, "folder": str(folder)})


def work(part: str, folder: str) -> dict[str, Any]:
    """One part, in this process."""
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "step": step,
        "patch": patch,
        "rebuild": rebuild_all,
        "reload": reload,
    }
    return parts[part](Path(folder))


def step(folder: Path) -> dict[str, Any]:
    """One update of every weight, a file at a time; written as the trainer writes its own."""
    import mlx.core as mx

    from mlx_sumrl.config import OptimizerConfig
    from mlx_sumrl.policy.snapshot import write_safetensors
    from mlx_sumrl.training.optimizer import Optimizer

    (folder / "new").mkdir()
    optimizer = Optimizer(OptimizerConfig(kind="adamw", rounding="stochastic"), seed=0)
    kept, values = [], 0
    mx.random.seed(1)
    for file in sorted((folder / "base").iterdir()):
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / "new" / file.name)
            continue
        weights = mx.load(str(file))
        assert isinstance(weights, dict)
        gradients = {
            name: mx.random.normal(array.shape, dtype=mx.bfloat16, scale=1e-3)
            for name, array in weights.items()
        }
        optimizer.reset()  # each weight's first step
        new, done = optimizer.step(weights, gradients, RATE)
        kept.append(done.kept_fraction)
        values += sum(array.size for array in new.values())
        write_safetensors(folder / "new" / file.name, new)
    return {"values": values, "kept_fraction": sum(kept) / len(kept)}


def patch(folder: Path) -> dict[str, Any]:
    """The trainer's side."""
    from cluster.delta import make_patch

    before, started, used = _largest(), time.perf_counter(), time.process_time()
    made = make_patch(folder / "base", folder / "new", folder / "patch")
    return {
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - used,
        "memory": float(_largest() - before),
        "bytes": made.bytes,
        "full_bytes": made.full_bytes,
        "changed_values": round(made.changed, 5),
        "share": round(made.bytes / made.full_bytes, 5),
    }


def rebuild_all(folder: Path) -> dict[str, Any]:
    """The worker's side."""
    from cluster.delta import rebuild

    out = folder / "rebuilt"
    shutil.rmtree(out, ignore_errors=True)
    before, started, used = _largest(), time.perf_counter(), time.process_time()
    rebuild(folder / "base", folder / "patch", out)
    seconds, memory = time.perf_counter() - started, _largest() - before
    processor = time.process_time() - used
    started = time.perf_counter()
    for path in out.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    flushed = time.perf_counter() - started
    names = sorted(path.name for path in (folder / "new").iterdir())
    _, other, odd = filecmp.cmpfiles(folder / "new", out, names, shallow=False)
    return {
        "seconds": seconds,
        "processor": processor,
        "flushed": flushed,
        "memory": float(memory),
        "exact": not other and not odd,
    }


def reload(folder: Path) -> dict[str, Any]:
    """What the MLX engine does with the rebuilt folder."""
    from mlx_sumrl.config import PolicyConfig
    from mlx_sumrl.policy.loading import load_policy
    from mlx_sumrl.policy.snapshot import take_weights

    policy = load_policy(PolicyConfig(model=str(folder / "base"), tuning="full", dtype="bfloat16"))
    started = time.perf_counter()
    take_weights(policy, folder / "rebuilt")
    return {"seconds": time.perf_counter() - started}


def table(report: Report) -> Table:
    """The report for a person: medians, and in brackets the lowest and the highest."""
    sent, rebuilt = report["patch"], report["rebuild"]
    rows = Table(
        "",
        "",
        title=f"{report['shape']}: {report['step']['values'] * MB:.1f} million bfloat16 weights, one step of {RATE:g}",
    )
    rows.add_row("values that changed", f"{sent['changed_values']:.2%}")
    rows.add_row(
        "sent, MB", f"{sent['bytes'] * MB:.1f} of {sent['full_bytes'] * MB:.1f}, {sent['share']:.2%}"
    )
    rows.add_row("patch made, s", shown(sent["seconds"]))
    rows.add_row("sender's memory, MB", shown(sent["memory"], MB, 0))
    rows.add_row("rebuilt, checked, written, s", shown(rebuilt["seconds"]))
    rows.add_row("processor time of that, s", shown(rebuilt["processor"]))
    rows.add_row("receiver's memory, MB", shown(rebuilt["memory"], MB, 0))
    rows.add_row("flushed to the disk, s", shown(rebuilt["flushed"]))
    rows.add_row("every byte the same", "yes")
    rows.add_row("MLX engine's reload, s", shown(report["reload"]["seconds"]))
    return rows


def _largest() -> int:
    """Bytes: the largest resident size of this process so far.

    On Linux ``ru_maxrss`` begins with the size of the process that started this one, whatever became of it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
