"""How often a model meets an asked length, and how good its summaries are.

    python -m recipes.evaluate --model runs/quickstart/export/model --data.evaluation posts.jsonl
    python -m recipes.evaluate --model M --adapter A --data.evaluation rows.jsonl --out result.json
    python -m recipes.evaluate --model M --data.evaluation rows.jsonl --force_length 64
    python -m recipes.evaluate --predictions P.jsonl --references R.jsonl

The last needs no model: see `recipes.evaluate_predictions`. The one before is the length-matched baseline: stop
tokens are forbidden before that length and the text is cut there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from rich.console import Console

from mlx_sumrl.config import DataConfig, EvaluationConfig
from mlx_sumrl.data.examples import config_rows, load_examples
from mlx_sumrl.evaluation.evaluate import evaluate
from mlx_sumrl.evaluation.table import comparison_table
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.reporting.progress import make_progress
from mlx_sumrl.rollouts import LocalSampler, Sampling
from recipes import evaluate_predictions
from recipes.given_model import GivenModel

DESCRIPTION = "Evaluate a model on held-out rows: length, ROUGE, METEOR."


class EvaluateConfig(GivenModel):
    """What to evaluate, on what."""

    data: DataConfig = DataConfig()
    """`data.evaluation` names the rows; prompts are as in training where the model's folder says how."""
    force_length: int | None = Field(default=None, gt=0)
    """Make every summary exactly this many tokens long: the length-matched baseline."""
    batch_size: int = Field(default=EvaluationConfig().batch_size, gt=0)
    """Prompts decoded at once."""
    out: Path | None = None
    """Write summary and rows as JSON here."""
    predictions: Path | None = None
    """Score this file of JSON answers in place of a model's; `--predictions P --help` lists its options."""
    references: Path | None = None
    """What they should have been."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data.evaluation is None and self.data.grammar is None:
            raise ValueError("data.evaluation is missing: name a .jsonl, .csv or .parquet file, or a dataset")
        return self


def main() -> None:
    """Load, evaluate, print, write."""
    if evaluate_predictions.asked_for(sys.argv[1:]):
        return evaluate_predictions.main()
    config = parse(EvaluateConfig, prog="python -m recipes.evaluate", description=DESCRIPTION)
    limit = config.force_length or config.max_tokens
    policy, data, length = config.loaded(limit)
    rows = config_rows(data, "evaluation", config.seed)
    assert rows is not None  # the config has checked it
    loaded = load_examples(rows, data, policy.tokenizer, length.target, "evaluation")
    console = Console()
    console.print(loaded.report.describe(), highlight=False, markup=False)
    with make_progress() as progress:
        progress.start("evaluating", len(loaded.examples))
        result = evaluate(
            LocalSampler(policy, config.batch_size),
            loaded.examples,
            length,
            Sampling(config.temperature, max_tokens=limit, min_tokens=config.force_length or 0),
            config.batch_size,
            config.seed,
            progress=lambda done, total: progress.update(done, {}),
            answers=config.answers(policy),
        )
    title = f"{len(result.rows)} rows, target {length}"
    console.print(comparison_table({Path(config.model).name: result}, title))
    if "reasoning_unfinished" in result.summary:
        console.print(
            f"answers alone: {result.summary['reasoning_length']:.1f} tokens before them on average, "
            f"{result.summary['reasoning_unfinished']:.1%} of completions never came to one",
            highlight=False,
        )
    if result.meteor_missing:
        console.print(f"no METEOR: {result.meteor_missing}", highlight=False, markup=False)
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n")
        console.print(f"wrote {config.out}", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
