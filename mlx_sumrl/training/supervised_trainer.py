"""`SupervisedTrainer`: carries one policy through supervised fine-tuning, watched on rows that it never learns.

Invariant: after every step the weights, the optimiser and `SupervisedState` belong together; a checkpoint is written
only then, and a run restored from one goes on exactly as if it had never stopped, since all data order and all
randomness follow from (seed, step) and patience from the losses so far. The checkpoint of the lowest held-out loss
is never pruned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_sumrl.config import SftRunConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.order import batch_indices
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.reporting.curve_file import CurveFile
from mlx_sumrl.reporting.progress import Progress, SilentProgress
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Sampling
from mlx_sumrl.training.checkpoints import (
    TrainState,
    list_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    take_policy,
)
from mlx_sumrl.training.early_stopping import Verdict, verdict
from mlx_sumrl.training.interrupts import finish_step_on_interrupt
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.schedule import learning_rate
from mlx_sumrl.training.seeds import derived_seed
from mlx_sumrl.training.sft import supervised_gradient, supervised_loss
from mlx_sumrl.training.update import Guard, apply_update

SFT = "sft"
Metrics = dict[str, Any]


@dataclass
class SupervisedState(TrainState):
    """Where a supervised run is."""

    evaluations: list[list[float]] = field(default_factory=list)
    """[step, held-out loss], in the order in which they were measured."""


class SupervisedTrainer:
    """Trains a policy on rows; with a run folder it also logs, saves and resumes."""

    def __init__(
        self,
        policy: Policy,
        config: SftRunConfig,
        train: Sequence[SupervisedExample],
        held_out: Sequence[SupervisedExample] = (),
        *,
        run: RunFolder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.policy, self.config = policy, config
        self.train_rows, self.held_out = train, held_out
        self.run = run
        self.progress = progress or SilentProgress()
        self.curves = CurveFile(run.path, config.curves, self.progress.note) if run else None
        if run:
            run.track(config, self.progress.note)
        self.state = SupervisedState()
        self.guard = Guard(config.optimizer.max_bad_steps)
        self.optimizer = Optimizer(config.optimizer, derived_seed(config.seed, "rounding"))
        self.total = config.sft.total_steps(len(train))
        count = min(config.evaluation.train_rows, len(train))
        chosen = np.random.default_rng(derived_seed(config.seed, "train rows")).permutation(len(train))[
            :count
        ]
        self.measured_train = [train[i] for i in sorted(chosen.tolist())]
        self._best: tuple[float, Weights] | None = None
        """Its step and weights, where there is no run folder to keep them in."""

    @property
    def verdict(self) -> Verdict:
        """What the evaluations so far say."""
        return verdict([loss for _, loss in self.state.evaluations], self.config.early_stopping)

    @property
    def best_step(self) -> int | None:
        """The step whose policy has the lowest held-out loss."""
        best = self.verdict.best
        return None if best is None else int(self.state.evaluations[best][0])

    @property
    def done(self) -> bool:
        """Whether training is over: all steps, or patience at its end."""
        return SFT in self.state.phases_done

    def restore(self) -> bool:
        """Go on from the run's newest checkpoint; False when it has none yet."""
        if self.run is None:
            return False
        remove_leftovers(self._checkpoints)
        checkpoints = list_checkpoints(self._checkpoints)
        self.run.truncate_after(int(checkpoints[-1].name[5:]) if checkpoints else -1)
        if not checkpoints:
            return False
        self.state = load_checkpoint(checkpoints[-1], self.policy, self.optimizer, SupervisedState)
        self.guard.in_a_row, self.guard.total = self.state.bad_in_a_row, self.state.bad_total
        return True

    def train(self) -> None:
        """All steps that are left; does nothing where the run is past them."""
        if self.done:
            return
        state = self.state
        state.phase = SFT
        self.progress.start(SFT, self.total, state.step)
        try:
            with finish_step_on_interrupt(self.progress.note) as stop:
                if self.held_out and not state.evaluations:
                    self._log(self._evaluation())
                    self.save()
                while not self.done:
                    metrics = self._step()
                    ends = state.step >= self.total
                    measured = bool(self.held_out) and (
                        ends or state.step % self.config.evaluation.every == 0
                    )
                    if measured:
                        metrics |= self._evaluation()
                    if ends or (measured and self.verdict.stop):
                        state.phases_done.append(SFT)
                    self._log(metrics)
                    best = measured and self.best_step == state.step
                    due = state.step % self.config.checkpoint.every == 0 and not self.guard.in_a_row
                    if due or best or self.done or stop.asked:
                        self.save()
                    if self.curves and (due or measured or self.done or stop.asked):
                        self.curves.update(ends=self.done or stop.asked)
                    if measured and self.verdict.stop and not ends:
                        self.progress.note(self._stopped())
                    if stop.asked:
                        raise KeyboardInterrupt
        finally:
            self.progress.finish()

    def save(self) -> None:
        """Write a checkpoint of the state as it is; nothing without a run folder."""
        if self.run is None:
            return
        self.state.bad_in_a_row, self.state.bad_total = self.guard.in_a_row, self.guard.total
        save_checkpoint(
            self._checkpoints,
            self.state,
            self.policy,
            self.optimizer,
            self.config.checkpoint.keep,
            pinned=self.best_step,
        )

    def take_best(self) -> int | None:
        """From now on the policy is that of the lowest held-out loss. Its step; None where nothing was measured.

        Raises `UserError` where its checkpoint is gone or damaged.
        """
        step = self.best_step
        if step is None:
            return None
        if self.run is not None:
            take_policy(self._checkpoints / f"step-{step:06d}", self.policy)
        elif self._best is not None:
            self.policy.set_weights(self._best[1])
        return step

    @property
    def _checkpoints(self) -> Path:
        assert self.run is not None
        return self.run.path / "checkpoints"

    def _step(self) -> Metrics:
        """One optimiser step, and its metrics."""
        config, state = self.config, self.state
        mx.random.seed(derived_seed(config.seed, "dropout", state.step))
        mx.reset_peak_memory()
        started = time.perf_counter()
        order = derived_seed(config.seed, f"order {SFT}")
        places = batch_indices(order, len(self.train_rows), config.sft.batch_size, state.step)
        gradient = supervised_gradient(
            self.policy,
            [self.train_rows[i] for i in places],
            config.sft.micro_batch_tokens,
            config.sft.label_smoothing,
        )
        count, tokens = self.optimizer.count, gradient.sums["tokens"]
        rate = learning_rate(config.optimizer, state.step, self.total, config.optimizer.learning_rate)
        metrics: Metrics = dict(apply_update(self.policy, self.optimizer, self.guard, gradient, rate))
        seconds = time.perf_counter() - started
        state.step += 1
        state.phase_step = state.step
        state.policy_version += self.optimizer.count > count
        return metrics | {
            "train/loss": metrics["loss"],
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "time/step": seconds,
            "memory/peak_gb": mx.get_peak_memory() / 1e9,
        }

    def _evaluation(self) -> Metrics:
        """Losses on held-out and on training rows, both without dropout and smoothing; answers to some."""
        state, size = self.state, self.config.sft.micro_batch_tokens
        started = time.perf_counter()
        loss = supervised_loss(self.policy, self.held_out, size)
        metrics: Metrics = {"evaluation/loss": loss}
        said = f"step {state.step}: held-out loss {loss:.4f}"
        if self.measured_train:
            metrics["evaluation/train_loss"] = supervised_loss(self.policy, self.measured_train, size)
            said += f", on training rows {metrics['evaluation/train_loss']:.4f}"
        state.evaluations.append([state.step, loss])
        if self.run is not None:
            self.run.write_json(
                f"evaluation/step-{state.step:06d}.json",
                {"step": state.step, "rows": len(self.held_out), **metrics, "samples": self._samples()},
            )
        elif self.config.export.best and self.best_step == state.step:
            self._best = (state.step, self.policy.snapshot())
        self.progress.note(said + (" (lowest)" if self.best_step == state.step else ""))
        return metrics | {"time/evaluation": time.perf_counter() - started}

    def _samples(self) -> list[dict[str, Any]]:
        """What the policy answers to the first held-out prompts that leave room for an answer, greedily."""
        options, policy = self.config.evaluation, self.policy
        longest = options.sample_tokens
        context = math.inf if policy.context is None else policy.context
        rows = [row for row in self.held_out if len(row.prompt_ids) + longest <= context][: options.samples]
        if not rows:
            return []
        asked = [
            Example(row.id, row.prompt_ids, policy.decode(row.prompt_ids), "", policy.decode(_learned(row)))
            for row in rows
        ]
        groups = LocalSampler(policy).sample(asked, 1, Sampling(temperature=0, max_tokens=longest), 0)
        return [
            {
                "id": group.example.id,
                "prompt": group.example.prompt,
                "reference": group.example.reference,
                "answer": group.completions[0].text,
                "length": group.completions[0].length,
                "finish_reason": group.completions[0].finish_reason,
            }
            for group in groups
        ]

    def _log(self, metrics: Metrics) -> None:
        state = self.state
        row = {
            "step": state.step,
            "stage": SFT,
            "stage_step": state.step,
            "epoch": state.step * self.config.sft.batch_size / len(self.train_rows),
            **metrics,
            "policy_version": state.policy_version,
        }
        if self.run is not None:
            self.run.append_metrics(row)
        if state.step:
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            self.progress.update(state.step, numbers)

    def _stopped(self) -> str:
        patience, best = self.config.early_stopping.patience, self.verdict.best
        lowest = "" if best is None else f"; the lowest was {self.state.evaluations[best][1]:.4f}"
        return (
            f"stopped after step {self.state.step} of {self.total}: {patience} evaluations in a row without "
            f"improvement (early_stopping.patience){lowest}, at step {self.best_step}"
        )


def _learned(row: SupervisedExample) -> list[int]:
    """The tokens of an answer that are learned."""
    return [token for token, learned in zip(row.answer_ids, row.trained, strict=True) if learned]
