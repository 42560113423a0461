"""The weight sync benchmark: run as a user runs it, and a step whose patch is exact and small."""

from __future__ import annotations

from benchmarks import weight_sync
from tests.benchmarks.programs import check_spread, run, text_of


def test_the_program() -> None:
    report = run("weight_sync", "--repeats", "1")
    assert report["shape"] == "toy"
    # By hand: 512 x 64 embeddings; two blocks of q 64 x 64, k and v 64 x 32, o 64 x 64, three of 64 x 192, biases
    # of 64 + 32 + 32, two norms; a last norm.
    block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 128 + 2 * 64
    assert report["step"]["values"] == 512 * 64 + 2 * block + 64
    sent = report["patch"]
    assert sent["full_bytes"] > 2 * report["step"]["values"]
    # 2e-6 over the gap between bfloat16 numbers of a normal distribution of .02 is 7.5 % on average.
    assert 0.065 < sent["changed_values"] < 0.085
    assert 0 < sent["share"] == round(sent["bytes"] / sent["full_bytes"], 5) < 0.1
    assert 0.9 < report["step"]["kept_fraction"] < 1.1
    assert report["rebuild"]["exact"] is True
    for part, quantities in (
        ("patch", ["seconds", "processor"]),
        ("rebuild", ["seconds", "flushed", "processor"]),
        ("reload", ["seconds"]),
    ):
        for name in quantities:
            check_spread(report[part][name], 1)
    text = text_of(weight_sync.table(report))
    assert f"{sent['share']:.2%}" in text
    assert "every byte the same" in text
