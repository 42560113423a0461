"""How right predictions are that others made: files in, scores out; no model is loaded.

    python -m recipes.evaluate --predictions P.jsonl --references R.jsonl --out result.json
    python -m recipes.evaluate --predictions P.csv --references news.jsonl --reference_id_column metadata.item_id

Predictions have the columns id, relevance_score, key_insights, company_names, summary and is_valid_json, or whatever
the references have (`--rename`, `--fields`, `--id_column`).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlx_sumrl.config.predictions import PredictionsConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.predictions import load_predictions
from mlx_sumrl.evaluation.predictions_scores import PredictionsEvaluation, score_predictions
from mlx_sumrl.evaluation.structured_table import consistency_table, field_tables, summary_table
from mlx_sumrl.options.command_line import exit_code_of, parse, read_yaml
from mlx_sumrl.reporting.json_files import write_json

DESCRIPTION = (
    "Score predictions that are files against references, without a model: validity, lists, numbers, texts, beside "
    "what answers get that never look at a document."
)
PROGRAM = "python -m recipes.evaluate"


def asked_for(argv: Sequence[str]) -> bool:
    """Whether a command line, or the config file that it names, is about files of predictions."""
    names = [word.removeprefix("--").partition("=") for word in argv if word.startswith("--")]
    given = {name for name, _, _ in names}
    config = next((value for name, _, value in names if name == "config" and value), None)
    if config is None and "--config" in argv[:-1]:
        config = argv[list(argv).index("--config") + 1]
    from_file = read_yaml(Path(config)) if config is not None else {}
    return bool({"predictions", "references"} & {*given, *from_file})


def main() -> None:
    """Read, score, print, write."""
    if any(word.partition("=")[0] == "--model" for word in sys.argv[1:]):
        raise UserError(
            "--predictions are scored without a model: leave out --model, or leave out --predictions"
        )
    config = parse(PredictionsConfig, prog=PROGRAM, description=DESCRIPTION)
    if config.out is not None and config.out.is_dir():
        raise UserError(f"--out {config.out} is a folder; name a file")
    console = Console()
    predictions = load_predictions(config)
    console.print(predictions.account.describe(), highlight=False, markup=False)
    result = score_predictions(predictions, config)
    show(console, config.predictions.stem, result)
    if config.out is not None:
        options = config.model_dump(mode="json", exclude={"out"})
        content = {"options": options, "command": f"{PROGRAM} {shlex.join(sys.argv[1:])}", **result.to_json()}
        try:
            write_json(config.out, content)
        except OSError as error:
            raise UserError(
                f"--out {config.out} cannot be written ({error.strerror or error}); name another file"
            ) from error
        console.print(f"wrote {config.out}", highlight=False, markup=False)


def show(console: Console, name: str, result: PredictionsEvaluation) -> None:
    """The tables."""
    scores = {name: result.scores, **result.baselines}
    console.print(summary_table(scores, f"{len(result.predictions.rows)} answers"))
    for table in field_tables(scores):
        console.print(table)
    if result.consistency is not None:
        console.print(consistency_table(result.consistency))
    missing = {text.meteor_missing for text in result.scores.texts.values()} - {None}
    for reason in missing:
        console.print(f"no METEOR: {reason}", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
