"""A larger model judges summaries: faithfulness, coverage, conciseness, clarity, each 0 to 1.

    python -m recipes.judge --server http://127.0.0.1:8080 --model default_model --evaluation result.json
    python -m recipes.judge --server https://api.example.com/v1 --model large --key_variable EXAMPLE_KEY \
        --evaluation runs/a,runs/b --into judged --price.prompt 0.5 --price.completion 1.5 --max_cost 5
    python -m recipes.judge --server S --model M --evaluation ours.json --against theirs.json
    python -m recipes.judge --server S --model M --evaluation result.json --labels people.csv

Every reply is in OUT/ledger.jsonl the moment it comes: the same command goes on where it was stopped, and asks
nothing again that is there. OUT/judged.json holds the scores; --into writes evaluations that other recipes read.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mlx_sumrl.config import JudgeConfig
from mlx_sumrl.endpoint.asking import Stop
from mlx_sumrl.endpoint.client import Endpoint
from mlx_sumrl.endpoint.interrupts import INTERRUPTED, until_interrupted
from mlx_sumrl.endpoint.ledger import Ledger
from mlx_sumrl.endpoint.progress import AskingProgress, spent_line
from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.agreement import Agreement, Labels, agreements, read_labels
from mlx_sumrl.judging.judge import LEDGER_IDENTITY, NOT_ASKED, Found, Judge, judging_endpoint
from mlx_sumrl.judging.pairwise import pair_inquiries, paired_row, pairs_of
from mlx_sumrl.judging.questions import Inquiry
from mlx_sumrl.judging.results import (
    AGAINST,
    JUDGED,
    LEDGER,
    against_json,
    agreement_lines,
    copies,
    judged_json,
    pairwise_lines,
    scores_table,
    unscored_line,
    weighing_line,
    write_copies,
    write_result,
)
from mlx_sumrl.judging.rows import Judged, JudgedText, read_judged
from mlx_sumrl.judging.scores import inquiries, judged_rows
from mlx_sumrl.options.command_line import exit_code_of, parse

DESCRIPTION = (
    "Have a larger model judge summaries (G-Eval): faithfulness, coverage, conciseness and clarity, each 0 to 1; or, "
    "with --against, which of two is better, asked in both orders. The judge is any OpenAI-compatible server. Stopped "
    "at any moment, the same command goes on; no reply is paid for twice."
)
Ask = Callable[[Sequence[Inquiry]], Found]
Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Read, ask, count, write."""
    config = parse(JudgeConfig, argv, prog="python -m recipes.judge", description=DESCRIPTION)
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if config.against is not None:  # log-probabilities are of digits
        config = config.model_copy(update={"top_logprobs": 0})
    judged = read_judged(config.evaluation, config)
    endpoint = judging_endpoint(config)
    if endpoint.sends_key_in_the_open:
        say(f"the key goes to {endpoint.host} unencrypted: https would hide it")
    out = config.out or beside(config.evaluation[0])
    targets = copies(config, judged)
    labels = read_labels(config.labels, config) if config.labels is not None else None
    rivals = read_judged([config.against], config) if config.against is not None else []
    if len(rivals) > 1 or (rivals and len(judged) > 1):
        raise UserError("--against compares two evaluations: name one file for each, not a run's folder")
    pairs = [pairs_of(judged[0], theirs) for theirs in rivals]
    if labels is not None and len(judged) > 1:
        raise UserError(
            f"--labels {config.labels} belongs to one evaluation, and {len(judged)} are judged: name one"
        )

    with Ledger.open(out / LEDGER, LEDGER_IDENTITY) as ledger:

        def ask(inquiries: Sequence[Inquiry]) -> Found:
            asked = len(dict.fromkeys(inquiries))
            say(f"{asked:,} questions for {config.model} at {endpoint.host}")
            with AskingProgress(console) as progress:
                return asyncio.run(_ask(config, endpoint, ledger, inquiries, progress))

        if rivals:
            found = _compare(config, judged[0], rivals[0], pairs[0], ledger, ask, out, say)
        else:
            found = _score(config, judged, targets, labels, ledger, ask, out, say, console)
        say(spent_line(ledger))
    if found.stopped is not None:
        left = sum(why.startswith(NOT_ASKED) for why in found.unscored.values())
        say(f"{left:,} questions left open: {found.stopped}; the same command goes on from here")
        if found.stopped == INTERRUPTED:
            raise KeyboardInterrupt


def beside(evaluation: Path) -> Path:
    """The folder of the results, where `--out` names none."""
    return (evaluation if evaluation.is_dir() else evaluation.parent) / "judged"


def _score(
    config: JudgeConfig,
    judged: Sequence[Judged],
    targets: Mapping[str, Path],
    labels: Labels | None,
    ledger: Ledger,
    ask: Ask,
    out: Path,
    say: Say,
    console: Console,
) -> Found:
    """Each row by each criterion."""
    found = ask([inquiry for one in judged for inquiry in inquiries(one.texts, config)])
    scored = {one.name: (one, judged_rows(one.texts, found, config)) for one in judged}
    agreed: dict[str, Agreement] = {}
    if labels is not None:
        rows = scored[judged[0].name][1]
        agreed = agreements(rows, labels, resamples=config.resamples, seed=config.seed)
    write_result(out / JUDGED, judged_json(config, ledger, found, scored, agreed))
    write_copies(targets, scored)
    console.print(scores_table(scored))
    reasons = sum((row.unscored for _, rows in scored.values() for row in rows), Counter[str]())
    unscored = unscored_line(reasons, found.malformed, found.example)
    for line in [
        weighing_line(scored) if config.form == "criterion" else None,
        unscored,
        *agreement_lines(agreed),
    ]:
        if line:
            say(line)
    if labels is not None and labels.unusable:
        say(f"{labels.path}: {labels.unusable} rows without an id or a score were left out")
    say(f"wrote {', '.join(str(path) for path in [out / JUDGED, *targets.values()])}")
    return found


def _compare(
    config: JudgeConfig,
    ours: Judged,
    theirs: Judged,
    pairs: Sequence[tuple[JudgedText, JudgedText]],
    ledger: Ledger,
    ask: Ask,
    out: Path,
    say: Say,
) -> Found:
    """Each pair in both orders."""
    found = ask([one for pair in pairs for both in pair_inquiries(*pair, config) for one in both])
    rows = [paired_row(*pair, found, config) for pair in pairs]
    write_result(out / AGAINST, against_json(config, ledger, found, ours, theirs, rows))
    reasons = sum((row.unscored for row in rows), Counter[str]())
    for line in [*pairwise_lines(ours, theirs, rows), unscored_line(reasons, found.malformed, found.example)]:
        if line:
            say(line)
    say(f"wrote {out / AGAINST}")
    return found


async def _ask(
    config: JudgeConfig,
    endpoint: Endpoint,
    ledger: Ledger,
    inquiries: Sequence[Inquiry],
    progress: AskingProgress,
) -> Found:
    async def run(stop: Stop) -> Found:
        async with endpoint:
            await ledger.plan_for({"questions": len(inquiries)})
            return await Judge(config, endpoint, ledger, stop, progress.show, progress.note).ask(inquiries)

    return await until_interrupted(run, progress.note)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
