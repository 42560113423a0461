"""A run's policy and examples, checked against each other before any training time is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_sumrl.config import OptimizerConfig, PolicyConfig, RunConfig, SftRunConfig
from mlx_sumrl.data.answers import answer_ids, own_length
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import Which, config_rows, load_examples
from mlx_sumrl.data.targets import drawn_targets
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.tiny import make_tiny_model
from mlx_sumrl.reporting.memory_estimate import MemoryEstimate, describe, estimate_peak, machine_memory
from mlx_sumrl.reporting.model_shape import ModelShape
from mlx_sumrl.rewards.function import check_columns
from mlx_sumrl.training.seeds import derived_seed
from mlx_sumrl.training.stopping import text_tokens

Note = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What a run starts from."""

    policy: Policy
    train: list[Example]
    held_out: list[Example]
    """Rows never trained on; empty when the run names none."""
    taught: list[Example]
    """What supervised fine-tuning learns: `train`, or the same rows asked for the lengths of their own answers."""
    shortened: list[Example]
    """What stopping is learned from at first: `train` with its documents cut short; empty where it is not learned."""


def prepare(config: RunConfig, folder: Path, note: Note) -> Prepared:
    """Load the policy and the examples of a run; ``folder`` is the run's own, ``note`` tells the user things.

    Raises `UserError` for whatever would go wrong later.
    """
    if not (config.stages or config.sft or config.stopping):
        raise UserError("there is nothing to do: the run has neither `stages` nor `sft` nor `stopping`")
    if config.data.train is None and config.data.grammar is None:
        raise UserError(
            "data.train is missing: name a .jsonl, .csv or .parquet file, or a Hugging Face dataset"
        )
    policy = load_policy(policy_options(config, folder), seed=derived_seed(config.seed, "adapters"))
    check_context(config, policy)
    train = _examples(config, policy, "train", note)
    for reward in (reward for stage in config.stages for reward in stage.rewards):
        if reward.function is not None:
            check_columns(reward.function, list(train[0].fields))
    held_out = _examples(config, policy, "evaluation", note)
    _check_apart(train, held_out, note)
    note(memory_sentence(config, policy))
    tell_of_misreading(policy, note)
    taught, shortened = _taught(config, policy, train), _shortened(config, policy)
    if config.stopping is not None and not shortened:
        most = config.stopping.max_prompt_tokens
        note(
            f"the instruction alone has more tokens than stopping.max_prompt_tokens {most}, so when to stop is learned "
            "from whole prompts at once, which is slower"
        )
    return Prepared(policy, train, held_out, taught, shortened)


def tell_of_misreading(policy: Policy, note: Note) -> None:
    """Tell what others would make of the model's folder."""
    if policy.reconciled and policy.options.tuning != "full":
        note(
            f"mlx-lm would misread the config.json of {policy.source}; use export/model rather than the adapter "
            "on that folder"
        )
    if policy.splits_otherwise:
        note(
            f"transformers splits texts by other rules than the tokenizer.json of {policy.source}, which is what is "
            "trained with here: mlx_lm and vLLM, given text rather than token ids, will see other tokens"
        )


def check_context(config: RunConfig, policy: Policy) -> None:
    """Raises `UserError` when prompts and completions can be longer than what the model was trained for."""
    needed = config.data.max_prompt_tokens + config.sampling.max_tokens
    if policy.context is not None and needed > policy.context:
        left = policy.context - config.sampling.max_tokens
        way_out = f"--data.max_prompt_tokens {left}" if left > 0 else "--sampling.max_tokens lower"
        raise UserError(
            f"data.max_prompt_tokens {config.data.max_prompt_tokens} and sampling.max_tokens "
            f"{config.sampling.max_tokens} make {needed} tokens, and {policy.source} reads {policy.context}; "
            f"set {way_out}"
        )
    if config.stopping is None:
        return
    prompt, text = config.data.max_prompt_tokens, text_tokens(config.length)
    if policy.context is not None and prompt + text > policy.context:
        left = policy.context - text
        way_out = f"set --data.max_prompt_tokens {left}, or" if left > 0 else "set"
        raise UserError(
            f"data.max_prompt_tokens {prompt} and the texts that stopping is learned from, longer than {config.length} "
            f"({text} tokens), make {prompt + text} tokens, and {policy.source} reads {policy.context}: {way_out} "
            "--stopping null"
        )


def memory_sentence(config: RunConfig, policy: Policy) -> str:
    """The estimated peak of a step beside what the machine has."""
    return beside_machine(peak_estimate(config, policy.options, ModelShape.from_config(policy.config)))


def beside_machine(estimate: MemoryEstimate) -> str:
    """An estimate in a sentence, with the memory of this machine."""
    working_set = (
        mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    )
    return describe(estimate, machine_memory(), int(working_set) if working_set else None)


def peak_estimate(config: RunConfig, options: PolicyConfig, shape: ModelShape) -> MemoryEstimate:
    """Of the largest step of a run: a supervised one, or one of the stages."""
    grpo, sampling = config.grpo, config.sampling
    rewarded: dict[str, Any] = {
        "prompts_per_step": grpo.prompts_per_step,
        "group_size": grpo.group_size,
        "micro_batch_tokens": grpo.micro_batch_tokens,
        "share_prompt": grpo.share_prompt,
        "filtered": sampling.top_p < 1 or sampling.top_k > 0,
        "max_rows": sampling.max_rows,
        "cache_bits": sampling.cache_bits,
        "reference": grpo.reference if grpo.beta > 0 else None,
    }
    phases: list[tuple[OptimizerConfig, dict[str, Any]]] = []
    if config.stages or not (config.sft or config.stopping):
        phases.append((config.optimizer, rewarded))
    if config.sft is not None:
        supervised = {
            "prompts_per_step": config.sft.batch_size,
            "micro_batch_tokens": config.sft.micro_batch_tokens,
        }
        phases.append((config.sft.optimizer, supervised))
    if config.stopping is not None:
        counting = {
            "prompts_per_step": config.stopping.batch_size,
            "micro_batch_tokens": config.stopping.micro_batch_tokens or grpo.micro_batch_tokens,
            "room": "grpo" if config.stopping.micro_batch_tokens is None else "stopping",
            "completion_tokens": text_tokens(config.length),
            "reference": grpo.reference,
        }
        phases.append((config.stopping.optimizer, counting))
    estimates = [
        estimate_peak(
            shape,
            tuning=options.tuning,
            dtype=options.dtype,
            logits_mb=options.logits_mb,
            gradient_checkpointing=options.gradient_checkpointing,
            lora_rank=options.lora.rank,
            lora_layers=options.lora.layers,
            optimizer=optimizer.kind,
            moments=optimizer.moments,
            compensated=optimizer.rounding == "compensated",
            prompt_tokens=config.data.max_prompt_tokens,
            **{"completion_tokens": sampling.max_tokens, **phase},
        )
        for optimizer, phase in phases
    ]
    return max(estimates, key=lambda estimate: estimate.total)


def policy_options(config: RunConfig | SftRunConfig, folder: Path) -> PolicyConfig:
    """The policy's options, a tiny model made below ``folder`` where one is asked for."""
    if config.policy.tiny is None:
        return config.policy
    rows = config_rows(config.data, "train", config.seed)
    assert rows is not None
    columns = (config.data.document_column, config.data.reference_column)
    texts = [str(row.fields[column]) for row in rows.rows for column in columns if column in row.fields]
    instruction = config.data.asking_in(config.length.unit).instruction
    seed = derived_seed(config.seed, "tiny model")
    if not (
        folder / "checkpoints"
    ).exists():  # else one may be left of a start that failed with other options
        shutil.rmtree(folder / "base", ignore_errors=True)
    base = make_tiny_model(folder / "base", config.policy.tiny, [instruction, *texts], seed)
    return config.policy.model_copy(update={"model": str(base), "tiny": None})


def _examples(config: RunConfig, policy: Policy, which: Which, note: Note) -> list[Example]:
    rows = config_rows(config.data, which, config.seed)
    if rows is None:
        return []
    asked, length = config.data.asking_in(config.length.unit), config.length
    seed = derived_seed(config.seed, f"targets {which}")
    targets = drawn_targets(length.targets, len(rows.rows), seed) if length.targets else None
    loaded = load_examples(rows, asked, policy.tokenizer, length.target, which, targets)
    note(f"{which}: {loaded.report.describe()}")
    return loaded.examples


def _taught(config: RunConfig, policy: Policy, train: list[Example]) -> list[Example]:
    """What supervised fine-tuning learns. Raises `UserError` for a row without an answer."""
    if config.sft is None or not config.sft.own_length:
        return train
    rows = config_rows(config.data, "train", config.seed)
    assert rows is not None
    column, unit = config.sft.reference_column or config.data.reference_column, config.length.unit
    kept, targets = [], []
    for row in rows.rows:
        held = row.fields.get(column)
        text = str(held[0] if isinstance(held, list) and held else held).strip()
        length = own_length(answer_ids(policy.tokenizer, text, policy.stop_id)[:-1], text, unit)
        if length not in config.sft.own_length_except:
            kept.append(row)
            targets.append(length)
    if not kept:
        raise UserError(
            "sft.own_length_except leaves no row to learn from: every answer has one of these lengths"
        )
    rows, asked = replace(rows, rows=kept), config.data.asking_in(unit)
    return load_examples(rows, asked, policy.tokenizer, config.length.target, "train", targets).examples


def _shortened(config: RunConfig, policy: Policy) -> list[Example]:
    """What `stopping` begins with; nothing where a prompt cannot be so short."""
    if config.stopping is None:
        return []
    most = min(config.stopping.max_prompt_tokens, config.data.max_prompt_tokens)
    data = config.data.model_copy(update={"max_prompt_tokens": most})
    try:
        return _examples(config.model_copy(update={"data": data}), policy, "train", lambda sentence: None)
    except UserError:  # whole, they could be read
        return []


def _check_apart(train: list[Example], held_out: list[Example], note: Note) -> None:
    """Tell when held-out documents are among those trained on."""
    documents = {example.document for example in train}
    shared = [example.id for example in held_out if example.document in documents]
    if shared:
        note(
            f"{len(shared)} of {len(held_out)} held-out documents are trained on too ({', '.join(shared[:3])})"
        )
