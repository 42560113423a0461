"""A large model on a small laptop: in few bits, adapters on its last layers, and a measured difference.

    python -m recipes.small_laptop --config recipes/configs/xsum_phi3_qlora.yaml
    python -m recipes.small_laptop --policy.model M --data.train rows.jsonl --data.evaluation held.jsonl --sft.steps 100
    python -m recipes.small_laptop --resume runs/small_laptop

quantise -> measure -> train adapters, layers recomputed -> fuse -> measure the fused model -> the difference of each
metric with its interval. What is on disk is not done again.
"""

from __future__ import annotations

import gc
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from mlx_sumrl.config import PolicyConfig, SmallLaptopConfig
from mlx_sumrl.data.examples import config_rows, load_examples
from mlx_sumrl.evaluation.evaluate import evaluate
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.evaluation.statistics import Difference, compare
from mlx_sumrl.options.command_line import exit_code_of, parse_command
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.quantizing import quantize
from mlx_sumrl.reporting.progress import Progress, make_progress
from mlx_sumrl.reporting.report.run_report import leave_report
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.rollouts import LocalSampler, Sampling
from mlx_sumrl.training.supervised_preparation import prepare_sft
from recipes.exporting import begin, export, exported_step, how_to_share, write_cards
from recipes.fine_tuned import fine_tuned
from recipes.opened_run import opened

DESCRIPTION = "Quantise a model, train adapters on it, fuse them, and measure what that changed."
DEFAULTS = {"policy": {"lora": {"layers": 8}, "gradient_checkpointing": True}, "sft": {"steps": 100}}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do the job."""
    command = parse_command(
        SmallLaptopConfig,
        argv,
        prog="python -m recipes.small_laptop",
        description=DESCRIPTION,
        defaults=DEFAULTS,
    )
    config, run = opened(command, SmallLaptopConfig)
    with run, make_progress() as progress:
        try:
            the_job(config, run, progress)
        except KeyboardInterrupt:
            progress.finish()
            again = f"python -m recipes.small_laptop --resume {shlex.quote(str(run.path))}"
            print(f"stopped; go on with: {again}", file=sys.stderr)
            raise


def the_job(config: SmallLaptopConfig, run: RunFolder, progress: Progress) -> None:
    """The job, top to bottom."""
    quantized(config, run, progress)
    prepared = prepare_sft(config.on_base(run.path), run.path, progress.note)
    policy = prepared.policy
    begin(policy, config, run, {"train": len(prepared.train), "evaluation": len(prepared.held_out)})

    before = measured("before", config, run, policy, progress)
    _, step = fine_tuned(config, prepared, run, progress)

    fused = run.path / "export" / "model"
    if exported_step(run.path) != step or not fused.is_dir():
        export(policy, config, run.path, step)
    del policy, prepared  # the fused model is measured by itself
    gc.collect()
    mx.clear_cache()

    after = measured("after", config, run, fused, progress)
    options = config.comparison
    differences = compare(
        before, after, resamples=options.resamples, confidence=options.confidence, seed=config.seed
    )
    run.write_json("evaluation/difference.json", {name: asdict(one) for name, one in differences.items()})
    exported = write_cards(config, run.path, step)  # again, with what was measured after
    page = leave_report(run.path, config.report, progress.note)
    report(config, run, len(after.rows), differences, exported)
    if page is not None:
        print(f"report {page}")


def quantized(config: SmallLaptopConfig, run: RunFolder, progress: Progress) -> None:
    """The copy in few bits, below the run's folder."""
    folder = run.path / config.base
    if folder.is_dir():
        return
    mx.reset_peak_memory()
    assert config.policy.model is not None  # the config has checked it
    made = quantize(
        config.policy.model,
        folder,
        bits=config.quantize.bits,
        group_size=config.quantize.group_size,
        trust_remote_code=config.policy.trust_remote_code,
    )
    sizes = {"bytes_before": made.bytes_before, "bytes_after": made.bytes_after}
    run.write_json("evaluation/quantized.json", {**sizes, "memory_peak_gb": mx.get_peak_memory() / 1e9})
    progress.note(
        f"quantised: {made.bytes_before / 1e6:,.1f} MB of weights are {made.bytes_after / 1e6:,.1f} MB in "
        f"{config.quantize.bits} bits"
    )


def measured(
    name: str, config: SmallLaptopConfig, run: RunFolder, model: Policy | Path, progress: Progress
) -> Evaluation:
    """The held-out rows' summaries and scores, greedily; read back when the run has them already."""
    file = run.path / "evaluation" / f"{name}.json"
    if file.is_file():
        return Evaluation.from_json(json.loads(file.read_text()))
    mx.reset_peak_memory()
    if isinstance(model, Path):  # full: no adapters are put on it
        model = load_policy(PolicyConfig(model=str(model), dtype=config.policy.dtype, tuning="full"))
    options = config.comparison
    room = model.room_for_prompt(config.data.max_prompt_tokens, options.max_tokens)
    data = config.data.model_copy(update={"max_prompt_tokens": room})
    rows = config_rows(data, "evaluation", config.seed)
    assert rows is not None
    examples = load_examples(rows, data, model.tokenizer, config.length.target, "evaluation").examples
    progress.start(f"measuring {name}", len(examples))
    result = evaluate(
        LocalSampler(model, options.batch_size),
        examples,
        config.length,
        Sampling(temperature=0, max_tokens=options.max_tokens),
        options.batch_size,
        progress=lambda done, total: progress.update(done, {}),
        data=data,
    )
    progress.finish()
    peak = {"memory_peak_gb": mx.get_peak_memory() / 1e9}
    run.write_json(file.relative_to(run.path), {**result.to_json(), **peak})
    return result


def memory_peaks(run: RunFolder) -> dict[str, float]:
    """The most memory that each part took, in 10^9 bytes, as far as this run has measured it."""
    found = {}
    for part, name in (("quantising", "quantized"), ("before", "before"), ("after", "after")):
        file = run.path / "evaluation" / f"{name}.json"
        if file.is_file():
            found[part] = float(json.loads(file.read_text())["memory_peak_gb"])
    steps = [row["memory/peak_gb"] for row in run.metrics() if "memory/peak_gb" in row]
    return found | ({"training": max(steps)} if steps else {})


def report(
    config: SmallLaptopConfig,
    run: RunFolder,
    rows: int,
    differences: Mapping[str, Difference],
    exported: Sequence[Path],
) -> None:
    """What training changed, how sure that is, and what it took."""
    console = Console()
    confidence = f"{100 * config.comparison.confidence:g} %"
    table = Table(title=f"{rows} held-out rows: means, and the difference with its {confidence} interval")
    for column in ("metric", "before", "after", "difference", "from", "to"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, one in differences.items():
        scale = 1 if name == "length" else 100
        numbers = [scale * value for value in (one.before, one.after)]
        signed = [scale * value for value in (one.difference, one.low, one.high)]
        mark = " *" if one.clear else ""
        table.add_row(
            f"{name}{mark}", *(f"{value:.1f}" for value in numbers), *(f"{value:+.1f}" for value in signed)
        )
    console.print(table)
    console.print("percent, but for the length (tokens); *: the interval leaves out 0")
    peaks = ", ".join(f"{part} {peak:.3g}" for part, peak in memory_peaks(run).items())
    console.print(f"memory at most, GB: {peaks}", highlight=False, soft_wrap=True)
    for path in exported:
        console.print(f"exported {path}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"run folder {run.path}", markup=False, highlight=False, soft_wrap=True)
    console.print(how_to_share(run.path), markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
