"""The cluster's benchmarks, as a user runs them: cases of no size, and what must come out whatever the machine."""

from __future__ import annotations

from benchmarks import cluster_scale, overlap
from tests.benchmarks.programs import check_spread, run, text_of


def test_overlap() -> None:
    report = run("overlap", "--steps", "2")
    assert [(case["train"], case["sample"]) for case in report["cases"]] == [
        (0.05, 0.05),
        (0.05, 0.025),
        (0.025, 0.05),
    ]
    for case in report["cases"]:
        check_spread(case["step"], 2)
        # Neither can be hurried: a step is never shorter than the training in it.
        assert case["step"]["lowest"] >= case["train"]
        assert case["staleness"]["highest"] <= 1
        assert case["requeued"] == 0
    # The workers make what their speeds say and no more.
    assert 0 < report["unequal"]["share_of_sum"]["median"] <= 1.1
    assert "over the longer" in text_of(overlap.table(report))


def test_cluster_scale() -> None:
    report = run("cluster_scale", "--batches", "1")
    assert [case["workers"] for case in report["cases"]] == [1, 2]
    for case in report["cases"]:
        check_spread(case["cost"]["cpu_ms_per_group"], 1)
        assert case["delivery"]["requeued"] == 0
        assert 0 < case["delivery"]["share_of_sum"]["median"] <= 1.1
    assert "CPU ms" in text_of(cluster_scale.table(report))
