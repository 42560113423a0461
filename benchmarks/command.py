"""The command line of a measuring program: its options, the worker behind it, a table or one JSON object.

A program brings its question, what it measures and how that is shown; everything else is the same for all. The
module of a program is run twice: as asked for, and with ``--worker TASK`` in each process that measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, RenderableType

from benchmarks.fresh_process import deliver, machine
from mlx_sumrl.errors import UserError
from mlx_sumrl.host_memory import keep_freed_memory

Report = dict[str, Any]


def answered(
    argv: Sequence[str] | None,
    *,
    module: str,
    question: str | None,
    options: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace], Report],
    work: Callable[..., dict[str, Any]],
    table: Callable[[Report], RenderableType],
) -> int:
    """Run a program and print its answer; the exit code.

    ``options`` adds its own to ``--json`` and ``--toy``; ``measure`` makes the report, ``table`` shows it; ``work``
    is what a worker does with the task that it was given, by name.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=str(question).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--toy", action="store_true", help="cases of no size, to see that all works")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options(parser)
    arguments = parser.parse_args(argv)
    try:
        if arguments.worker:
            keep_freed_memory()  # for all that are compared
            deliver(work(**json.loads(arguments.worker)))
            return 0
        report = measure(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        console = Console()
        console.print(table(report))
        for line in closing_lines(report):
            console.print(line, highlight=False, markup=False)
    return 0


def opened_report(
    benchmark: str, held_equal: Sequence[str], not_equal: Sequence[str], **settings: Any
) -> Report:
    """What every report begins with: where it was measured, what was held equal, what was not, its settings."""
    return {
        "benchmark": benchmark,
        "machine": machine(),
        "held_equal": list(held_equal),
        "not_equal": list(not_equal),
        **settings,
    }


def closing_lines(report: Report) -> list[str]:
    """What stands below a table: the machine, what was held equal, what was not."""
    where = report["machine"]
    return [
        f"{where['system']}, {where['cores']} cores, BLAS {where['blas']}, mlx {where['mlx']}, "
        f"mlx-lm {where['mlx_lm']}; load at the start {where['load_at_start']}",
        *(f"equal: {line}" for line in report["held_equal"]),
        "equal: memory that is freed is kept by the process (mlx_sumrl.host_memory), whoever frees it",
        *(f"not equal: {line}" for line in report["not_equal"]),
    ]


def positive(text: str) -> int:
    """A whole number above 0, as an option's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
