"""How often a model meets an asked length, and how good its summaries are.

    python -m recipes.evaluate --model runs/quickstart/export/model --data.evaluation posts.jsonl
    python -m recipes.evaluate --model M --adapter A --data.evaluation rows.jsonl --out result.json
    python -m recipes.evaluate --model M --data.evaluation rows.jsonl --samples 5 --temperature 0.7
    python -m recipes.evaluate --model M --data.evaluation rows.jsonl --bertscore roberta-large
    python -m recipes.evaluate --model M --data.evaluation rows.jsonl --force_length 64
    python -m recipes.evaluate --predictions P.jsonl --references R.jsonl

`--samples` draws several summaries of each row and says how much they vary. `--force_length` is the length-matched
baseline: stop tokens are forbidden before that length and the text is cut there. The last needs no model: see
`recipes.evaluate_predictions`.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from rich.console import Console

from mlx_sumrl.config import DataConfig, EvaluationConfig, PolicyConfig
from mlx_sumrl.data.examples import config_rows, load_examples
from mlx_sumrl.evaluation.evaluate import evaluate
from mlx_sumrl.evaluation.row_metrics import Combine, Scoring
from mlx_sumrl.evaluation.table import comparison_table, metrics_table
from mlx_sumrl.metrics.bertscore import BertScorer
from mlx_sumrl.metrics.catalogue import CATALOGUE
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.reporting.progress import make_progress
from mlx_sumrl.rollouts import LocalSampler, Sampling
from recipes import evaluate_predictions
from recipes.given_model import GivenModel

DESCRIPTION = (
    "Evaluate a model on held-out rows: length, overlap with references, what is copied and what is new."
)


class EvaluateConfig(GivenModel):
    """What to evaluate, on what."""

    data: DataConfig = DataConfig()
    """`data.evaluation` names the rows; prompts are as in training where the model's folder says how."""
    force_length: int | None = Field(default=None, gt=0)
    """Make every summary exactly this many tokens long: the length-matched baseline."""
    batch_size: int = Field(default=EvaluationConfig().batch_size, gt=0)
    """Prompts decoded at once."""
    samples: int = Field(default=1, gt=0)
    """Summaries drawn of each row, at a temperature above 0. The first is scored, all say how much they vary."""
    several_references: Combine = "best"
    """Where a row has several references, each metric's `best` or `mean` over them counts."""
    bertscore: Path | None = None
    """Folder of a BERT or RoBERTa encoder (config.json, safetensors, tokenizer): BERTScore is computed with it, too."""
    bertscore_layer: int | None = Field(default=None, ge=0)
    """Layer whose vectors are compared; the one known to be best for the encoder, or its last, otherwise."""
    bertscore_idf: bool = False
    """Weigh a token by how few of the references have it."""
    untouched: str | None = None
    """A model folder or a Hugging Face id of the same tokenizer, as the one that training began with: each summary's
    perplexity under it shows whether rewards have turned text into noise."""
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
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples {self.samples} at temperature 0 are the same summary {self.samples} times: "
                "give a temperature above 0, as --temperature 0.7, or leave out samples"
            )
        if self.bertscore is None and (self.bertscore_layer is not None or self.bertscore_idf):
            raise ValueError(
                "bertscore_layer and bertscore_idf say how bertscore is computed: name its folder"
            )
        return self

    def scorer(self) -> BertScorer | None:
        """What computes BERTScore. Raises `UserError` for a folder that holds no such encoder."""
        if self.bertscore is None:
            return None
        return BertScorer(self.bertscore, self.bertscore_layer, idf=self.bertscore_idf)


def main() -> None:
    """Load, evaluate, print, write."""
    if evaluate_predictions.asked_for(sys.argv[1:]):
        return evaluate_predictions.main()
    config = parse(EvaluateConfig, prog="python -m recipes.evaluate", description=DESCRIPTION)
    limit = config.force_length or config.max_tokens
    scorer = config.scorer()  # the costly part comes after all that can be wrong
    policy, data, length = config.loaded(limit)
    untouched = config.untouched and load_policy(
        PolicyConfig(model=config.untouched, dtype=config.dtype), trained=False
    )
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
            data=data,
            samples=config.samples,
            scoring=Scoring(config.several_references, scorer),
            untouched=untouched or None,
        )
    result = replace(result, options={**result.options, **_options(config, data)})
    title = f"{len(result.rows)} rows, target {length}"
    console.print(comparison_table({Path(config.model).name: result}, title))
    console.print(metrics_table(result))
    if scorer is not None and scorer.cut:
        console.print(
            f"BERTScore: {scorer.cut} texts are longer than the encoder reads, and were cut", highlight=False
        )
    if "reasoning_unfinished" in result.summary:
        console.print(
            f"answers alone: {result.summary['reasoning_length']:.1f} tokens before them on average, "
            f"{result.summary['reasoning_unfinished']:.1%} of completions never came to one",
            highlight=False,
        )
    for name, why in result.missing.items():
        console.print(f"no {CATALOGUE[name].title}: {why}", highlight=False, markup=False)
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n")
        console.print(f"wrote {config.out}", highlight=False, markup=False)


def _options(config: EvaluateConfig, data: DataConfig) -> dict[str, Any]:
    """What a report needs in order to say how this was done, and how to do it again."""
    asked = config.model_dump(
        mode="json", exclude={"data", "seed", "batch_size", "out", "samples", "temperature"}
    )
    return {
        **asked,
        "data": data.model_dump(mode="json", exclude_none=True),
        "command": shlex.join(["python", "-m", "recipes.evaluate", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
