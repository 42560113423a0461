"""A dataset from a larger model's answers, with nothing paid for twice.

    python -m recipes.distill --teacher http://127.0.0.1:8080 --model default_model --source posts.jsonl --out data/mine
    python -m recipes.distill --teacher https://api.example.com/v1 --model large --key_variable EXAMPLE_KEY \
        --source '[{file: news.jsonl, weight: 3}, {file: blogs.csv, document_column: body}]' --rows 5000 \
        --price.prompt 0.5 --price.completion 1.5 --max_cost 20 --out data/mine
    python -m recipes.distill --from_ledger --filter.longest 60 --out data/mine

Every answer is in OUT/ledger.jsonl the moment it comes. The same command goes on where it was stopped, however that
was; the last one asks nothing and writes OUT/train.jsonl again with other filters.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.data.distillation.answer_filter import AnswerFilter, language_finder
from mlx_sumrl.data.distillation.dataset import (
    LEDGER,
    TRAIN,
    make_dataset,
    refuse_foreign_folder,
    write_dataset,
)
from mlx_sumrl.data.distillation.documents import counted, plan_documents
from mlx_sumrl.data.distillation.questions import Instructions, Question, identity
from mlx_sumrl.endpoint.asking import Asked, Asking, Stop
from mlx_sumrl.endpoint.client import Endpoint
from mlx_sumrl.endpoint.interrupts import INTERRUPTED, until_interrupted
from mlx_sumrl.endpoint.ledger import Ledger
from mlx_sumrl.endpoint.progress import AskingProgress, spent_line
from mlx_sumrl.options.command_line import exit_code_of, parse

DESCRIPTION = (
    "Ask a larger model to summarise documents, and write its answers as a dataset to train on. The teacher is any "
    "OpenAI-compatible server. Stopped at any moment, the same command goes on; no answer is paid for twice."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Plan, ask, write."""
    config = parse(DistillConfig, argv, prog="python -m recipes.distill", description=DESCRIPTION)
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    refuse_foreign_folder(config.out)
    languages = language_finder(config)
    answer_filter = AnswerFilter(config.filter, languages)
    keys: set[str] | None = None
    stopped: str | None = None
    if config.from_ledger:
        ledger = Ledger.open(config.out / LEDGER, None)
    else:
        assert config.teacher is not None  # the config has checked it
        teacher = Endpoint(config, config.teacher, named="teacher")
        instructions = Instructions(config)
        plan = plan_documents(config, instructions.columns, languages)
        say(plan.describe())
        if teacher.sends_key_in_the_open:
            say(f"the key goes to {teacher.host} unencrypted: https would hide it")
        questions = instructions.questions(plan.documents, config.answers)
        keys = {question.key for question in questions}
        ledger = Ledger.open(config.out / LEDGER, identity(config))
    with ledger:
        if keys is not None:
            note = {"sources": plan.sources, "left_out": plan.left_out, "questions": len(questions)}
            with AskingProgress(console) as progress:
                asked = asyncio.run(_ask(config, teacher, ledger, instructions, questions, note, progress))
            stopped = asked.stopped
        dataset = make_dataset(config, ledger, answer_filter, keys)
        write_dataset(config, ledger, dataset, keys, stopped)
        say(spent_line(ledger))
    say(f"{config.out / TRAIN}: {dataset.describe()}")
    if keys is not None and asked.failed:
        reasons = ", ".join(f"{n} x {why}" for why, n in asked.failed.most_common())
        say(f"{counted(asked.failed.total(), 'question')} failed: {reasons}; the same command asks again")
    if keys is not None and asked.refused_before:
        refused = counted(asked.refused_before, "question")
        say(f"{refused} left out that {teacher.host} refused before; --retry.refused asks again")
    if stopped is not None:
        left = counted(asked.total - asked.done - asked.failed.total(), "question")
        say(f"{left} left open: {stopped}; the same command goes on from here")
        if stopped == INTERRUPTED:
            raise KeyboardInterrupt


async def _ask(
    config: DistillConfig,
    teacher: Endpoint,
    ledger: Ledger,
    instructions: Instructions,
    questions: Sequence[Question],
    plan: dict[str, object],
    progress: AskingProgress,
) -> Asked:
    """Ask what is open."""

    async def run(stop: Stop) -> Asked:
        async with teacher:
            await ledger.plan_for(plan)
            asking = Asking(config, teacher, ledger, instructions, stop, progress.show, progress.note)
            return await asking.run(questions)

    return await until_interrupted(run, progress.note)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
