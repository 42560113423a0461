"""mlx-lm-lora's GRPO trainer, driven through its own front door: ``train_grpo``, as its program calls it.

The clock hangs on two hooks that it offers: a step begins where it asks for its next batch, and its rollout ends
where it calls the reward function. Everything between is its own code. ``wide`` also lifts the two limits that no
setting of it reaches (it decodes, and trains on, as many completions at once as there are *prompts* in a step).
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.workload import checksum
from mlx_sumrl.errors import UserError

PACKAGE = "mlx-lm-lora"
MISSING = f"{PACKAGE} is not installed, and there is nothing to compare with: pip install 'mlx_sumrl[bench]'"


def require_peer() -> None:
    """Raises `UserError` when the peer is not installed."""
    if importlib.util.find_spec("mlx_lm_lora") is None:
        raise UserError(MISSING)


def peer_steps(
    folder: str,
    ids: list[list[int]],
    *,
    group_size: int,
    new_tokens: int,
    tuning: str,
    rank: int,
    alpha: float,
    learning_rate: float,
    steps: int,
    wide: bool,
) -> tuple[list[dict[str, float]], float]:
    """Seconds and peak bytes of each step, and the completion tokens it trained on in each, on average.

    One step more than asked for is made: in the last it reports and saves.
    """
    require_peer()
    import mlx.core as mx
    import mlx.optimizers as optimizers
    import numpy as np
    from mlx_lm import load
    from mlx_lm_lora.trainer import grpo_trainer

    model, tokenizer = load(folder)
    tokenizer.eos_token_ids = set()  # nothing ends a completion but its length
    if tuning == "full":
        model.unfreeze()
    else:
        add_adapters(model, rank, alpha / rank)
    if wide:
        _lift_limits(grpo_trainer, rows=len(ids) * group_size)

    begun: list[tuple[float, float]] = []
    """Of each step: when it began, and the peak of the step before."""
    sampled: list[float] = []

    def timed_batches(**arguments: Any) -> Iterator[Any]:
        for batch in grpo_trainer.iterate_grpo_batches(**arguments):
            peak = float(mx.get_peak_memory())
            mx.reset_peak_memory()
            begun.append((time.perf_counter(), peak))
            yield batch

    def reward(prompts: list[str], completions: list[str], answer: list[str], types: Any) -> list[float]:
        sampled.append(time.perf_counter())
        return checksum(prompts, completions)

    class Report:
        tokens = math.nan

        def on_train_loss_report(self, information: dict[str, float]) -> None:
            self.tokens = information["trained_tokens"]

    report = Report()
    mx.random.seed(0)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        grpo_trainer.train_grpo(
            model=model,
            ref_model=None,
            tokenizer=tokenizer,
            optimizer=optimizers.AdamW(
                learning_rate, betas=[0.9, 0.99], eps=1e-8, weight_decay=0.0, bias_correction=True
            ),
            train_dataset=[(row, [], "", "") for row in ids],
            reward_funcs=[reward],
            args=grpo_trainer.GRPOTrainingArgs(
                batch_size=len(ids),
                iters=steps + 1,
                steps_per_report=steps + 1,
                steps_per_save=steps + 2,
                adapter_file=str(Path(scratch) / "adapters.safetensors"),
                group_size=group_size,
                max_completion_length=new_tokens,
                max_seq_length=max(len(row) for row in ids),
                beta=0.0,
                epsilon=0.2,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                grpo_loss_type="grpo",
            ),
            iterate_batches=timed_batches,
            training_callback=report,
            end_answer_token="",
        )
    measured = [
        {
            "step": end - start,
            "rollout": middle - start,
            "train": end - middle,
            "peak": peak,
        }
        for (start, _), middle, (end, peak) in zip(begun, sampled, begun[1:], strict=False)
    ]
    return measured, report.tokens / (steps + 1)


def add_adapters(model: Any, rank: int, scale: float) -> None:
    """LoRA on all linear layers of all blocks, as mlx-lm's programs add it; draws from mx.random."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from mlx_sumrl.policy.mlx_internals import linear_names

    model.freeze()
    shape = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": linear_names(model)}
    linear_to_lora_layers(model, -1, shape)


def _lift_limits(grpo_trainer: Any, rows: int) -> None:
    generator, gradient = grpo_trainer.BatchGenerator, grpo_trainer._grpo_value_and_grad

    def wide_generator(*arguments: Any, **options: Any) -> Any:
        return generator(*arguments, **{**options, "completion_batch_size": rows, "prefill_batch_size": rows})

    def wide_gradient(loss_value_and_grad: Any, model: Any, chunk_size: int, **options: Any) -> Any:
        return partial(gradient, loss_value_and_grad, model, rows)(**options)

    grpo_trainer.BatchGenerator = wide_generator
    grpo_trainer._grpo_value_and_grad = wide_gradient
