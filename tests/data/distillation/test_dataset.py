"""A ledger's answers as a dataset: each one a row or counted, names unique, whole or not there."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.data.distillation.answer_filter import AnswerFilter
from mlx_sumrl.data.distillation.dataset import Dataset, make_dataset, refuse_foreign_folder, write_dataset
from mlx_sumrl.data.distillation.questions import identity
from mlx_sumrl.endpoint.asking import Asked
from mlx_sumrl.endpoint.ledger import Ledger, Spent
from mlx_sumrl.endpoint.progress import line
from mlx_sumrl.errors import UserError

IDENTITY = identity(
    DistillConfig(out=Path("out"), teacher="http://h", model="m", source=[{"file": "a.jsonl"}])  # type: ignore[arg-type]
)


def answer(order: int, sample: int = 0, **changes: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "counted_by": "server"}
    given = {
        "key": f"{order}/{sample}",
        "id": f"r{order}",
        "source": "a.jsonl",
        "row": f"a.jsonl:{order + 1}",
        "order": order,
        "sample": sample,
        "document": f"document {order}",
        "language": None,
        "text": f"answer {order} {sample}",
        "reasoning": None,
        "finish_reason": "stop",
        "usage": usage,
        "cost": 0.5,
        "model": "m",
        "response_id": "x",
        "endpoint": "h",
    }
    return {**given, **changes}


def made(
    folder: Path, answers: list[dict[str, Any]], keys: set[str] | None = None, **options: Any
) -> Dataset:
    config = DistillConfig.model_validate({"out": folder, "from_ledger": True, **options})

    async def fill(ledger: Ledger) -> None:
        for one in answers:
            await ledger.answer(await ledger.ask(one["key"], one["row"], Spent(99, 99, 9.0), (99, 99)), one)

    with Ledger.open(folder / "ledger.jsonl", IDENTITY) as ledger:
        asyncio.run(fill(ledger))
        dataset = make_dataset(config, ledger, AnswerFilter(config.filter), keys)
        write_dataset(config, ledger, dataset, keys, None)
    return dataset


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]


def test_order_is_that_of_the_documents_whatever_came_first(tmp_path: Path) -> None:
    answers = [answer(order) for order in (3, 0, 4, 1, 2)]
    made(tmp_path, answers)
    assert [row["id"] for row in read(tmp_path / "train.jsonl")] == ["r0", "r1", "r2", "r3", "r4"]


def test_ids_that_are_there_twice(tmp_path: Path) -> None:
    made(tmp_path, [answer(0, id="x"), answer(1, id="x"), answer(2, id="x#2"), answer(3, id="x")])
    assert [row["id"] for row in read(tmp_path / "train.jsonl")] == ["x", "x#2", "x#2#2", "x#3"]


def test_every_answer_is_a_row_or_counted(tmp_path: Path) -> None:
    answers = [
        answer(0),
        answer(1, text=" ANSWER 0  0"),
        answer(2, text="<think>hm</think>after thinking"),
        answer(3, text="<think>hm"),
        answer(4, finish_reason="length"),
        answer(5, text=""),
        answer(6, text="a longer answer than may be"),
    ]
    dataset = made(tmp_path, answers, filter={"longest": 5})
    assert {why: len(rows) for why, rows in dataset.dropped.items()} == {
        "the same answer is there already": 1,
        "the thinking never ends": 1,
        "cut off at max_tokens": 1,
        "empty answer": 1,
        "longer than 5 words": 1,
    }
    rows = read(tmp_path / "train.jsonl")
    assert [(row["summary"], row.get("reasoning")) for row in rows] == [
        ("answer 0 0", None),
        ("after thinking", "hm"),
    ]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["answers"]["left_out_first"]["empty answer"] == ["a.jsonl:6"]
    assert card["tokens"] == {"prompt": 63, "completion": 28, "answers_counted_at_worst_case": 0}
    assert card["cost"]["answers"] == 3.5


@pytest.mark.parametrize(("share", "held_out"), [(0.3, 6), (0.001, 1), (0.999, 19), (0.0, 0)])
def test_all_answers_to_a_document_are_on_one_side(share: float, held_out: int, tmp_path: Path) -> None:
    answers = [answer(order, sample) for order in range(20) for sample in range(3)]
    made(tmp_path, answers, validation_share=share)
    train = {row["document"] for row in read(tmp_path / "train.jsonl")}
    assert len(train) == 20 - held_out
    if not held_out:
        assert not (tmp_path / "validation.jsonl").exists()
        return
    rows = read(tmp_path / "validation.jsonl")
    validation = {row["document"] for row in rows}
    assert len(validation) == held_out
    assert not train & validation
    assert len(rows) == 3 * held_out


def test_only_what_is_wanted_now(tmp_path: Path) -> None:
    dataset = made(tmp_path, [answer(0), answer(1), answer(2)], keys={"0/0", "2/0"})
    assert [row["id"] for row in dataset.train] == ["r0", "r2"]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["answers"]["of_rows_not_wanted_now"] == 1


def test_the_card_vouches_for_the_files(tmp_path: Path) -> None:
    made(tmp_path, [answer(order) for order in range(4)], validation_share=0.5)
    card = json.loads((tmp_path / "card.json").read_text())
    assert set(card["files"]) == {"train.jsonl", "validation.jsonl"}
    for name, said in card["files"].items():
        content = (tmp_path / name).read_bytes()
        assert said == {"rows": 2, "sha256": hashlib.sha256(content).hexdigest()}


def test_a_dataset_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    refuse_foreign_folder(tmp_path)
    refuse_foreign_folder(tmp_path / "new")
    (tmp_path / "validation.jsonl").touch()
    with pytest.raises(UserError, match=r"holds validation\.jsonl and no ledger"):
        refuse_foreign_folder(tmp_path)
    with pytest.raises(UserError, match="is a file: name a folder"):
        refuse_foreign_folder(tmp_path / "validation.jsonl")


def test_progress_line() -> None:
    """20 answers in 10 seconds are 2 a second; 60 are left: half a minute."""
    asked = Asked(total=100, done=38, answered=20)
    asked.failed["status 400"] = 2
    asked.attempts_failed["status 429"] = 5
    assert line(asked, Spent(1_000, 234, 0.5), 10) == (
        "1,234 tokens  cost 0.5  2.0 answers/s  2 failed  5 tried again  ETA 0:30"
    )
    assert line(Asked(10, 10, answered=1), Spent(1, 1), 120) == "2 tokens  0.5 answers/min"
