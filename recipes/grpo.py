"""The whole job, shared by `recipes.grpo_staged` and `recipes.grpo_joint`, which differ in the stages that they bring
where the options name none (`mlx_sumrl.training.stages`), and in nothing else.

prepare -> (supervised fine-tuning) -> evaluate -> each phase, evaluated after it -> export -> table and samples.
With ``--resume runs/NAME`` every part that is already on disk is taken from there.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_sumrl.config import Phase, RunConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation.evaluate import evaluate
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.evaluation.table import comparison_table
from mlx_sumrl.options.command_line import parse_command
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.curve_file import CURVES
from mlx_sumrl.reporting.progress import Progress, make_progress
from mlx_sumrl.reporting.report.run_report import leave_report
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.rewards.scoring import build_rewards
from mlx_sumrl.rollouts import LocalSampler, Sampling, TrainingSampler
from mlx_sumrl.rollouts.answer_part import AnswerPart
from mlx_sumrl.rollouts.types import NoSamplerError
from mlx_sumrl.training.peak_rate import with_rate
from mlx_sumrl.training.preparation import Prepared, prepare
from mlx_sumrl.training.stages import Options, laid_under, what_is_left_out, why_not_taught
from mlx_sumrl.training.trainer import Trainer
from recipes.cluster_rollouts import HELP, rollouts_from
from recipes.exporting import begin, export, how_to_share
from recipes.opened_run import opened


def main(name: str, description: str, argv: Sequence[str] | None = None, *, staged: bool = True) -> None:
    """Parse the command line and do the job; not ``staged`` brings one stage where the options name none."""
    to_tell: list[str | None] = []

    def brought(given: Mapping[str, Any]) -> Options:
        if staged:
            to_tell.append(why_not_taught(given))
        return laid_under(given, staged=staged)

    command = parse_command(
        RunConfig,
        argv,
        prog=f"python -m recipes.{name}",
        description=description,
        defaults=brought,
        extra={"cluster": HELP},
    )
    nodes = Path(command.extra["cluster"]) if "cluster" in command.extra else None
    if isinstance(command.run, RunConfig):
        for stage in command.run.stages:  # a reward that cannot be found is known before a folder is made
            build_rewards(stage, command.run.length)
    config, run = opened(command, RunConfig)
    to_tell.append(what_is_left_out(config.stages))
    with run, make_progress() as progress:
        try:
            train(config, run, progress, nodes, [told for told in to_tell if told is not None])
        except (KeyboardInterrupt, NoSamplerError):
            progress.finish()
            cluster = f" --cluster {shlex.quote(str(nodes))}" if nodes else ""
            print(
                f"stopped; go on with: python -m recipes.{name} --resume {shlex.quote(str(run.path))}{cluster}",
                file=sys.stderr,
            )
            raise


def train(
    config: RunConfig,
    run: RunFolder,
    progress: Progress,
    nodes: Path | None = None,
    to_tell: Sequence[str] = (),
) -> None:
    """Everything; rollouts come from the workers of ``nodes`` where there are some."""
    prepared = prepare(config, run.path, progress.note)
    for told in to_tell:
        progress.note(told)
    if (known := with_rate(config, prepared.policy)) != config:
        config = known
        run.keep_options(config)
        progress.note(
            f"learning rate {config.optimizer.learning_rate:.2g}, by policy.tuning {config.policy.tuning} and a model "
            f"{prepared.policy.width} wide"
        )
    drawn = [Sampling.in_training(stage.drawing(config.sampling)) for stage in config.stages]
    with rollouts_from(nodes, prepared.policy, prepared.train, run.path / "published", drawn) as sampler:
        the_job(config, run, progress, prepared, sampler)


def the_job(
    config: RunConfig,
    run: RunFolder,
    progress: Progress,
    prepared: Prepared,
    sampler: TrainingSampler | None,
) -> None:
    """The job, top to bottom."""
    policy = prepared.policy
    begin(policy, config, run, {"train": len(prepared.train), "evaluation": len(prepared.held_out)})
    trainer = Trainer(policy, config, sampler=sampler, run=run, progress=progress)
    if trainer.restore():
        progress.note(f"going on after step {trainer.state.step}")

    if config.sft:
        trainer.sft(prepared.taught, config.sft)
    begun, measured = split(config)
    for phase in begun:
        trainer.phase(phase, prepared.train, prepared.shortened)
    evaluations = {"before": evaluated("before", config, run, policy, prepared.held_out, progress)}
    if config.evaluation.length_matched_baseline:
        evaluations["length-matched"] = evaluated(
            "length-matched", config, run, policy, prepared.held_out, progress, forced=config.length.target
        )
    for phase in measured:
        trainer.phase(phase, prepared.train, prepared.shortened)
        evaluations[phase.name] = evaluated(phase.name, config, run, policy, prepared.held_out, progress)

    exported = export(policy, config, run.path, trainer.state.step)
    page = leave_report(run.path, config.report, progress.note)
    report(config, run, evaluations, exported, page)


def evaluated(
    name: str,
    config: RunConfig,
    run: RunFolder,
    policy: Policy,
    examples: Sequence[Example],
    progress: Progress,
    forced: int | None = None,
) -> Evaluation | None:
    """The policy on held-out rows, greedily; read back when the run has it already; None without such rows.

    ``forced`` makes every summary exactly that long: stop tokens forbidden before, cut there.
    """
    if not examples:
        return None
    file = run.path / "evaluation" / f"{name}.json"
    if file.is_file():
        return Evaluation.from_json(json.loads(file.read_text()))
    sampling = Sampling(
        temperature=0, max_tokens=forced or config.sampling.max_tokens, min_tokens=forced or 0
    )
    progress.start(f"evaluating {name}", len(examples))
    result = evaluate(
        LocalSampler(policy, config.evaluation.batch_size),
        examples,
        config.length,
        sampling,
        config.evaluation.batch_size,
        progress=lambda done, total: progress.update(done, {}),
        answers=AnswerPart.of(config.answer, policy.tokenizer),
        data=config.data,
    )
    progress.finish()
    run.write_json(file.relative_to(run.path), result.to_json())
    return result


def split(config: RunConfig) -> tuple[Sequence[Phase], Sequence[Phase]]:
    """The phases before the policy is evaluated for the first time, and those after each of which it is again.

    What is taught before the first stage counts as before.
    """
    phases = config.phases
    stopping = config.stopping
    begun = int(stopping is not None and stopping.when == "before" and phases[0] is stopping)
    return phases[:begun], phases[begun:]


def passed(config: RunConfig) -> list[str]:
    """The phases after which the policy is evaluated, in their order."""
    return [phase.name for phase in split(config)[1]]


def report(
    config: RunConfig,
    run: RunFolder,
    evaluations: Mapping[str, Evaluation | None],
    exported: Sequence[Path],
    page: Path | None,
) -> None:
    """evaluation/final.json, the table, and sample summaries."""
    console = Console()
    known = {name: evaluation for name, evaluation in evaluations.items() if evaluation is not None}
    if known:
        stages = [{"name": name, **known[name].summary} for name in passed(config)]
        final: dict[str, Any] = {"before": known["before"].summary, "stages": stages}
        final["after"] = stages[-1] if stages else known["before"].summary
        if "length-matched" in known:
            final["length_matched"] = known["length-matched"].summary
        run.write_json("evaluation/final.json", final)
        title = f"{len(known['before'].rows)} held-out rows, target {config.length}"
        labels = {name: f"after {name}" for name in passed(config)}
        console.print(comparison_table({labels.get(name, name): one for name, one in known.items()}, title))
        missing = known["before"].meteor_missing
        if missing:
            console.print(f"no METEOR: {missing}", highlight=False)
        last = known[passed(config)[-1]] if passed(config) else known["before"]
        for row in last.rows[: config.evaluation.samples]:
            console.print(f"\n[bold]{row.id}[/bold], {row.length} {last.unit}", highlight=False)
            console.print("text:      " + " ".join(row.document.split())[:400], markup=False, highlight=False)
            console.print("reference: " + " ".join(row.reference.split()), markup=False, highlight=False)
            console.print("summary:   " + " ".join(row.text.split()), markup=False, highlight=False)
    console.print()
    for path in exported:
        console.print(f"exported {path}", markup=False, highlight=False)
    if (run.path / CURVES).is_file():
        console.print(f"curves {run.path / CURVES}", markup=False, highlight=False)
    if page is not None:
        console.print(f"report {page}", markup=False, highlight=False)
    console.print(f"run folder {run.path}", markup=False, highlight=False)
    if exported:
        console.print(how_to_share(run.path), markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()
