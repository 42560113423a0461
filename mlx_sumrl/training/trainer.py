"""`Trainer`: carries one policy through the supervised phases and the stages of a curriculum.

Invariant: after every step the weights, the optimiser and `TrainState` belong together; a checkpoint is written
only then, and a run restored from one goes on exactly as if it had never stopped, since all data order and all
randomness follow from (seed, phase, step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_sumrl.config import Phase, RunConfig, SftConfig, StageConfig, StoppingConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.order import batch_indices
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.curve_file import CurveFile
from mlx_sumrl.reporting.progress import Progress, SilentProgress
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.rewards.scorer import Scorer
from mlx_sumrl.rewards.scoring import build_rewards
from mlx_sumrl.rollouts.answer_part import AnswerPart
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Group, NoSamplerError, Sampling, TrainingSampler
from mlx_sumrl.training.advantages import group_advantages
from mlx_sumrl.training.checkpoints import (
    TrainState,
    list_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from mlx_sumrl.training.grpo import grpo_gradient, training_rows
from mlx_sumrl.training.interrupts import finish_step_on_interrupt
from mlx_sumrl.training.loss import token_means
from mlx_sumrl.training.micro_batch import BatchGradient
from mlx_sumrl.training.multiplier import moved_multiplier
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.peak_rate import peak_rate
from mlx_sumrl.training.rollout_log import Metrics, rollout_metrics, rollout_records
from mlx_sumrl.training.schedule import learning_rate
from mlx_sumrl.training.seeds import derived_seed
from mlx_sumrl.training.sft import sft_gradient, with_answers
from mlx_sumrl.training.stopping import stopping_gradient
from mlx_sumrl.training.update import Guard, apply_update

SFT = "sft"
SUPERVISED = (SFT, StoppingConfig.name)
"""Names of the supervised phases; no stage may have one of them."""


class Trainer:
    """Trains a policy; with a run folder it also logs, saves and resumes."""

    def __init__(
        self,
        policy: Policy,
        config: RunConfig,
        *,
        sampler: TrainingSampler | None = None,
        run: RunFolder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.policy = policy
        self.config = config
        self.sampler = sampler or LocalSampler(policy, config.sampling.max_rows, config.sampling.cache_bits)
        self.run = run
        self.progress = progress or SilentProgress()
        self.curves = CurveFile(run.path, config.curves, self.progress.note) if run else None
        if run:
            run.track(config, self.progress.note)
        self.answers = AnswerPart.of(config.answer, policy.tokenizer)
        self.state = TrainState()
        self.guard = Guard(config.optimizer.max_bad_steps)
        self.optimizer = Optimizer(config.optimizer, derived_seed(config.seed, "rounding"))

    def restore(self) -> bool:
        """Go on from the run's newest checkpoint; False when it has none yet."""
        if self.run is None:
            return False
        remove_leftovers(self.run.path / "checkpoints")
        checkpoints = list_checkpoints(self.run.path / "checkpoints")
        self.run.truncate_after(int(checkpoints[-1].name[5:]) if checkpoints else 0)
        if not checkpoints:
            return False
        self.state = load_checkpoint(checkpoints[-1], self.policy, self.optimizer)
        self.guard.in_a_row, self.guard.total = self.state.bad_in_a_row, self.state.bad_total
        return True

    def sft(self, examples: Sequence[Example], options: SftConfig) -> None:
        """Supervised fine-tuning on the references; does nothing where the run is past it."""
        # Its own betas and decay hold for this phase only; the stages start with empty moments.
        self.optimizer.options = options.optimizer
        if not self._enter(SFT, fresh_optimizer=True):
            return
        examples = with_answers(examples, options.reference_column)

        def step() -> Metrics:
            batch = self._batch(examples, options.batch_size)
            gradient = sft_gradient(self.policy, batch, options.micro_batch_tokens)
            taught = options.optimizer
            rate = learning_rate(taught, self.state.phase_step, options.steps, taught.learning_rate)
            return {**self._update(gradient, rate), "tokens": gradient.sums.get("tokens", 0.0)}

        self._steps(SFT, options.steps, step, met=lambda metrics: False)

    def phase(self, phase: Phase, examples: Sequence[Example], shortened: Sequence[Example]) -> None:
        """One of `RunConfig.phases`; does nothing where the run is past it. ``shortened`` as for `stopping`."""
        if isinstance(phase, StoppingConfig):
            self.stopping(shortened, examples, phase)
        else:
            self.stage(phase, examples)

    def stopping(
        self, shortened: Sequence[Example], examples: Sequence[Example], options: StoppingConfig
    ) -> None:
        """Learning when to stop (`mlx_sumrl.training.stopping`); does nothing where the run is past it.

        From ``shortened``, the same ``examples`` with their documents cut short, for `short_share` of the steps; where
        it is empty, from the whole ones at once.
        """
        self.optimizer.options = options.optimizer
        if not self._enter(options.name, fresh_optimizer=True, fresh_reference=True):
            return
        own, run = options.optimizer, self.config.optimizer
        shared = own.learning_rate is None and own.kind == run.kind  # another kind bears another rate
        peak = peak_rate(run if shared else own, self.policy)
        at_once = options.micro_batch_tokens or self.config.grpo.micro_batch_tokens

        def step() -> Metrics:
            short = bool(shortened) and self.state.phase_step < options.short_share * options.steps
            batch = self._batch(shortened if short else examples, options.batch_size)
            gradient = stopping_gradient(self.policy, batch, self.config.length, options, at_once)
            rate = learning_rate(options.optimizer, self.state.phase_step, options.steps, peak)
            sums, decisions = gradient.sums, gradient.sums["tokens"]
            means = {f"stopping/{name}": sums[name] / decisions for name in ("right", "nats", "drift")}
            return {**self._update(gradient, rate), **means, "tokens": decisions}

        self._steps(options.name, options.steps, step, met=lambda metrics: False)

    def stage(self, stage: StageConfig, examples: Sequence[Example]) -> None:
        """One stage of GRPO; does nothing where the run is past it."""
        config, options = self.config, self.config.grpo
        scorer = Scorer(build_rewards(stage, config.length), config.scoring)
        credits_R = [reward.credit for reward in stage.rewards]
        peak = stage.learning_rate or stage.learning_rate_share * peak_rate(config.optimizer, self.policy)
        drawing = stage.drawing(config.sampling)
        sampling = Sampling.in_training(drawing)
        self.optimizer.options = config.optimizer
        done = self.state.phases_done
        taught = bool(done) and done[-1] in SUPERVISED  # moments and a reference of another loss
        anchored = options.beta > 0
        fresh_optimizer = taught or stage.optimizer == "fresh"
        fresh_reference = anchored and (taught or not done or stage.reference == "fresh")
        if not self._enter(stage.name, fresh_optimizer, fresh_reference):
            return
        if not anchored:
            self.policy.reference = (
                None  # of the phase before; not of one after this stage that is gone on with
            )

        self.sampler.publish(self.state.policy_version)

        def asked(ahead: int) -> tuple[list[Example], int, Sampling, int]:
            """What this step samples, or the one so many after it."""
            batch = self._batch(examples, options.prompts_per_step, ahead)
            seed = derived_seed(config.seed, "rollouts", self.state.step + ahead)
            return batch, options.group_size, sampling, seed

        def step() -> Metrics:
            started = time.perf_counter()
            if self.sampler.ahead:  # most of it is begun already
                for ahead in range(min(self.sampler.ahead + 1, stage.steps - self.state.phase_step)):
                    self.sampler.prepare(*asked(ahead))
            groups = self.sampler.sample(*asked(0))
            sampled = time.perf_counter()
            shown = self.answers.shown(groups)
            scores = scorer.scores(shown)
            multiplier = None
            if stage.constraint is not None:
                kept = self.state.multiplier
                multiplier = stage.constraint.initial if kept is None else kept
                scores = scores.scaled(dict.fromkeys(stage.constraint.scaled, multiplier))
                mean = scores.means()[stage.constraint.reward]
                self.state.multiplier = moved_multiplier(multiplier, mean, stage.constraint)
            advantages = group_advantages(scores.weighted_PGR, scores.weights_R, options, credits_R)
            metrics = rollout_metrics(
                groups, scores, advantages, self.state.policy_version, config.length, shown
            )
            metrics |= self.answers.metrics(groups, shown)
            metrics |= self.sampler.report()
            metrics |= scorer.report()
            if multiplier is not None:
                metrics["constraint/multiplier"] = multiplier
            rows = training_rows(groups, advantages)
            rate = learning_rate(config.optimizer, self.state.phase_step, stage.steps, peak)
            if broken := not _finite(groups):
                # A policy of NaN draws one token for ever: no advantages, so no gradient would tell.
                self.guard.skipped()
                rows = []
            trained = time.perf_counter()
            for _ in range(options.updates_per_rollout):
                gradient = grpo_gradient(self.policy, rows, options, drawing)
                metrics |= self._update(gradient, rate)
                if gradient.sums:
                    metrics |= token_means(gradient.sums)
            self.sampler.publish(self.state.policy_version)
            if broken:
                metrics["loss"] = math.nan
            metrics |= {"time/rollout": sampled - started, "time/train": time.perf_counter() - trained}
            if self.run and self.state.phase_step % config.reporting.rollouts_every == 0:
                count = config.reporting.rollout_groups
                at = self.state.step + 1
                self.run.append_rollouts(
                    rollout_records(
                        groups[:count],
                        scores,
                        advantages,
                        at,
                        stage.name,
                        config.length.unit,
                        shown[:count],
                    )
                )
            return metrics

        def met(metrics: Metrics) -> bool:
            return stage.until is not None and _number(metrics, stage.until.metric) >= stage.until.at_least

        def complete(group: Group) -> None:
            scorer.begin(self.answers.shown([group])[0])

        self.sampler.on_group = complete
        try:
            with scorer:
                self._steps(
                    stage.name, stage.steps, step, met, streak=stage.until.steps if stage.until else 0
                )
        finally:
            self.sampler.on_group = None

    def save(self) -> None:
        """Write a checkpoint of the state as it is; nothing without a run folder."""
        if self.run is None:
            return
        self.state.bad_in_a_row, self.state.bad_total = self.guard.in_a_row, self.guard.total
        save_checkpoint(
            self.run.path / "checkpoints",
            self.state,
            self.policy,
            self.optimizer,
            self.config.checkpoint.keep,
        )

    def _enter(self, name: str, fresh_optimizer: bool, fresh_reference: bool = False) -> bool:
        """Begin or go on with a phase; False when it is done."""
        state = self.state
        if name in state.phases_done:
            return False
        if state.phase != name:
            state.phase, state.phase_step, state.streak, state.multiplier = name, 0, 0, None
            if fresh_optimizer:
                self.optimizer.reset()
            # New adapters need no copy: their reference is the model with them off.
            if fresh_reference and not self.policy.adapters_are_new:
                self.policy.take_reference(self.config.grpo.reference)
        return True

    def _steps(
        self,
        name: str,
        total: int,
        step: Callable[[], Metrics],
        met: Callable[[Metrics], bool],
        streak: int = 0,
    ) -> None:
        """Take steps until ``total``, or until ``met`` has held ``streak`` times in a row; log and save."""
        state = self.state
        self.progress.start(name, total, state.phase_step)
        try:
            with finish_step_on_interrupt(self.progress.note) as stop:
                while True:
                    mx.random.seed(derived_seed(self.config.seed, "dropout", state.step))
                    mx.reset_peak_memory()
                    started = time.perf_counter()
                    try:
                        metrics = step()
                    except NoSamplerError:
                        self.save()
                        raise
                    seconds = time.perf_counter() - started
                    state.step += 1
                    state.phase_step += 1
                    state.streak = state.streak + 1 if met(metrics) else 0
                    self._log(name, metrics, seconds)
                    done = state.phase_step >= total or (streak and state.streak >= streak)
                    if done:
                        state.phases_done.append(name)
                    due = state.step % self.config.checkpoint.every == 0
                    # What a step skipped as not finite would save may be what broke it; the good ones stay.
                    if done or stop.asked or (due and not self.guard.in_a_row):
                        self.save()
                    if self.curves and (due or done or stop.asked):
                        self.curves.update(ends=bool(done or stop.asked))
                    if stop.asked:
                        raise KeyboardInterrupt
                    if done:
                        return
        finally:
            self.progress.finish()

    def _log(self, name: str, metrics: Metrics, seconds: float) -> None:
        tokens = _number(metrics, "tokens")
        metrics = {
            "step": self.state.step,
            "stage": name,
            "stage_step": self.state.phase_step,
            **metrics,
            "policy_version": self.state.policy_version,
            "tokens_per_second": tokens / seconds,
            "time/step": seconds,
            "memory/peak_gb": mx.get_peak_memory() / 1e9,
        }
        if self.run:
            self.run.append_metrics(metrics)
        self.progress.update(
            self.state.phase_step,
            {key: value for key, value in metrics.items() if isinstance(value, int | float)},
            self.sampler.status(),
        )

    def _update(self, gradient: BatchGradient, rate: float) -> dict[str, float]:
        count = self.optimizer.count
        metrics = apply_update(self.policy, self.optimizer, self.guard, gradient, rate)
        if self.optimizer.count > count:
            self.state.policy_version += 1
        return metrics

    def _batch(self, examples: Sequence[Example], size: int, ahead: int = 0) -> list[Example]:
        seed = derived_seed(self.config.seed, f"order {self.state.phase}")
        return [examples[i] for i in batch_indices(seed, len(examples), size, self.state.phase_step + ahead)]


def _finite(groups: Sequence[Group]) -> bool:
    return all(
        math.isfinite(logprob)
        for group in groups
        for completion in group.completions
        for logprob in completion.logprobs
    )


def _number(metrics: Metrics, name: str) -> float:
    value = metrics.get(name, float("nan"))
    return float(value) if isinstance(value, int | float) else float("nan")
