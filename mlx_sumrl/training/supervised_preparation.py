"""A supervised run's policy and rows, checked against each other before any training time is spent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, SftRunConfig
from mlx_sumrl.data.examples import Which, config_rows
from mlx_sumrl.data.supervised import load_supervised
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.data.text_length import text_length
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.memory_estimate import estimate_peak
from mlx_sumrl.reporting.model_shape import ModelShape
from mlx_sumrl.training.preparation import Note, beside_machine, policy_options, tell_of_misreading
from mlx_sumrl.training.seeds import derived_seed
from mlx_sumrl.training.sft import learned_tokens


@dataclass(frozen=True)
class PreparedSft:
    """What a supervised run starts from."""

    policy: Policy
    train: list[SupervisedExample]
    held_out: list[SupervisedExample]
    """Rows never learned; empty when the run names none."""


def prepare_sft(config: SftRunConfig, folder: Path, note: Note) -> PreparedSft:
    """Load the policy and the rows of a run; ``folder`` is the run's own, ``note`` tells the user things.

    Raises `UserError` for whatever would go wrong later.
    """
    if config.data.train is None and config.data.grammar is None:
        raise UserError(
            "data.train is missing: name a .jsonl, .csv or .parquet file, or a Hugging Face dataset"
        )
    policy = load_policy(policy_options(config, folder), seed=derived_seed(config.seed, "adapters"))
    policy.reference = None  # nothing is measured against it here
    train = supervised_rows(config, policy, "train", note)
    held_out = supervised_rows(config, policy, "evaluation", note)
    _check_apart(train, held_out, note)
    _check_length(config, policy, train, note)
    if config.sft.steps or config.sft.epochs:  # a range test has neither
        note(_steps_sentence(config, train))
    note(_memory_sentence(config, policy, train))
    tell_of_misreading(policy, note)
    return PreparedSft(policy, train, held_out)


def supervised_rows(
    config: SftRunConfig, policy: Policy, which: Which, note: Note
) -> list[SupervisedExample]:
    """The rows that the options name as what is learned of them; none where none are named. Raises `UserError`."""
    rows = config_rows(config.data, which, config.seed)
    if rows is None:
        return []
    loaded = load_supervised(
        rows,
        config.data.asking_in(config.length.unit),
        config.masking,
        policy.tokenizer,
        min(config.sft.max_tokens, policy.context or config.sft.max_tokens),
        policy.stop_id,
        config.length.unit if config.sft.own_length else config.length.target,
        stop_ids=policy.stop_ids,
        which=which,
    )
    note(f"{which}: {loaded.describe()}")
    return loaded.examples


def _steps_sentence(config: SftRunConfig, train: list[SupervisedExample]) -> str:
    steps = config.sft.total_steps(len(train))
    epochs = steps * config.sft.batch_size / len(train)
    return (
        f"{steps} steps of {config.sft.batch_size} rows are {epochs:.3g} epochs; an epoch has "
        f"{learned_tokens(train):,} tokens to learn"
    )


def _memory_sentence(config: SftRunConfig, policy: Policy, train: list[SupervisedExample]) -> str:
    options, optimizer = policy.options, config.optimizer
    return beside_machine(
        estimate_peak(
            ModelShape.from_config(policy.config),
            tuning=options.tuning,
            dtype=options.dtype,
            prompt_tokens=max(len(one.prompt_ids) for one in train),
            completion_tokens=max(len(one.answer_ids) for one in train),
            prompts_per_step=config.sft.batch_size,
            micro_batch_tokens=config.sft.micro_batch_tokens,
            logits_mb=options.logits_mb,
            gradient_checkpointing=options.gradient_checkpointing,
            lora_rank=options.lora.rank,
            lora_layers=options.lora.layers,
            optimizer=optimizer.kind,
            moments=optimizer.moments,
            compensated=optimizer.rounding == "compensated",
        )
    )


def _check_length(config: SftRunConfig, policy: Policy, train: list[SupervisedExample], note: Note) -> None:
    """Tell when prompts ask for a length that answers do not have: that is learned too."""
    asked, unit = config.length.target, config.length.unit

    def length(one: SupervisedExample) -> int:
        if unit == DEFAULT_LENGTH_UNIT:
            return sum(one.trained)
        learned = [token for token, learn in zip(one.answer_ids, one.trained, strict=True) if learn]
        return text_length(policy.decode(learned), unit)

    told = [one for one in train if not one.conversation]
    if not told or config.sft.own_length or "{target_length}" not in config.data.instruction:
        return
    usual = median(map(length, told))
    if abs(usual - asked) > config.length.allowed:
        note(
            f"every prompt of a document asks for {asked} {unit} (length.target), and the answer in the middle has "
            f"{usual:g}: leave "
            "{target_length} out of data.instruction, or the model learns that it means nothing"
        )


def _check_apart(train: list[SupervisedExample], held_out: list[SupervisedExample], note: Note) -> None:
    """Tell when held-out rows are learned too."""
    prompts = {one.prompt_ids for one in train}
    shared = [one.id for one in held_out if one.prompt_ids in prompts]
    if shared:
        note(f"{len(shared)} of {len(held_out)} held-out prompts are learned too ({', '.join(shared[:3])})")
