"""Steps of supervised fine-tuning, this library's and mlx_lm.lora's, timed alike.

A step begins where its rows are asked for and ends where those of the next are: making the batch is part of it.
The peak is reset where a step begins and nowhere else.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.supervised_rows import SupervisedRow
from mlx_sumrl.errors import UserError

Tuning = Literal["lora", "full"]
Batches = Sequence[Sequence[SupervisedRow]]
RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-4
BETAS, EPS = (0.9, 0.99), 1e-8
NEVER = 1e9
"""A norm that no gradient reaches: nothing is clipped."""
HELD_ROWS = 16
"""Rows whose loss is computed at once."""


class Clock:
    """Seconds and peak bytes of each step; `tick` where one begins, and once more where the last one ends."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._begun: float | None = None

    def tick(self) -> None:
        """The step before ends here, and the next begins."""
        import mlx.core as mx

        now = time.perf_counter()
        if self._begun is not None:
            self.steps.append({"seconds": now - self._begun, "peak": float(mx.get_peak_memory())})
        mx.reset_peak_memory()
        self._begun = time.perf_counter()


def own_sft_steps(
    folder: str, batches: Batches, held: Sequence[SupervisedRow], tuning: Tuning
) -> dict[str, Any]:
    """Each batch a step, as `Trainer.sft` takes it; the held rows' loss afterwards. Raises `UserError`."""
    from mlx_sumrl.config import LoraConfig, PolicyConfig, SftConfig, SftOptimizerConfig
    from mlx_sumrl.data.answers import answer_ids
    from mlx_sumrl.data.example import Example
    from mlx_sumrl.policy.loading import load_policy
    from mlx_sumrl.training.optimizer import Optimizer
    from mlx_sumrl.training.sft import sft_gradient
    from mlx_sumrl.training.update import Guard, apply_update

    policy = load_policy(
        PolicyConfig(model=folder, dtype="float32", tuning=tuning, lora=LoraConfig(rank=RANK, alpha=ALPHA))
    )
    options = SftConfig(
        optimizer=SftOptimizerConfig(learning_rate=LEARNING_RATE, betas=BETAS, eps=EPS, max_grad_norm=NEVER)
    )
    optimizer, guard = Optimizer(options.optimizer, 0), Guard(options.optimizer.max_bad_steps)

    def example(row: SupervisedRow) -> Example:
        if answer_ids(policy.tokenizer, row.reference, policy.stop_id) != row.answer_ids:
            raise UserError(f"{folder} splits {row.reference[:40]!r} into other tokens than those measured")
        return Example("", row.prompt_ids, "", "", row.reference)

    asked = [[example(row) for row in batch] for batch in batches]
    clock = Clock()
    for rows in asked:
        clock.tick()
        gradient = sft_gradient(policy, rows, options.micro_batch_tokens)
        apply_update(policy, optimizer, guard, gradient, LEARNING_RATE)
    clock.tick()
    trained = sum(len(row.answer_ids) for batch in batches for row in batch)
    return {"steps": clock.steps, "trained_tokens": trained, "held_loss": held_loss(policy.model, held)}


def peer_sft_steps(
    folder: str, batches: Batches, held: Sequence[SupervisedRow], tuning: Tuning
) -> dict[str, Any]:
    """The same by ``mlx_lm.tuner.trainer.train``, the trainer of mlx_lm.lora.

    Batches are padded by its own ``iterate_batches``, one at a time, so that the rows of each are known.
    """
    import mlx.core as mx
    import mlx.optimizers as optimizers
    from mlx_lm import load
    from mlx_lm.tuner import trainer

    from benchmarks.peer import add_adapters

    model, _ = load(folder)
    if tuning == "full":
        model.unfreeze()
    else:
        mx.random.seed(0)
        add_adapters(model, RANK, ALPHA / RANK)
    clock = Clock()

    def timed_batches(max_seq_length: int, **others: Any) -> Iterator[Any]:
        for batch in batches:
            clock.tick()
            pairs = [([*row.prompt_ids, *row.answer_ids], len(row.prompt_ids)) for row in batch]
            [(tokens, lengths)] = trainer.iterate_batches(pairs, len(pairs), max_seq_length)
            # Its lengths count one token too many, and its loss would train a token of padding in each row.
            yield tokens, lengths - mx.array([[0, 1]])

    class Report:
        tokens = math.nan

        def on_train_loss_report(self, information: dict[str, float]) -> None:
            clock.tick()
            self.tokens = information["trained_tokens"]

    report = Report()
    with tempfile.TemporaryDirectory() as scratch:
        trainer.train(
            model,
            optimizers.AdamW(
                LEARNING_RATE, betas=list(BETAS), eps=EPS, weight_decay=0.0, bias_correction=True
            ),
            train_dataset=None,
            args=trainer.TrainingArgs(
                batch_size=len(batches[0]),
                iters=len(batches),
                steps_per_report=len(batches),
                steps_per_save=len(batches) + 1,
                adapter_file=str(Path(scratch) / "adapters.safetensors"),
            ),
            iterate_batches=timed_batches,
            training_callback=report,
        )
    return {"steps": clock.steps, "trained_tokens": report.tokens, "held_loss": held_loss(model, held)}


def held_loss(model: Any, rows: Sequence[SupervisedRow]) -> float:
    """Mean cross-entropy in nats per answer token of rows that nobody trained on; the same for all sides."""
    import numpy as np

    from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch

    model.eval()
    total = 0.0
    for start in range(0, len(rows), HELD_ROWS):
        part = rows[start : start + HELD_ROWS]
        batch = token_batch([row.prompt_ids for row in part], [row.answer_ids for row in part])
        total -= float(np.array(completion_logprobs(model, batch)).sum(dtype=np.float64))
    return total / sum(len(row.answer_ids) for row in rows)
