"""How many tokens a second does sampling make? ``python -m benchmarks.rollout_throughput [--json]``

mlx_sumrl's `LocalSampler` against mlx-lm's ``batch_generate``, each in a fresh process, in alternating order, on
the same model folder, prompts and lengths. mlx-lm is measured three ways: as it comes, with room for all
completions at once, and with that and each prompt computed once and handed over as a cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import shown, summary, taken_in_turn
from benchmarks.workload import Model, examples, make_model, prompts
from mlx_sumrl.errors import UserError

OURS = "mlx_sumrl"
PLAIN, WIDE, CACHED = "batch_generate", "batch_generate, wide", "batch_generate, wide, prompts cached"
VARIANTS = (OURS, PLAIN, WIDE, CACHED)
WARM_UP = 1
HELD_EQUAL = (
    "model folder (random Qwen2, hidden 256, 4 layers, 8 heads of which 2 for keys and values), float32, same BLAS",
    "prompts as token ids, each given once for every completion; every completion has exactly the tokens asked for",
    "temperature 1 and no filter; prompts are computed within the time that is measured",
    f"a fresh process for each measurement, alternating order, {WARM_UP} round of warm-up left out",
)
NOT_EQUAL = (
    "mlx_sumrl also returns each token's log-probability and the completions' texts; mlx-lm is asked for neither",
    "'wide': completion_batch_size and prefill_batch_size are all completions (32 and 8 otherwise); 'prompts "
    "cached': each prompt but its last token is run once, within the time, and shared through prompt_caches",
)


@dataclass(frozen=True)
class Load:
    """What is sampled."""

    prompts: int = 8
    completions: int = 8
    prompt_tokens: int = 200
    new_tokens: int = 64
    vocabulary: int = 4096

    @property
    def tokens(self) -> int:
        """Tokens that are made."""
        return self.prompts * self.completions * self.new_tokens


TOY = Load(prompts=2, completions=2, prompt_tokens=12, new_tokens=4, vocabulary=512)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.rollout_throughput",
        question=__doc__,
        options=options,
        measure=compare,
        work=work,
        table=table,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--rounds", type=positive, default=3, help="timed rounds in each process")
    parser.add_argument("--repeats", type=positive, default=2, help="processes for each variant")


def compare(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    load = TOY if asked.toy else Load()
    settings = {"load": asdict(load), "rounds": asked.rounds, "repeats": asked.repeats}
    report = opened_report("rollout_throughput", HELD_EQUAL, NOT_EQUAL, **settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model", Model(vocabulary=load.vocabulary))
        task = {"folder": str(folder), "load": asdict(load), "rounds": asked.rounds}
        taken = taken_in_turn("benchmarks.rollout_throughput", VARIANTS, asked.repeats, lambda variant: task)
    report["machine_load"] = list(taken.load)
    report["variants"] = {}
    for variant, results in taken.results.items():
        rounds = [one for result in results for one in result["rounds"][WARM_UP:]]
        for one in rounds:
            if one["tokens"] != load.tokens:
                raise UserError(f"{variant} made {one['tokens']:.0f} tokens, not {load.tokens}")
        report["variants"][variant] = {
            "tokens_per_second": summary([one["tokens"] / one["seconds"] for one in rounds]),
            "peak": summary([one["peak"] for one in rounds]),
        }
    ours = report["variants"][OURS]["tokens_per_second"]["median"]
    report["ours_over_peer"] = {
        variant: ours / report["variants"][variant]["tokens_per_second"]["median"] for variant in VARIANTS[1:]
    }
    return report


def work(variant: str, folder: str, load: dict[str, int], rounds: int) -> dict[str, Any]:
    """One variant's rounds, warm-up included, in this process."""
    import mlx.core as mx

    size = Load(**load)
    ids = prompts(size.prompts, size.prompt_tokens, size.vocabulary)
    run = _ours(folder, ids, size) if variant == OURS else _mlx_lm(variant, folder, ids, size)
    taken = []
    for place in range(WARM_UP + rounds):
        mx.reset_peak_memory()
        started = time.perf_counter()
        tokens = run(place)
        taken.append(
            {"seconds": time.perf_counter() - started, "tokens": tokens, "peak": float(mx.get_peak_memory())}
        )
    return {"rounds": taken}


def _ours(folder: str, ids: list[list[int]], size: Load) -> Callable[[int], int]:
    from mlx_sumrl.config import PolicyConfig
    from mlx_sumrl.policy.loading import load_policy
    from mlx_sumrl.rollouts.local import LocalSampler
    from mlx_sumrl.rollouts.types import Sampling

    policy = load_policy(PolicyConfig(model=folder, dtype="float32", tuning="full"))
    policy.stop_ids = frozenset()  # nothing ends a completion but its length
    sampler = LocalSampler(policy, max_rows=size.prompts * size.completions)
    sampling = Sampling(max_tokens=size.new_tokens)
    asked = examples(ids)

    def run(place: int) -> int:
        groups = sampler.sample(asked, size.completions, sampling, seed=place)
        return sum(len(completion.token_ids) for group in groups for completion in group.completions)

    return run


def _mlx_lm(variant: str, folder: str, ids: list[list[int]], size: Load) -> Callable[[int], int]:
    import mlx.core as mx
    from mlx_lm import batch_generate, load
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.sample_utils import make_sampler

    model, tokenizer = load(folder)
    tokenizer.eos_token_ids = set()  # nothing ends a completion but its length
    sampler = make_sampler(1.0)
    all_rows = size.prompts * size.completions
    wide = {} if variant == PLAIN else {"completion_batch_size": all_rows, "prefill_batch_size": all_rows}

    def filled(prompt: list[int]) -> list[Any]:
        cache = make_prompt_cache(model)
        model(mx.array([prompt[:-1]]), cache=cache)
        return list(cache)

    def shared(cache: list[Any]) -> list[Any]:
        copy = make_prompt_cache(model)
        for target, source in zip(copy, cache, strict=True):
            target.state = source.state
        return list(copy)

    def run(place: int) -> int:
        mx.random.seed(place)
        asked = [prompt for prompt in ids for _ in range(size.completions)]
        caches = None
        if variant == CACHED:
            own = [filled(prompt) for prompt in ids]
            caches = [shared(cache) for cache in own for _ in range(size.completions)]
            asked = [prompt[-1:] for prompt in asked]
        answer = batch_generate(
            model,
            tokenizer,
            asked,
            prompt_caches=caches,
            max_tokens=size.new_tokens,
            return_token_ids=True,
            sampler=sampler,
            **wide,
        )
        return sum(len(row) for row in answer.token_ids)

    return run


def table(report: Report) -> Table:
    """The report for a person: medians, and in brackets the lowest and the highest."""
    size = report["load"]
    shown_table = Table(
        "",
        "tokens/s",
        "mlx_sumrl is faster by",
        "peak MB",
        title=f"{size['prompts']} x {size['completions']} completions of {size['new_tokens']} tokens, "
        f"{size['prompt_tokens']} prompt tokens",
    )
    for variant, numbers in report["variants"].items():
        ratio = report["ours_over_peer"].get(variant)
        shown_table.add_row(
            variant,
            shown(numbers["tokens_per_second"], digits=0),
            f"{ratio:.2f} x" if ratio else "",
            shown(numbers["peak"], 1e-6, 0),
        )
    return shown_table


if __name__ == "__main__":
    sys.exit(main())
