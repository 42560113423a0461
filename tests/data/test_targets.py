"""Rows that are asked for different lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlx_sumrl.config import DataConfig, LengthConfig, RunConfig, SftRunConfig
from mlx_sumrl.data.examples import load_examples
from mlx_sumrl.data.prompting import as_trained, write_prompting
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.targets import drawn_targets
from recipes.given_model import GivenModel


@given(
    targets=st.lists(st.integers(1, 99), min_size=1, max_size=7, unique=True),
    rows=st.integers(0, 60),
    more=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_each_comes_equally_often_and_more_rows_change_nothing(
    targets: list[int], rows: int, more: int, seed: int
) -> None:
    drawn = drawn_targets(targets, rows, seed)
    assert len(drawn) == rows
    counts = Counter(drawn)
    assert {counts[target] for target in targets} <= {rows // len(targets), -(-rows // len(targets))}
    assert drawn_targets(targets, rows + more, seed)[:rows] == drawn


def test_the_order_is_drawn() -> None:
    assert len({tuple(drawn_targets([1, 2, 3, 4], 20, seed)) for seed in range(10)}) == 10


def test_prompts_tell_what_their_rows_are_asked_for(chatml: object) -> None:
    records = [
        {"document": "one", "summary": "a"},
        {"document": "", "summary": "b"},  # cannot be used, and takes its target with it
        {"document": "three", "summary": "c"},
    ]
    source = Rows("x.jsonl", [Row(str(n), record) for n, record in enumerate(records)])
    config = DataConfig(instruction="In {target_length}: {document}", max_unusable_share=0.5)
    found = load_examples(source, config, chatml, 64, targets=[24, 32, 80]).examples  # type: ignore[arg-type]
    assert [(one.document, one.target) for one in found] == [("one", 24), ("three", 80)]
    assert "In 24: one" in found[0].prompt
    assert "In 80: three" in found[1].prompt
    same = load_examples(source, config, chatml, 64).examples  # type: ignore[arg-type]
    assert [one.target for one in same] == [None, None]
    assert "In 64: one" in same[0].prompt


@pytest.mark.parametrize(
    ("target", "allowed"), [(24, 3), (37, 3), (38, 3), (48, 3), (50, 4), (64, 5), (75, 6), (80, 6), (100, 8)]
)
def test_a_tolerance_that_is_a_share_counts_where_it_is_more(target: int, allowed: int) -> None:
    """max(3, 8 %), rounded down: 8 % of 48 are 3.84, of 50 exactly 4, of 80 6.4."""
    length = LengthConfig(tolerance=3, tolerance_share=0.08, targets=(24, 80))
    assert length.asked(target).allowed == allowed
    assert length.asked(target).target == target
    assert length.asked(None) is length


def test_what_is_asked_for_reads_well() -> None:
    assert str(LengthConfig(target=64, tolerance=5)) == "64 ± 5"
    assert (
        str(LengthConfig(tolerance=3, tolerance_share=0.08, targets=(24, 80, 48))) == "24 to 80 ± max(3, 8 %)"
    )
    assert str(LengthConfig(tolerance=2, targets=(24, 80), unit="words")) == "24 to 80 ± 2 words"


def test_a_model_trained_on_several_is_asked_for_one(tmp_path: Path) -> None:
    trained = LengthConfig(target=64, targets=(24, 80), tolerance=3, tolerance_share=0.08)
    write_prompting(tmp_path, DataConfig(), trained, None)
    _, length = as_trained(str(tmp_path), DataConfig(), LengthConfig(target=48))
    assert (length.target, length.targets, length.tolerance, length.tolerance_share) == (48, (), 3, 0.08)
    assert str(length) == "48 ± 3"


def test_one_length_is_evaluated_at_a_time() -> None:
    GivenModel.model_validate({"model": "m", "length": {"target": 24}})
    with pytest.raises(ValidationError, match=r"length\.targets 24, 80 .* one --length\.target at a time"):
        GivenModel.model_validate({"model": "m", "length": {"targets": [24, 80]}})


def test_supervised_runs_reward_no_length() -> None:
    options = {"policy": {"model": "m"}, "sft": {"steps": 1}}
    with pytest.raises(ValidationError, match=r"length\.targets is for runs that reward a length"):
        SftRunConfig.model_validate({**options, "length": {"targets": [24, 80]}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": {"targets": [24, 128]}}, "length.targets 128 can never be reached"),
        ({"length": {"targets": [0, 24]}}, "length.targets holds 0"),
        ({"data": {"instruction": "Sum up: {document}"}}, "length.targets tells each row another length"),
        ({"evaluation": {"length_matched_baseline": True}}, "writes one length"),
        ({"length": {"targets": [3, 24], "unit": "words"}}, "not below the least of length.targets, 3"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], said: str) -> None:
    options = {"policy": {"model": "m"}, "length": {"targets": [24, 80]}}
    RunConfig.model_validate(options)
    with pytest.raises(ValidationError, match=said):
        RunConfig.model_validate(options | changes)
