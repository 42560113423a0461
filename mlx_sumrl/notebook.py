"""The whole library in a few calls, for notebooks and scripts.

    policy = load_policy("models/my-model", tuning="lora")
    posts = load_examples("posts.jsonl", policy, target=64, document_column="post")
    train_grpo(policy, posts[:-50], length={"target": 64})
    print(evaluate(policy, posts[-50:], target=64).summary)
    export_adapter(policy, "adapter")

Options are those of `mlx_sumrl.config`, by the same names; every default lives there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mlx_sumrl.config import (
    DEFAULT_LENGTH_UNIT,
    AnswerConfig,
    DataConfig,
    EvaluationConfig,
    LengthConfig,
    LengthUnit,
    LongDocumentsConfig,
    PolicyConfig,
    RunConfig,
    SftConfig,
)
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import fitted_text
from mlx_sumrl.data.examples import load_examples as load_rows
from mlx_sumrl.data.sources import Row, Rows, read_rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.evaluate import evaluate as evaluate_sampler
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.options import tree
from mlx_sumrl.options.errors import shown, suggestion, validation_sentence
from mlx_sumrl.policy.loading import load_policy as load_with_options
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.progress import Progress, make_progress
from mlx_sumrl.reporting.run_folder import RECORDS, RunFolder
from mlx_sumrl.rewards.scoring import build_rewards
from mlx_sumrl.rollouts import LocalSampler, Sampling
from mlx_sumrl.rollouts.answer_part import AnswerPart
from mlx_sumrl.rollouts.long_summary import LongSummarizer, round_told
from mlx_sumrl.training.peak_rate import with_rate
from mlx_sumrl.training.stages import laid_under, what_is_left_out, why_not_taught
from mlx_sumrl.training.stopping import text_tokens
from mlx_sumrl.training.trainer import Trainer


def load_policy(model: str | Path, *, adapter: str | Path | None = None, **options: Any) -> Policy:
    """A policy from a folder or a hub id; ``options`` are those of `PolicyConfig` (tuning, dtype, lora, ...).

    Raises `UserError`.
    """
    given = {"model": str(model), "adapter": None if adapter is None else str(adapter), **options}
    return load_with_options(_validated(PolicyConfig, given))


def load_examples(
    rows: str | Path | Sequence[Mapping[str, Any]],
    policy: Policy,
    *,
    target: int | None = None,
    unit: LengthUnit | None = None,
    split: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> list[Example]:
    """Examples from a file, a dataset's name, or rows as dicts; ``options`` are those of `DataConfig`.

    ``target`` is the length that the instruction asks for where it says ``{target_length}``, in tokens or the ``unit``
    that is given; ``split`` that of a dataset (its training split otherwise); ``limit`` takes the first rows only.
    Raises `UserError`.
    """
    length = _length(target, unit=unit)
    config = _validated(DataConfig, {"max_prompt_tokens": _room_for_prompt(policy, length), **options})
    limit = limit or config.train_rows
    if isinstance(rows, str | Path):
        source = read_rows(str(rows), split or config.train_split, limit)
    else:
        given = [Row(str(row.get("id", f"row {n}")), dict(row)) for n, row in enumerate(rows, start=1)]
        source = Rows("the given rows", given[:limit])
    loaded = load_rows(source, config.asking_in(length.unit), policy.tokenizer, length.target)
    print(loaded.report.describe())
    return loaded.examples


def train_sft(
    policy: Policy,
    examples: Sequence[Example],
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Supervised fine-tuning on the references, in place; ``options`` are those of `SftConfig`.

    Raises `UserError`.
    """
    _check_examples(examples, "train on")
    config = _run_config(policy, {"seed": seed, "sft": _validated(SftConfig, options)})
    assert config.sft is not None
    with progress or make_progress() as shown:
        Trainer(policy, config, progress=shown).sft(examples, config.sft)


def train_grpo(
    policy: Policy,
    examples: Sequence[Example],
    *,
    run: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """GRPO, in place, through the stages of a curriculum, with ``stopping`` among them where that is given.

    Where ``stages`` is left out they are those of `recipes.grpo_staged`, with their temperature, rates, KL and phase.
    ``options`` are rooms of `RunConfig` (``length={"target": 64}``, ``grpo={...}``, ``stages=[...]``). ``run``
    names a folder for metrics, rollouts and checkpoints; without one nothing is written. Raises `UserError`.
    """
    _check_examples(examples, "train on")
    if run is not None:
        if any((Path(run) / name).exists() for name in RECORDS):  # a cell that is run twice
            raise UserError(f"the folder {run} already holds a run: name another one, or remove it")
        options |= {"runs_dir": Path(run).parent, "name": Path(run).name}
    given = {
        name: room.model_dump(exclude_unset=True) if isinstance(room, BaseModel) else room
        for name, room in options.items()
    }
    asked = {**given, "policy": {"tuning": policy.options.tuning}}
    config = with_rate(_run_config(policy, tree.merged(laid_under(asked), given)), policy)
    _check_context(policy, examples, config)
    for stage in config.stages:
        build_rewards(stage, config.length)
    folder = RunFolder.create(config) if run is not None else None
    try:
        with progress or make_progress() as shown:
            for told in (why_not_taught(asked), what_is_left_out(config.stages)):
                if told is not None:
                    shown.note(told)
            trainer = Trainer(policy, config, run=folder, progress=shown)
            for phase in config.phases:
                trainer.phase(phase, examples, examples)
    finally:
        if folder:
            folder.close()


def evaluate(
    policy: Policy,
    examples: Sequence[Example],
    *,
    target: int | None = None,
    tolerance: int | None = None,
    unit: LengthUnit | None = None,
    max_tokens: int | None = None,
    force_length: int | None = None,
    answer: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """One greedy summary per example, scored for length and overlap with its reference.

    ``force_length`` makes every summary exactly that many tokens long: the length-matched baseline. ``max_tokens`` is
    half as much again as asked otherwise, and half of what the model reads where the ``unit`` is not tokens.
    ``answer`` is the room of options (``{"after": "</think>"}``) that says which part of what is written counts.
    Raises `UserError`.
    """
    _check_examples(examples, "evaluate on")
    length = _length(target, tolerance, unit)
    limit = force_length or max_tokens or _longest(policy, length)
    batch = EvaluationConfig().batch_size
    with progress or make_progress() as shown:
        shown.start("evaluating", len(examples))
        return evaluate_sampler(
            LocalSampler(policy, batch),
            examples,
            length,
            Sampling(temperature=0, max_tokens=limit, min_tokens=force_length or 0),
            batch,
            progress=lambda done, total: shown.update(done, {}),
            answers=AnswerPart.of(_validated(AnswerConfig, answer or {}), policy.tokenizer),
        )


def summarize(
    policy: Policy,
    text: str,
    *,
    target: int | None = None,
    unit: LengthUnit | None = None,
    temperature: float = 0.0,
    long: bool | Mapping[str, Any] = False,
    progress: Progress | None = None,
    **options: Any,
) -> str:
    """A summary of one text; ``options`` are those of `DataConfig` (instruction, system, ...).

    A text that is longer than a prompt loses its end, which is told. With ``long=True``, or options of
    `LongDocumentsConfig` as a dict, all of it is read: in chunks whose summaries are summarised again. Raises
    `UserError`.
    """
    length = _length(target, unit=unit)
    config = _validated(DataConfig, {"max_prompt_tokens": _room_for_prompt(policy, length), **options})
    config = config.asking_in(length.unit)
    sampler, sampling = LocalSampler(policy), Sampling(temperature, max_tokens=_longest(policy, length))
    if long is not False:
        chunks = _validated(LongDocumentsConfig, {} if long is True else long)
        summarizer = LongSummarizer(sampler, policy.tokenizer, config, length, sampling, chunks)
        with progress or make_progress() as shown:
            return summarizer.summarize(text, told=round_told(shown)).text
    example, lost = fitted_text(text, config, policy.tokenizer, length.target)
    if lost:
        print(
            f"the text is longer than a prompt: its last {lost} tokens were not read; long=True reads all of it"
        )
    return sampler.sample([example], 1, sampling, 0)[0].completions[0].text.strip()


def _length(target: int | None, tolerance: int | None = None, unit: LengthUnit | None = None) -> LengthConfig:
    given = {"target": target, "tolerance": tolerance, "unit": unit}
    length: LengthConfig = _validated(LengthConfig, {k: v for k, v in given.items() if v is not None})
    return length


def _longest(policy: Policy, length: LengthConfig) -> int:
    """Room for half as much again as is asked for, so that a summary which runs on can be seen to.

    What a word or a bullet takes is not known before: then it is half of what the model reads, or of what a prompt may
    have.
    """
    if length.unit != DEFAULT_LENGTH_UNIT:
        return (policy.context or 2 * DataConfig().max_prompt_tokens) // 2
    return length.target + max(length.target // 2, length.allowed + 1)


def _room_for_prompt(policy: Policy, length: LengthConfig) -> int:
    default = DataConfig().max_prompt_tokens
    return (
        default if policy.context is None else min(default, max(policy.context - _longest(policy, length), 1))
    )


def _check_examples(examples: Sequence[Example], purpose: str) -> None:
    if not examples:
        raise UserError(f"there are no examples to {purpose}: the list is empty")


def _check_context(policy: Policy, examples: Sequence[Example], config: RunConfig) -> None:
    prompt = max(len(example.prompt_ids) for example in examples)
    if policy.context is None:
        return
    sampled = config.sampling.max_tokens
    if prompt + sampled > policy.context:
        raise UserError(
            f"the longest prompt has {prompt} tokens and sampling.max_tokens is {sampled}; {policy.source} "
            f"reads {policy.context} together: lower one of them, or load the examples with max_prompt_tokens="
            f"{max(policy.context - sampled, 1)}"
        )
    text = text_tokens(config.length)
    if config.stopping is not None and prompt + text > policy.context:
        fewer = policy.context - text
        way_out = f"load the examples with max_prompt_tokens={fewer}, or " if fewer > 0 else ""
        raise UserError(
            f"the longest prompt has {prompt} tokens and the texts that stopping is learned from have {text}, longer "
            f"than {config.length}; {policy.source} reads {policy.context} together: {way_out}give stopping=None"
        )


def _run_config(policy: Policy, rooms: Mapping[str, Any]) -> RunConfig:
    config: RunConfig = _validated(RunConfig, {"policy": policy.options, **rooms})
    return config


def _validated(model: Any, values: Mapping[str, Any]) -> Any:
    for path in tree.unknown_keys(model, dict(values)):
        way_out = suggestion(model, path)
        if not way_out.startswith("did you mean"):  # it names a command line's --help
            way_out = f"see mlx_sumrl.config.{model.__name__} for those there are"
        raise UserError(
            f"unknown option {tree.dotted(path)} (value {shown(tree.lookup(values, path))}); {way_out}"
        )
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(validation_sentence(model, error, lambda path: "")) from None
