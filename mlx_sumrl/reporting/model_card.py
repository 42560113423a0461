"""The model card of an export: README.md with what is known of it, for people and, as metadata, for the hub.

Invariant: every number is one that the run has measured or was told, and the licence is the user's own word: without
one the card says that it is unknown. Never imports mlx.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from mlx_sumrl.config import (
    DEFAULT_LENGTH_UNIT,
    DataConfig,
    LengthConfig,
    RunConfig,
    SftRunConfig,
    SmallLaptopConfig,
    StoppingConfig,
)
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.evaluation.table import comparison_markdown
from mlx_sumrl.reporting.provenance import Provenance, Source, provenance_of, read_provenance

Kind = Literal["model", "adapter", "peft", "gguf"]
KINDS: dict[Kind, str] = {
    "model": "a whole model",
    "adapter": "an adapter as mlx_lm has it",
    "peft": "a LoRA adapter as PEFT and vLLM have it",
    "gguf": "a model in one GGUF file, for llama.cpp and Ollama",
}
PAGE = "README.md"
FOLDER = "FOLDER"
"""Stands for the exported folder, wherever its reader has put it."""
HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
"""What the hub's names of licences look like; any other is `other` there, with a name."""
SCORES = ("rouge1", "rouge2", "rougeL", "meteor")
"""Metrics of an evaluation that go into the metadata."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """All that a card is written from."""

    config: RunConfig | SftRunConfig
    provenance: Provenance
    step: int
    """Of the policy that is exported."""
    evaluations: Mapping[str, Mapping[str, Any]]
    """Name -> summary, in the order in which they were made."""
    losses: Sequence[tuple[int, float]]
    """(step, held-out loss in nats per token) of a supervised run."""
    differences: Mapping[str, Mapping[str, float]]
    """Metric -> what `mlx_sumrl.evaluation.statistics.Difference` holds, where it was measured."""


def facts_of(config: RunConfig | SftRunConfig, run: Path, step: int) -> CardFacts:
    """What the run in the folder ``run`` has written down, for the policy of ``step``."""
    phases = [phase.name for phase in config.phases] if isinstance(config, RunConfig) else []
    evaluations = {
        name: content["summary"]
        for name in ("before", "length-matched", *phases, "after")
        if "summary" in (content := _read(run / "evaluation" / f"{name}.json"))
    }
    losses = [
        (int(content["step"]), float(content["evaluation/loss"]))
        for file in sorted((run / "evaluation").glob("step-*.json"))
        if (content := _read(file)).get("evaluation/loss") is not None
    ]
    provenance = read_provenance(run) or provenance_of(config.policy, config.data)
    differences = _read(run / "evaluation" / "difference.json")
    return CardFacts(config, provenance, step, evaluations, losses, differences)


def write_card(folder: Path, kind: Kind, facts: CardFacts, place: str = FOLDER) -> Path:
    """Write README.md into an exported folder; ``place`` is what its commands call it."""
    page = folder / PAGE
    page.write_text(card_text(kind, facts, place), encoding="utf-8")
    return page


def card_text(kind: Kind, facts: CardFacts, place: str) -> str:
    """The card of one kind of export, metadata first."""
    export, known = facts.config.export, facts.provenance
    parts = [
        f"# {facts.config.name}",
        f"This is {KINDS[kind]}, made from {known.base_model} by {_method(facts.config)} with mlx_sumrl; "
        f"it is the policy after step {facts.step}.",
        "## Data",
        _data_table(known),
        *_asked(facts.config.data, facts.config.length),
        "## Options",
        _table(("option", "value"), list(_options(facts.config).items())),
        *_measured(facts),
        "## How to load it",
        _loading(kind, facts, place),
        "## Licence",
        f"{export.license or 'Unknown: ask whoever trained it.'}",
        f"Base model: {known.base_licence}. Data: see the table above.",
    ]
    return f"---\n{_metadata(kind, facts)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(kind: Kind, facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # a third of a second

    known, export = facts.provenance, facts.config.export
    licence: dict[str, Any] = {"license": "unknown"}
    if export.license is not None:
        listed = HUB_LICENCE.fullmatch(export.license)
        licence = (
            {"license": export.license} if listed else {"license": "other", "license_name": export.license}
        )
    results = []
    if facts.evaluations and known.evaluation is not None:
        summary = facts.evaluations[list(facts.evaluations)[-1]]
        results = [
            EvalResult(
                task_type="summarization",
                dataset_type=known.evaluation.hub or "local",
                dataset_name=known.evaluation.name,
                metric_type=name,
                metric_value=round(100 * summary[name], 2),
            )
            for name in SCORES
            if summary.get(name) is not None
        ]
    data = ModelCardData(
        base_model=known.base_hub,
        datasets=[known.train.hub] if known.train is not None and known.train.hub else None,
        language=export.language,
        library_name={"peft": "peft", "gguf": "gguf"}.get(kind, "mlx"),
        model_name=facts.config.name,
        pipeline_tag="summarization" if kind != "peft" else None,
        tags=["mlx_sumrl", "summarization", *(["lora"] if kind in ("adapter", "peft") else [])],
        eval_results=results or None,
        **licence,
    )
    return str(data.to_yaml()).strip()


def _method(config: RunConfig | SftRunConfig) -> str:
    how = {"full": "", "lora": " of LoRA adapters", "dora": " of DoRA adapters"}[config.policy.tuning]
    if isinstance(config, SftRunConfig):
        return f"supervised fine-tuning{how}"
    said = ["supervised fine-tuning"] if config.sft else []
    for stopping, phases in groupby(config.phases, lambda phase: isinstance(phase, StoppingConfig)):
        stages = " and ".join(phase.name for phase in phases)
        said.append("learning when to stop" if stopping else f"GRPO{how} (stages: {stages})")
    return ", then ".join(said)


def _data_table(known: Provenance) -> str:
    def line(use: str, source: Source) -> tuple[str, ...]:
        where = f"{source.name} ({source.hub} on the hub)" if source.hub else source.name
        rows = "not counted" if source.rows is None else f"{source.rows:,}"
        return use, where, rows, source.licence

    used = [("training", known.train), ("held out", known.evaluation)]
    return _table(
        ("use", "data", "rows", "licence"), [line(use, source) for use, source in used if source is not None]
    )


def _asked(data: DataConfig, length: LengthConfig) -> list[str]:
    blocks = [f"    {line}" for line in data.instruction.splitlines()]
    said = "What it was asked in training ({document} stands for the text"
    asked = ", ".join(map(str, length.targets or (length.target,)))
    said += f", {{target_length}} for {asked}):" if "{target_length}" in data.instruction else "):"
    counted = "Asked length" if "{target_length}" in data.instruction else "Length that counts as within"
    tokens = " tokens of its own tokenizer" if length.unit == DEFAULT_LENGTH_UNIT else ""
    found = [said, "\n".join(blocks), f"{counted}: {length}{tokens}."]
    if data.system is not None:
        found.append(f"System prompt: {data.system}")
    return ["## How it was asked", *found]


def _options(config: RunConfig | SftRunConfig) -> dict[str, object]:
    """Those that shape the result; config.json of the run has all."""
    policy, optimizer = config.policy, config.optimizer
    options: dict[str, object] = {"policy.tuning": policy.tuning, "policy.dtype": policy.dtype}
    if policy.tuning != "full":
        options["policy.lora"] = (
            f"rank {policy.lora.rank}, alpha {policy.lora.alpha:g}, "
            f"{'all layers' if policy.lora.layers < 0 else f'the last {policy.lora.layers} layers'}"
        )
    if isinstance(config, SmallLaptopConfig):
        packed = config.quantize
        options["quantize"] = (
            f"trained on the base in {packed.bits} bits, groups of {packed.group_size} weights"
        )
    rate = "" if optimizer.learning_rate is None else f"learning rate {optimizer.learning_rate:g}, "
    options["optimizer"] = f"{optimizer.kind}, {rate}{optimizer.schedule}"
    if isinstance(config, SftRunConfig):
        sft = config.sft
        options["sft"] = f"{f'{sft.epochs:g} epochs' if sft.steps is None else f'{sft.steps} steps'}"
        options["sft.batch_size"] = sft.batch_size
        options["masking.learn"] = config.masking.learn
    else:
        grpo = config.grpo
        options["grpo"] = (
            f"{grpo.prompts_per_step} prompts x {grpo.group_size} completions a step, {grpo.loss}"
        )
        options["grpo.beta"] = f"{grpo.beta:g}"
        for phase in config.phases:
            if isinstance(phase, StoppingConfig):
                options[phase.name] = f"{phase.steps} supervised steps of when to stop"
                continue
            rewards = ", ".join(f"{reward.label} x {reward.weight:g}" for reward in phase.rewards)
            options[f"stage {phase.name}"] = f"at most {phase.steps} steps; {rewards}"
    return options | {"seed": config.seed}


def _measured(facts: CardFacts) -> list[str]:
    found = []
    if facts.evaluations:
        rows = {str(summary["rows"]) for summary in facts.evaluations.values()}
        found.append(
            f"On {' or '.join(sorted(rows))} held-out rows, greedily; percentages but for the length:"
        )
        named = {name: Evaluation((), dict(summary)) for name, summary in facts.evaluations.items()}
        found.append(comparison_markdown(named).strip())
    if facts.differences:
        found.append("What training changed, with the interval of it (paired bootstrap over these rows):")
        lines = []
        for name, one in facts.differences.items():
            scale = 1 if name == "length" else 100
            change, low, high = (scale * one[key] for key in ("difference", "low", "high"))
            lines.append((name, f"{change:+.1f}", f"{low:+.1f} to {high:+.1f}"))
        found.append(_table(("metric", "difference", "interval"), lines))
    if facts.losses:
        shown = {facts.losses[0][0], facts.losses[-1][0], facts.step}
        losses = [(step, f"{loss:.4f}") for step, loss in facts.losses if step in shown]
        found.append(_table(("step", "held-out loss, nats per token"), losses))
    return ["## Held-out results", *found] if found else ["## Held-out results", "None were measured."]


def _loading(kind: Kind, facts: CardFacts, place: str) -> str:
    base = facts.provenance.base_hub or "BASE"
    rank = facts.config.policy.lora.rank
    lines = {
        "model": [
            f'python -m recipes.summarize --model {place} "a text"',
            f"mlx_lm.server --model {place}",
            f"vllm serve {place}",
        ],
        "adapter": [
            f'mlx_lm.generate --model {base} --adapter-path {place} --prompt "..."',
            f"mlx_lm.fuse --model {base} --adapter-path {place} --save-path fused",
        ],
        "peft": [
            f"vllm serve {base} --enable-lora --max-lora-rank {max(rank, 8)} --lora-modules {facts.config.name}={place}"
        ],
        "gguf": [
            f"cd {place} && ollama create {facts.config.name} -f Modelfile",
            f"ollama run {facts.config.name}",
        ],
    }[kind]
    notes = [f"{place} is this folder" if place == FOLDER else f"{place} is where this is on the hub"]
    if any("BASE" in line for line in lines):
        notes.append(f"BASE the folder of {facts.provenance.base_model}")
    return "```\n" + "\n".join(lines) + "\n```\n\n" + ", ".join(notes) + "."


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        texts = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, lines)])


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
