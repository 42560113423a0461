"""Supervised rows that are asked for the lengths of their own answers, and stages that ask for drawn ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mlx_sumrl.config import LengthConfig, RunConfig, SftRunConfig
from mlx_sumrl.data.examples import config_rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.training.supervised_preparation import prepare_sft
from tests.recipes.jobs import Job

from .test_supervised_trainer import sft_job

INSTRUCTION = "In {target_length} {length_unit}: {document}"


def told(prompt: str) -> int:
    found = re.search(r"In (\d+) ", prompt)
    assert found
    return int(found[1])


@pytest.mark.parametrize("unit", ["tokens", "words"])
def test_taught_rows_are_told_what_they_have(unit: Any, tmp_path: Path) -> None:
    job = Job(
        tmp_path,
        {
            "data": {"instruction": INSTRUCTION},
            "length": {"targets": [5, 9], "tolerance": 1, "unit": unit},
            "sft": {"steps": 2, "own_length": True},
        },
    )
    encode = job.policy.tokenizer.encode
    for one in job.prepared.taught:
        own = (
            len(encode(one.reference, add_special_tokens=False))
            if unit == "tokens"
            else len(one.reference.split())
        )
        assert told(one.prompt) == one.target == own
    assert {told(one.prompt) for one in job.prepared.train} == {5, 9}
    assert all(told(one.prompt) == one.target for one in job.prepared.held_out)
    rows = job.train()
    assert [row["stage"] for row in rows[:2]] == ["sft", "sft"]
    assert all(row["stage"] == "only" for row in rows[2:])


def test_lengths_left_out_are_told_to_no_row(tmp_path: Path) -> None:
    changes = {
        "data": {"instruction": INSTRUCTION},
        "length": {"targets": [5, 9], "tolerance": 1},
        "sft": {"steps": 2, "own_length": True},
    }
    every = Job(tmp_path / "every", changes).prepared.taught
    lengths = sorted({told(one.prompt) for one in every})
    assert len(lengths) > 2
    changes["sft"]["own_length_except"] = lengths[:2]  # type: ignore[index]
    prepared = Job(tmp_path / "some", changes).prepared
    kept = [one for one in every if told(one.prompt) not in lengths[:2]]
    assert [one.prompt for one in prepared.taught] == [one.prompt for one in kept]
    assert len(prepared.train) == len(every), "stages ask for drawn lengths, of every row"
    changes["sft"]["own_length_except"] = lengths  # type: ignore[index]
    with pytest.raises(UserError, match="own_length_except leaves no row"):
        Job(tmp_path / "none", changes)


def test_leaving_out_lengths_that_nobody_tells_is_refused() -> None:
    options = {"policy": {"model": "m"}, "sft": {"steps": 1, "own_length_except": [28]}}
    with pytest.raises(ValidationError, match="own_length_except 28 leaves out rows"):
        RunConfig.model_validate(options)


def test_as_a_job_of_its_own(tmp_path: Path) -> None:
    changes = {"data": {"instruction": "In {target_length}: {document}"}, "length": {"target": 500}}
    notes: list[str] = []
    config = sft_job(tmp_path, {**changes, "sft": {"own_length": True}})
    prepared = prepare_sft(config, tmp_path, notes.append)
    texts = {str(row.fields["summary"]).strip() for row in config_rows(config.data, "train", 0).rows}  # type: ignore[union-attr]
    for one in prepared.train:
        prompt = prepared.policy.decode(one.prompt_ids)
        answer = prepared.policy.decode(one.answer_ids[:-1])
        assert answer in texts
        assert f"In {len(one.answer_ids) - 1}:" in prompt
    assert not any("asks for 500" in note for note in notes)
    plain = prepare_sft(sft_job(tmp_path, changes), tmp_path, lambda note: None)
    assert [one.answer_ids for one in plain.train] == [one.answer_ids for one in prepared.train]


@pytest.mark.parametrize("kind", [RunConfig, SftRunConfig])
def test_an_instruction_without_a_place_for_it_is_refused(kind: Any) -> None:
    options = {"policy": {"model": "m"}, "sft": {"steps": 1, "own_length": True}}
    kind.model_validate(options)
    with pytest.raises(ValidationError, match="no place for it"):
        kind.model_validate({**options, "data": {"instruction": "Sum up: {document}"}})


def test_evaluations_hold_each_row_to_its_own(tmp_path: Path) -> None:
    from mlx_sumrl.data.example import Example
    from mlx_sumrl.evaluation import score
    from mlx_sumrl.rollouts.types import Completion, Group

    def group(target: int | None, length: int) -> Group:
        ids = (*range(1, length + 1), 0)
        completion = Completion(ids, (-1.0,) * len(ids), "stop", 0, "some text")
        return Group(Example("row", (1,), "p", "document", "some text", target=target), (completion,))

    asked = LengthConfig(target=64, targets=(24, 80), tolerance=3, tolerance_share=0.08)
    found = score([group(24, 27), group(24, 28), group(80, 86), group(80, 87), group(80, 80)], asked)
    assert [row.metrics["within"] for row in found.rows] == [1, 0, 1, 0, 1]
    assert [row.metrics["length_error"] for row in found.rows] == [3, 4, 6, 7, 0]
    assert [row.target for row in found.rows] == [24, 24, 80, 80, 80]
    assert found.summary["within"] == pytest.approx(3 / 5)
    assert found.summary["exact"] == pytest.approx(1 / 5)
    assert found.summary["length_error"] == pytest.approx(4.0)
    assert found.asked is None
    assert type(found).from_json(found.to_json()) == found
