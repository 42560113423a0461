"""The dataset that a ledger's answers make: rows with their provenance, and a card. Never imports mlx.

Invariant: the rows are a function of the ledger and the options; each answer in the ledger is one row or counted
under a reason. Each file is replaced whole, and card.json, which holds the others' checksums, comes last and goes
first: where it is, the dataset is whole.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.data.distillation.answer_filter import AnswerFilter, after_thinking
from mlx_sumrl.data.distillation.documents import counted, form
from mlx_sumrl.endpoint.ledger import Ledger, now
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.json_files import encoded, replacing, write_json

LEDGER = "ledger.jsonl"
TRAIN, VALIDATION, CARD = "train.jsonl", "validation.jsonl", "card.json"
FIRST_ROWS = 3
"""Rows named for each reason."""


@dataclass(slots=True)
class Dataset:
    """Rows, and what became of the answers that are none."""

    train: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> rows of the sources."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All of them."""
        return [*self.train, *self.validation]

    def describe(self) -> str:
        """The account as a sentence for people."""
        text = f"{counted(len(self.train), 'row')} for training"
        if self.validation:
            text += f", {len(self.validation)} for validation"
        if self.dropped:
            reasons = sorted(self.dropped.items(), key=lambda item: -len(item[1]))
            text += "; answers left out: " + ", ".join(f"{len(rows)} x {why}" for why, rows in reasons)
        return text


def refuse_foreign_folder(out: Path) -> None:
    """Raises `UserError` when `out` holds a dataset that no ledger made: it would be written over."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    held = [name for name in (TRAIN, VALIDATION, CARD) if (out / name).exists()]
    if held and not (out / LEDGER).exists():
        raise UserError(f"{out} holds {held[0]} and no ledger: it is another dataset; choose another --out")


def make_dataset(
    config: DistillConfig, ledger: Ledger, answer_filter: AnswerFilter, keys: Collection[str] | None = None
) -> Dataset:
    """The rows that the answers to `keys` (None: all in the ledger) make."""
    answers = [one for one in ledger.answers.values() if keys is None or one["key"] in keys]
    answers.sort(key=lambda one: (one["order"], _digest(one["document"]), one["sample"]))
    dataset = Dataset()
    seen: set[str] = set()
    kept: list[tuple[str, dict[str, Any]]] = []
    ids: set[str] = set()
    for answer in answers:
        text, reasoning, why = answer["text"].strip(), answer["reasoning"], None
        try:
            text, thought = after_thinking(text)
            reasoning = reasoning or thought
        except ValueError as error:
            why = str(error)
        why = why or answer_filter.reason_against(
            text, answer["finish_reason"], answer["document"], answer["language"]
        )
        if why is None and (same := form(text, config.same)) in seen:
            why = "the same answer is there already"
        if why is not None:
            dataset.dropped.setdefault(why, []).append(answer["row"])
            continue
        seen.add(same)
        wanted = answer["id"] if answer["sample"] == 0 else f"{answer['id']}/{answer['sample'] + 1}"
        row_id = _free(wanted, ids)
        ids.add(row_id)
        kept.append((_digest(answer["document"]), _row(row_id, text, reasoning, answer, ledger.identity)))
    held_out = _validation_documents([digest for digest, _ in kept], config.validation_share, config.seed)
    for digest, row in kept:
        (dataset.validation if digest in held_out else dataset.train).append(row)
    return dataset


def write_dataset(
    config: DistillConfig, ledger: Ledger, dataset: Dataset, keys: Collection[str] | None, stopped: str | None
) -> None:
    """Write the files into `config.out`.

    Raises `UserError` when they cannot be written.
    """
    out = config.out
    try:
        (out / CARD).unlink(missing_ok=True)
        for torn in out.glob(".*.tmp"):  # of a process that was killed here; nobody else has the ledger
            torn.unlink()
        files = {TRAIN: _write_rows(out / TRAIN, dataset.train)}
        if dataset.validation:
            files[VALIDATION] = _write_rows(out / VALIDATION, dataset.validation)
        else:
            (out / VALIDATION).unlink(missing_ok=True)
        write_json(out / CARD, _card(config, ledger, dataset, files, keys, stopped))
    except OSError as error:
        raise UserError(
            f"the dataset cannot be written to {out} ({error.strerror}): mend that, then run the same command with "
            "--from_ledger; every answer is kept"
        ) from None


def _row(
    row_id: str, text: str, reasoning: str | None, answer: Mapping[str, Any], identity: Mapping[str, Any]
) -> dict[str, Any]:
    row = {
        "id": row_id,
        "document": answer["document"],
        "summary": text,
        "source": answer["source"],
        "language": answer["language"],
    }
    if reasoning:
        row["reasoning"] = reasoning
    taken = ("endpoint", "time", "row", "response_id", "finish_reason", "usage", "cost")
    row["provenance"] = {
        "teacher": identity["model"],
        "served_as": answer["model"],
        "answer": answer["sample"] + 1,
        "options": {name: identity[name] for name in ("temperature", "top_p", "max_tokens")},
        **{name: answer[name] for name in taken},
    }
    return row


def _validation_documents(digests: Sequence[str], share: float, seed: int) -> set[str]:
    """The documents held out: all answers to one document are on the same side."""
    documents = sorted(set(digests), key=lambda one: _digest(f"{seed}:{one}"))
    count = round(share * len(documents))
    if share > 0 and len(documents) > 1:
        count = min(max(count, 1), len(documents) - 1)
    return set(documents[:count])


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    digest = hashlib.sha256()
    with replacing(path) as file:
        for row in rows:
            line = encoded(row)
            digest.update(line)
            file.write(line)
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def _card(
    config: DistillConfig,
    ledger: Ledger,
    dataset: Dataset,
    files: Mapping[str, Any],
    keys: Collection[str] | None,
    stopped: str | None,
) -> dict[str, Any]:
    answers = list(ledger.answers.values())
    wanted = ledger.plan.get("questions", 0)
    answered = len(answers) if keys is None else sum(one["key"] in keys for one in answers)
    uncertain = ledger.uncertain
    summaries = [row["summary"] for row in dataset.rows]
    return {
        "made": now(),
        "complete": answered >= wanted,
        "stopped": stopped,
        "files": files,
        "teacher": {
            **ledger.identity,
            "served_as": Counter(one["model"] for one in answers),
            "endpoints": Counter(one["endpoint"] for one in answers),
        },
        "documents": {name: ledger.plan.get(name) for name in ("sources", "left_out")},
        "answers": {
            "wanted": wanted,
            "came": answered,
            "of_rows_not_wanted_now": len(answers) - answered,
            "kept": len(dataset.rows),
            "left_out": {why: len(rows) for why, rows in dataset.dropped.items()},
            "left_out_first": {why: rows[:FIRST_ROWS] for why, rows in dataset.dropped.items()},
            "failed": Counter(one["why"] for one in ledger.failures.values()),
        },
        "languages": Counter(row["language"] or "not looked at" for row in dataset.rows),
        "summary_length": {
            "words": _spread([len(one.split()) for one in summaries]),
            "characters": _spread([len(one) for one in summaries]),
        },
        "tokens": {
            "prompt": ledger.spent.prompt_tokens,
            "completion": ledger.spent.completion_tokens,
            "answers_counted_at_worst_case": sum(one["usage"]["counted_by"] != "server" for one in answers),
        },
        "cost": {
            "answers": ledger.spent.cost,
            "at_most": ledger.spent.cost + uncertain.cost,
            "price_per_million": config.price,
        },
        "requests_without_answer": {
            "cost_nothing": ledger.released,
            "may_have_been_billed": ledger.lost,
            "process_ended_before_answer": ledger.asks_without_outcome - ledger.lost.total(),
            "at_most_tokens": uncertain.tokens,
            "at_most_cost": uncertain.cost,
        },
        "options": {
            "filter": config.filter,
            "same": config.same,
            "seed": config.seed,
            "validation_share": config.validation_share,
        },
        "python": sys.version.split()[0],
    }


def _spread(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {"shortest": min(lengths), "median": statistics.median(lengths), "longest": max(lengths)}


def _free(wanted: str, taken: Collection[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}#{number}"
    return name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
