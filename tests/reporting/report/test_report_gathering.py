"""Who is put beside whom, what is refused, and what is said to mind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.evaluation.statistics.comparison import compare_all
from mlx_sumrl.reporting.report.gathering import Given, Wanted, gather
from mlx_sumrl.reporting.report.material import Material

from .conftest import Made

QUICK = ComparisonConfig(resamples=200)


def gathered(*paths: Path, **wanted: Any) -> Material:
    return gather([Given((path,)) for path in paths], Wanted(**wanted), QUICK)


def names(material: Material) -> list[str]:
    return [subject.name for subject in material.subjects]


def test_two_files(written: Made, before: dict[str, Any], after: dict[str, Any]) -> None:
    material = gathered(written("old", before), written("new", after))
    assert names(material) == ["old", "new"]
    assert material.baseline == "old"
    assert str(material.asked) == "20 ± 2 tokens"
    results = {"old": [Evaluation.from_json(before)], "new": [Evaluation.from_json(after)]}
    assert material.comparisons == compare_all(results, "old", ["within", "rougeL"], QUICK)
    assert [one.verdict for one in material.comparisons] == ["better", "better"]
    assert material.warnings == ()
    assert gathered(written("old", before), written("new", after), baseline="new").baseline == "new"
    # A file of that name is what it is, not what a run began from.
    assert names(gathered(written("new", after), written("before", before))) == ["new", "before"]


def test_a_run_is_shown_stage_by_stage(
    run_folder: Made, before: dict[str, Any], after: dict[str, Any]
) -> None:
    material = gathered(run_folder("staged", {"before": before, "quality": after, "length": after}))
    assert names(material) == ["before", "after quality", "after length"]  # as they were made, not by name
    assert material.baseline == "before"
    assert str(material.asked) == "20 ± 2 tokens"
    assert [run.name for run in material.curves] == ["staged"]
    assert material.options["staged"]["stages.0.name"] == "quality"
    assert material.commands["staged"].startswith("python -m recipes.grpo_staged")


def test_runs_are_compared_by_their_last_evaluation(
    run_folder: Made, before: dict[str, Any], after: dict[str, Any]
) -> None:
    one = run_folder("one", {"before": before, "length": before, "quality": after})
    two = run_folder("two", {"before": before, "joint": after})
    material = gathered(one, two)
    assert names(material) == ["before", "one", "two"]
    assert [one.mean("within") for one in material.subjects] == [0.1, 0.9, 0.9]
    assert {(one.baseline, one.other) for one in material.comparisons} == {
        ("before", "one"),
        ("before", "two"),
    }
    other = copy.deepcopy(before)
    other["rows"][0]["text"] = "another policy wrote this"
    apart = gathered(one, run_folder("three", {"before": other, "joint": after}))
    assert apart.warnings == ("the runs did not begin from one policy: 'before' is that of one",)


def test_seeds_are_pooled(run_folder: Made, before: dict[str, Any], after: dict[str, Any]) -> None:
    paths = [
        run_folder(f"{name}-s{seed}", {"before": before, stage: after}, seed=seed)
        for name, stage in (("staged", "quality"), ("joint", "both"))
        for seed in (0, 1)
    ]
    pooled = gathered(*paths, pool_seeds=True)
    assert names(pooled) == ["before", "staged", "joint"]
    assert [len(subject.evaluations) for subject in pooled.subjects] == [2, 2, 2]
    assert {one.seeds for one in pooled.comparisons} == {(2, 2)}
    named = gather([Given(tuple(paths[:2]), "a"), Given(tuple(paths[2:]), "b")], Wanted(), QUICK)
    assert names(named) == ["before", "a", "b"]
    assert [one.difference for one in named.comparisons] == [one.difference for one in pooled.comparisons]
    apart = gathered(*paths)
    assert len(apart.subjects) == 5


def test_what_cannot_be_compared(
    written: Made, before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    old = written("old", before)
    fewer = written("fewer", {**after, "rows": after["rows"][:30]})
    with pytest.raises(
        UserError, match=r"10 of 40 rows are not in all \(row-30, row-31, row-32 not in fewer\).*common"
    ):
        gathered(old, fewer)
    common = gathered(old, fewer, rows="common")
    assert {len(subject.evaluations[0].rows) for subject in common.subjects} == {30}
    assert common.warnings == ("only the 30 rows that all have are compared; 10 others are left out",)

    changed = copy.deepcopy(after)
    changed["rows"][3]["document"] = "something else"
    with pytest.raises(UserError, match="the row 'row-3' of changed has another document"):
        gathered(old, written("changed", changed))
    with pytest.raises(UserError, match=r"--baseline nobody is not among what is compared \(old, fewer\)"):
        gathered(old, fewer, rows="common", baseline="nobody")
    with pytest.raises(
        UserError, match="--metrics bleu is not in all that is compared; there are length, within"
    ):
        gathered(old, written("new", after), metrics=("bleu",))
    with pytest.raises(UserError, match=r"--names has 1 names \(a\) for 2 things"):
        gathered(old, fewer, names=("a",))
    with pytest.raises(UserError, match=r"nothing\.json is not there"):
        gathered(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="holds no evaluation"):
        gathered(written("config", {"rows": 3}))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="holds list, not an evaluation"):
        gathered(tmp_path / "list.json")
    (tmp_path / "torn.json").write_text('{"rows": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        gathered(tmp_path / "torn.json")
    with pytest.raises(UserError, match="has no rows"):
        gathered(written("empty", {**before, "rows": []}))


def test_what_to_mind(written: Made, before: dict[str, Any], after: dict[str, Any]) -> None:
    other = copy.deepcopy(after)
    other["rows"][0]["reference"] = "said otherwise"
    other["asked"]["tolerance"] = 5
    material = gathered(written("old", before, prompts_sha256="a"), written("new", other, prompts_sha256="b"))
    prompts, asked, references = material.warnings
    assert "not all were given the same prompts" in prompts
    assert "not all were asked for the same length (20 ± 2 tokens, 20 ± 5 tokens)" in asked
    assert "other references" in references
    assert material.asked is None
    lacking = gathered(written("old", before, meteor_missing="install WordNet."), written("new", after))
    assert lacking.warnings == ("METEOR is missing: install WordNet",)


def test_several_answers_to_a_row_count_as_one(
    written: Made, before: dict[str, Any], after: dict[str, Any]
) -> None:
    twice = {**before, "rows": [*before["rows"], *before["rows"]]}
    once = gathered(written("old", before), written("new", after))
    again = gathered(written("twice", twice), written("new", after))
    assert [one.difference for one in again.comparisons] == pytest.approx(
        [one.difference for one in once.comparisons]
    )
    assert again.subjects[0].interval("rougeL") == pytest.approx(once.subjects[0].interval("rougeL"))


def test_samples_are_not_only_the_best(written: Made, before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = copy.deepcopy(after)
    changed["rows"][7]["metrics"]["rougeL"] = 0.99
    changed["rows"][9]["metrics"]["rougeL"] = 0.0
    samples = gathered(written("old", before), written("new", changed)).samples
    assert [(one.id, one.why.partition(" from ")[0]) for one in samples[:3]] == [
        ("row-0", "the first row"),
        ("row-7", "ROUGE-L rises most"),
        ("row-9", "ROUGE-L falls most"),
    ]
    assert samples[1].answers["new"][0] == changed["rows"][7]["text"]
    assert len(gathered(written("old", before), samples=2).samples) == 2
