"""How often is a summary as long as asked, by prompt or by training? ``python -m benchmarks.length_pass_rate``

    python -m benchmarks.length_pass_rate --model M --adapter A --data rows.jsonl --targets 16,32,64,128
    python -m benchmarks.length_pass_rate --model runs/NAME/export/model --base BASE --data rows.jsonl

Prompt-only is the untrained model (``--base``; with an adapter, the model without it), told the length in the
instruction; trained is the model with its adapter, or the exported one. Both answer the same prompts, greedily, each in
a process of its own, once per target; every tolerance is counted on the same answers.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from rich.table import Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import measured
from benchmarks.length_shares import Answer, Tolerance, pass_rates
from mlx_sumrl.config import (
    DEFAULT_DTYPE,
    DataConfig,
    Dtype,
    GrammarConfig,
    LengthConfig,
    PolicyConfig,
    TinyModelConfig,
)
from mlx_sumrl.data.examples import config_rows, load_examples
from mlx_sumrl.data.grammar import make_posts
from mlx_sumrl.data.prompting import as_trained
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.evaluate import answered as answers_of
from mlx_sumrl.policy.loading import load_policy, model_folder
from mlx_sumrl.policy.tiny import make_tiny_model
from mlx_sumrl.rollouts import LocalSampler, Sampling

MODULE = "benchmarks.length_pass_rate"
PROMPT_ONLY, TRAINED, ALONE = "prompt-only", "trained", "as it is"
SECONDS = 4 * 3600.0
"""A model's answers to all targets take at most this long."""
SEED = 0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Asked:
    """What both models are asked, as plain values for another process."""

    data: dict[str, Any]
    targets: list[int]
    longest: int
    """Beyond the target: the largest tolerance, in tokens."""
    dtype: Dtype
    batch_size: int


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv, module=MODULE, question=__doc__, options=options, measure=measure, work=work, table=table
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Its own."""
    data = DataConfig()
    parser.add_argument(
        "--model", help="the trained model, a folder or a Hugging Face id; or its base, with --adapter"
    )
    parser.add_argument("--adapter", help="an mlx_lm adapter folder on top of the model")
    parser.add_argument("--base", help="the untrained model; the model without its adapter otherwise")
    parser.add_argument("--targets", type=_targets, default=[16, 32, 64, 128], help="16,32,64,128 otherwise")
    parser.add_argument(
        "--tolerances",
        type=_tolerances,
        default=_tolerances("0,2,5,8%"),
        help="tokens, or percent of the target, rounded down; 0,2,5,8%% otherwise",
    )
    parser.add_argument("--data", help="held-out rows; posts from the small grammar otherwise")
    parser.add_argument("--rows", type=positive, default=100, help="the first ones, 100 otherwise")
    parser.add_argument("--document-column", help="as the model's folder says, or `document`")
    parser.add_argument("--reference-column", help="as the model's folder says, or `summary`")
    parser.add_argument(
        "--instruction", help=f"as the model's folder says, or {data.instruction!r}".replace("%", "%%")
    )
    parser.add_argument(
        "--dtype", choices=get_args(Dtype), default=DEFAULT_DTYPE, help=f"{DEFAULT_DTYPE} otherwise"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=32, help="prompts decoded at once, 32 otherwise"
    )


def measure(arguments: argparse.Namespace) -> Report:
    """Both models' answers, and what they come to."""
    if not arguments.toy:
        return compared(arguments, arguments.model)
    with TemporaryDirectory() as folder:
        posts = make_posts(40, 1, SEED)[0]
        tiny = TinyModelConfig(vocabulary=320, hidden_size=32, layers=1, heads=2, context=256)
        make_tiny_model(Path(folder) / "tiny", tiny, [post["document"] for post in posts], SEED)
        arguments.rows, arguments.targets, arguments.dtype = min(arguments.rows, 4), [4, 8], "float32"
        arguments.base = model = str(Path(folder) / "tiny")
        return compared(arguments, model)


def compared(arguments: argparse.Namespace, model: str | None) -> Report:
    """The report. Raises `UserError`."""
    if model is None:
        raise UserError("--model is missing: name a model folder or a Hugging Face id, or try it with --toy")
    data = _data(arguments, model)
    asked = Asked(
        data.model_dump(),
        arguments.targets,
        max(one.tokens(target) for one in arguments.tolerances for target in arguments.targets),
        arguments.dtype,
        arguments.batch_size,
    )
    base = arguments.base or (model if arguments.adapter else None)
    config_rows(data, "evaluation", SEED)  # what is wrong with them is said before a process is started
    for one in filter(None, (base, model)):
        model_folder(one)
    policies = {PROMPT_ONLY: (base, None)} if base else {}
    policies[TRAINED if base else ALONE] = (model, arguments.adapter)
    found = {
        name: measured(MODULE, {"model": one, "adapter": adapter, "asked": vars(asked)}, SECONDS, aloud=True)
        for name, (one, adapter) in policies.items()
    }
    told = "{target_length}" in data.instruction
    not_equal = (
        [] if told else ["what is asked: the instruction has no {target_length}, so no length is told"]
    )
    if not base:
        not_equal.append("there is no untrained model to compare with: name it by --base")
    answers = {
        name: {int(target): [Answer(*one) for one in listed] for target, listed in result["answers"].items()}
        for name, result in found.items()
    }
    return opened_report(
        MODULE,
        [
            "the same prompts but for the length in them, greedy, the same most tokens",
            "answers for all tolerances",
        ],
        not_equal,
        models={name: {"model": one, "adapter": adapter} for name, (one, adapter) in policies.items()},
        data=arguments.data or "the grammar",
        instruction=data.instruction,
        rows=max(result["rows"] for result in found.values()),
        confidence=CONFIDENCE,
        dtype=arguments.dtype,
        targets=pass_rates(answers, arguments.tolerances, CONFIDENCE),
    )


def work(model: str, adapter: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    """One model's answers: per target, the length in tokens and whether it stopped by itself, row by row."""
    given = Asked(**asked)
    policy = load_policy(PolicyConfig(model=model, dtype=given.dtype), adapter=adapter, trained=False)
    sampler = LocalSampler(policy, given.batch_size)
    found: dict[str, list[tuple[str, int, bool]]] = {}
    for target in given.targets:
        # What is longer than any tolerance allows is known to be wrong; half as much again shows by how much.
        most = max(target + given.longest + 1, math.ceil(1.5 * target) + 1)
        data = DataConfig(**given.data)
        room = policy.room_for_prompt(data.max_prompt_tokens, most)
        data = data.model_copy(update={"max_prompt_tokens": room})
        rows = config_rows(data, "evaluation", SEED)
        assert rows is not None
        examples = load_examples(rows, data, policy.tokenizer, target, "evaluation").examples
        groups = answers_of(sampler, examples, Sampling(0.0, max_tokens=most), given.batch_size)
        print(f"{model} {adapter or ''}: {len(groups)} summaries of {target} tokens", file=sys.stderr)
        found[str(target)] = [
            (group.example.id, group.completions[0].length, group.completions[0].finish_reason == "stop")
            for group in groups
        ]
    return {"answers": found, "rows": len(examples)}


def table(report: Report) -> Table:
    """A line for each target and tolerance; percent."""
    names = list(report["models"])
    shown = Table(title=f"{report['rows']} rows of {Path(report['data']).name}: within, % (95 %)")
    for column in ("target", "±", *names, "difference", "p"):
        shown.add_column(column, justify="right", no_wrap=True)
    for target in report["targets"]:
        for place, one in enumerate(target["tolerances"]):
            cells = [_percent(one["within"][name]) for name in names]
            change = one.get("difference")
            cells += [_percent(change, "+"), _p(change["p_holm"])] if change else ["-", "-"]
            shown.add_row(*("" if place else str(target["target"]), one["said"]), *cells, end_section=False)
        lengths = [
            f"{target['lengths'][name]['mean']:.1f} ± {target['lengths'][name]['spread']:.1f}"
            for name in names
        ]
        shown.add_row("", "tokens", *lengths, "", "", end_section=True)
    return shown


def _data(arguments: argparse.Namespace, model: str) -> DataConfig:
    """How both are asked: as given, as the trained model was, or by default; its unit is tokens."""
    named = {
        "document_column": arguments.document_column,
        "reference_column": arguments.reference_column,
        "instruction": arguments.instruction,
        "evaluation": arguments.data,
    }
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    given["evaluation_rows"] = arguments.rows
    if arguments.data is None:
        given["grammar"] = GrammarConfig(train_posts=1, evaluation_posts=arguments.rows)
    if "{document}" not in given.get("instruction", "{document}"):
        raise UserError(f"--instruction {arguments.instruction!r} has no {{document}}, where the text goes")
    data, _ = as_trained(model, DataConfig(**given), LengthConfig())
    return data.asking_in("tokens")


def _targets(text: str) -> list[int]:
    return [positive(one) for one in text.split(",")]


def _tolerances(text: str) -> list[Tolerance]:
    given = [Tolerance.read(one) for one in text.split(",")]
    exact = Tolerance(0)
    return given if exact in given else [exact, *given]


def _percent(share: dict[str, float], sign: str = "") -> str:
    low, high = (100 * share[end] for end in ("low", "high"))
    return f"{100 * share['share']:{sign}.1f} ({low:{sign}.0f} to {high:{sign}.0f})"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    sys.exit(main())
