"""How often a model's answers are the JSON that was asked for, and how many of their fields are right.

    python -m recipes.evaluate_structured --model M --data.evaluation news.jsonl \\
        --structured.schema recipes.news_tags:NewsTags
    python -m recipes.evaluate_structured --model M --adapter A --data.evaluation rows.jsonl \\
        --structured.schema answer.json --decodings free,stop,constrained --out result.json

Rows are conversations (`messages`) whose last answer is the reference, or documents whose reference is JSON.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from rich.console import Console

from mlx_sumrl.config import Decoding, EvaluationConfig, MaskingConfig, StructuredConfig
from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.data.answer_schema import AnswerSchema, load_schema, read_json
from mlx_sumrl.data.examples import config_rows
from mlx_sumrl.data.structured_examples import load_structured
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.structured import StructuredEvaluation, evaluate_structured
from mlx_sumrl.evaluation.structured_scores import check_soft_fields
from mlx_sumrl.evaluation.structured_table import field_tables, structured_table, summary_table
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.progress import make_progress
from mlx_sumrl.rollouts import LocalSampler, Sampling
from mlx_sumrl.rollouts.constraint import Constraint
from mlx_sumrl.rollouts.schema_constraint import end_of_json, schema_constraint
from recipes.given_model import GivenModel

DESCRIPTION = (
    "Evaluate a model on rows whose answers are JSON: validity, repairs, lists, numbers and texts, beside what answers "
    "get that never look at a document."
)
PROGRAM = "python -m recipes.evaluate_structured"
WARM_UP = 4
"""Tokens drawn before the clock starts: the first ones compile kernels, and are not the first decoding's own cost."""


class EvaluateStructuredConfig(MatchingConfig, GivenModel):
    """What to evaluate, on what."""

    structured: StructuredConfig
    decodings: tuple[Decoding, ...] = ()
    """Compare these (`free,stop,constrained`), in place of structured.decoding."""
    messages_column: str = MaskingConfig().messages_column
    """Column with conversations, lists of {role, content}; read where there is no data.document_column."""
    max_tokens: int = Field(default=256, gt=1)
    """Most tokens of an answer, the stop token counted."""
    batch_size: int = Field(default=EvaluationConfig().batch_size, gt=0)
    """Prompts decoded at once."""
    out: Path | None = None
    """Write summaries and rows as JSON here."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.data.evaluation is None:
            raise ValueError("data.evaluation is missing: name a .jsonl, .csv or .parquet file, or a dataset")
        return self


def main() -> None:
    """Load, evaluate with each decoding, print, write."""
    config = parse(EvaluateStructuredConfig, prog=PROGRAM, description=DESCRIPTION)
    schema = load_schema(config.structured.schema)
    rows = config_rows(config.data, "evaluation", config.seed)
    assert rows is not None  # the config has checked it
    policy, data, length = config.loaded(config.max_tokens)
    decodings = dict.fromkeys(config.decodings or (config.structured.decoding,))
    constraints = {decoding: _constraint(decoding, schema, policy) for decoding in decodings}
    loaded = load_structured(rows, data, config.messages_column, schema, policy.tokenizer, length.target)
    check_soft_fields([read_json(example.reference) for example in loaded.examples], config)
    console = Console()
    console.print(loaded.report.describe(), highlight=False, markup=False)
    LocalSampler(policy).sample(loaded.examples[:1], 1, Sampling(0, max_tokens=WARM_UP), config.seed)
    results: dict[str, StructuredEvaluation] = {}
    with make_progress() as progress:
        for decoding, constraint in constraints.items():
            progress.start(decoding, len(loaded.examples))
            results[decoding] = evaluate_structured(
                LocalSampler(policy, config.batch_size, constraint=constraint),
                loaded.examples,
                schema,
                Sampling(config.temperature, max_tokens=config.max_tokens),
                config.batch_size,
                config.seed,
                progress=lambda done, total: progress.update(done, {}),
                matching=config,
            )
    console.print(structured_table(results, f"{len(loaded.examples)} rows, {schema.name}"))
    scores = {name: result.scores for name, result in results.items()}
    scores |= next(iter(results.values())).baselines  # the same for all: they know the references only
    console.print(summary_table(scores))
    for table in field_tables(scores):
        console.print(table)
    _report_failures(console, results)
    if config.out:
        repeat = {
            "options": config.model_dump(mode="json", exclude={"out"}),
            "command": f"{PROGRAM} {shlex.join(sys.argv[1:])}",
        }
        _write(config.out, {name: {**repeat, **result.to_json()} for name, result in results.items()})
        console.print(f"wrote {config.out}", highlight=False, markup=False)


def _constraint(decoding: Decoding, schema: AnswerSchema, policy: Policy) -> Constraint | None:
    if decoding == "free":
        return None
    return (end_of_json if decoding == "stop" else schema_constraint)(schema, policy)


def _report_failures(console: Console, results: dict[str, StructuredEvaluation]) -> None:
    """The first answer of each decoding that is not valid, and why."""
    for name, result in results.items():
        failed = [row for row in result.rows if not row.answer.valid]
        if failed:
            text = " ".join(failed[0].text.split())
            console.print(
                f"{name}: {len(failed)} not valid; {failed[0].id}: {failed[0].answer.problem}: {text[:200]}",
                highlight=False,
                markup=False,
            )


def _write(path: Path, content: dict[str, object]) -> None:
    """Half of a surrogate pair, which JSON may hold and UTF-8 may not, stays an escape."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror or error}); name another file"
        ) from error


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
