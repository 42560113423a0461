"""How much memory does a GRPO step need? ``python -m benchmarks.memory --shape qwen2.5-0.5b [--json]``

The peak of one full step in bfloat16, phase by phase, for the shapes of real models with random weights: LoRA or
every weight, moments in 16 or in 8 bits, with a reference or without. Each configuration in a fresh process;
``--all`` measures every one that the other options leave open. GB are 10^9 bytes of what MLX has allocated.

A whole step of 0.5 billion weights takes about 25 minutes on two cores without a GPU, most of it in products of
bfloat16 matrices; memory does not depend on how fast it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import load_now, measured, summaries, summary
from benchmarks.measured_step import (
    PHASES,
    Load,
    Moments,
    Reference,
    Tuning,
    measured_step,
)
from benchmarks.shapes import SHAPES, make_shape
from mlx_sumrl.errors import UserError

GB = 1e9
DAY = 24 * 3600.0
TUNINGS: tuple[Tuning, ...] = ("full", "lora")
MOMENTS: tuple[Moments, ...] = ("bfloat16", "blocks8")
REFERENCES: tuple[Reference, ...] = ("none", "4bit")
TOY = Load(prompts=2, group_size=2, prompt_tokens=8, new_tokens=4)
RESIDENT = ("before", "weights", "trained", "moments", "gradients")
HELD_EQUAL = (
    "random weights in bfloat16 (adapters as the library makes them), gradient checkpointing, AdamW with stochastic "
    "rounding, micro-batches of one group; the library's defaults for all else",
    "every completion has exactly the tokens asked for; all in a micro-batch have an advantage",
    "measured is a second update, when the moments are there already; the peak is reset where a phase begins and "
    "nowhere else, so the largest one is that of the whole step; loading is left out",
)
NOT_EQUAL = (
    "what MLX keeps for reuse after it was freed, the Python process and its libraries are not in these numbers",
)
T = TypeVar("T")


@dataclass(frozen=True)
class Configuration:
    """What is measured, but for the size of the step."""

    shape: str
    tuning: Tuning
    moments: Moments
    reference: Reference

    @property
    def title(self) -> str:
        """In few words."""
        return f"{self.shape}, {self.tuning}, moments {self.moments}, reference {self.reference}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.memory",
        question=__doc__,
        options=options,
        measure=measure,
        work=work,
        table=table,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--shape", choices=tuple(SHAPES), help="qwen2.5-0.5b otherwise")
    parser.add_argument("--tuning", choices=TUNINGS, help="full otherwise")
    parser.add_argument("--moments", choices=MOMENTS, help="bfloat16 otherwise")
    parser.add_argument("--reference", choices=REFERENCES, help="none otherwise")
    parser.add_argument(
        "--all", action="store_true", help="every value of the options above that are not given"
    )
    parser.add_argument("--repeats", type=positive, default=1, help="processes for each configuration")
    for name, default in asdict(Load()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, help=f"{default} otherwise")


def measure(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    load = size_of(asked)
    wanted = configurations(asked, load)
    report = opened_report(
        "memory", HELD_EQUAL, NOT_EQUAL, load=asdict(load), repeats=asked.repeats, configurations=[]
    )
    with tempfile.TemporaryDirectory() as scratch:
        for configuration in wanted:
            folder = Path(scratch) / configuration.shape
            if not folder.is_dir():
                print(f"{configuration.shape}: making random weights", file=sys.stderr)
                make_shape(folder, configuration.shape)
            report["configurations"].append(measure_one(configuration, load, folder, asked.repeats))
    return report


def size_of(asked: argparse.Namespace) -> Load:
    """The size of the step that was asked for."""
    given = {name: getattr(asked, name) for name in asdict(Load())}
    default = asdict(TOY if asked.toy else Load())
    load = Load(**{name: value if (value := given[name]) is not None else default[name] for name in default})
    if load.group_size < 2:
        raise UserError("--group-size 1: a group of 1 has nothing to be compared with; take at least 2")
    return load


def configurations(asked: argparse.Namespace, load: Load) -> list[Configuration]:
    """Those that were asked for, in the order in which they are measured. Raises `UserError`."""
    real = tuple(shape for shape in SHAPES if shape != "toy")
    references = _values(asked.reference, REFERENCES, asked.all)
    shapes = ("toy",) if asked.toy else _values(asked.shape, real, asked.all)
    tunings, moments = _values(asked.tuning, TUNINGS, asked.all), _values(asked.moments, MOMENTS, asked.all)
    every = [Configuration(*one) for one in product(shapes, tunings, moments, references)]
    # Adapters are small and their reference is the model without them: one row says it all.
    return [
        one
        for one in every
        if one.tuning == "full"
        or not asked.all
        or (one.moments, one.reference) == (MOMENTS[0], REFERENCES[0])
    ]


def measure_one(configuration: Configuration, load: Load, folder: Path, repeats: int) -> dict[str, Any]:
    """One configuration, each repeat in a fresh process."""
    task = asdict(configuration) | {"folder": str(folder), "load": asdict(load)}
    results = []
    for _ in range(repeats):
        print(configuration.title, file=sys.stderr, flush=True)
        results.append(measured("benchmarks.memory", task, seconds=DAY, aloud=True))
    for result in results:
        wanted = load.prompts * load.group_size * load.new_tokens
        if result["tokens"] != wanted:
            raise UserError(f"{configuration.title}: {result['tokens']} tokens were sampled, not {wanted}")
    phases = {
        phase["name"]: summaries([result["phases"][place] for result in results], ("seconds", "peak", "kept"))
        for place, phase in enumerate(results[0]["phases"])
    }
    return {
        **asdict(configuration),
        "title": configuration.title,
        "parameters": results[0]["parameters"],
        "phases": phases,
        "peak": summary([result["peak"] for result in results]),
        "resident": {name: results[0][name] for name in RESIDENT},
        "machine_load": load_now(),
    }


def work(
    shape: str, tuning: Tuning, moments: Moments, reference: Reference, folder: str, load: dict[str, int]
) -> dict[str, Any]:
    """One configuration's step in this process."""
    return measured_step(folder, Load(**load), tuning, moments, reference)


def table(report: Report) -> Table:
    """The report for a person: GB, and seconds in brackets; the highest of all repeats."""
    load = report["load"]
    shown_table = Table(
        "",
        "peak GB",
        *(f"{phase}\nGB (s)" for phase in PHASES),
        "there at rest, GB",
        title=f"{load['prompts']} x {load['group_size']} completions of {load['new_tokens']} tokens, "
        f"{load['prompt_tokens']} prompt tokens, bfloat16",
    )
    for one in report["configurations"]:
        phases = [one["phases"][phase] for phase in PHASES]
        shown_table.add_row(
            f"{one['shape']}\n{one['tuning']}, {one['moments']}\nreference {one['reference']}",
            _gb(one["peak"]["highest"]),
            *(f"{_gb(phase['peak']['highest'])}\n({phase['seconds']['median']:.1f})" for phase in phases),
            "\n".join(f"{name} {_gb(one['resident'][name])}" for name in ("weights", "moments", "gradients")),
        )
    return shown_table


def _gb(count: float) -> str:
    return f"{count / GB:.3f}"


def _values(given: T | None, known: tuple[T, ...], every: bool) -> tuple[T, ...]:
    return (given,) if given is not None else known if every else known[:1]


if __name__ == "__main__":
    sys.exit(main())
