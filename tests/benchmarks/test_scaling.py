"""Growth and utilisation: what is counted, by hand, and the program end to end."""

from __future__ import annotations

import pytest

from benchmarks import scaling
from benchmarks.fresh_process import shown
from benchmarks.products import Size, least_training_gflop, product_rates, rollout_gflop, training_gflop
from benchmarks.workload import Model
from tests.benchmarks.programs import check_spread, run, text_of

GROUP_SIZES = [("group_size", 2), ("group_size", 3)]


def test_growth_and_utilisation() -> None:
    report = run("scaling", "--steps", "1")
    assert [(case["axis"], case["value"]) for case in report["cases"]] == GROUP_SIZES
    shown_text = text_of(scaling.tables(report))
    for case in report["cases"]:
        check_spread(case["step"], n=1)
        assert case["matmul_gflops"] > 0
        assert 0 < case["train_gflop"] < case["gflop"]
        seconds = case["train_gflop"] / case["matmul_gflops"]
        assert case["train_share_of_products"] == pytest.approx(seconds / case["train"]["median"])
        assert f"group_size {case['value']}" in shown_text
        assert shown(case["step"]) in shown_text
        assert f"{case['train_share_of_products']:.0%}" in shown_text
    assert report["utilisation"]


def test_utilisation_alone() -> None:
    report = run("scaling", "--utilisation", "--steps", "2")
    assert report["cases"] == []
    utilised = report["utilisation"]
    check_spread(utilised["train"], n=2)
    rate = utilised["matmul_gflops"]
    assert 0 < rate["median"] <= rate["best"]
    assert utilised["gflops"] == pytest.approx(utilised["least_gflop"] / utilised["train"]["median"])
    assert utilised["share_of_best"] == pytest.approx(utilised["gflops"] / rate["best"])
    assert utilised["share_of_median"] == pytest.approx(utilised["gflops"] / rate["median"])
    shown_text = text_of(scaling.tables(report))
    assert f"{utilised['share_of_best']:.0%} of {rate['best']:.0f} GFLOP/s" in shown_text


def test_products_that_are_done() -> None:
    """One layer, two tokens of prompt, one completion of one token, by hand."""
    model = Model(vocabulary=10, hidden=2, layers=1, heads=1, kv_heads=1)
    # q, k, v, o of 2 x 2 and three matrices of 2 x 6.
    assert model.block_parameters == 4 * 4 + 3 * 12
    size = Size(group_size=1, prompt_tokens=2, new_tokens=1, vocabulary=10, prompts=1)
    blocks = 2 * 52 * 3 + 4 * 2 * (2 * 2 + 1 * 3)
    head = 2 * 2 * 10
    assert rollout_gflop(size, model) == pytest.approx((blocks + head) / 1e9)
    assert training_gflop(size, model) == pytest.approx((3 * blocks + 4 * head) / 1e9)


def test_products_that_cannot_be_done_without() -> None:
    """Token by token: who reads it, what it looks at, and which of them the head reads."""
    model = Model(vocabulary=10, hidden=4, layers=3, heads=2, kv_heads=1)
    # q, o of 4 x 4, k, v of 4 x 2 and three matrices of 4 x 12, in each of three layers.
    weights = 3 * (2 * 16 + 2 * 8 + 3 * 48)
    size = Size(group_size=2, prompt_tokens=5, new_tokens=3, vocabulary=10, prompts=2)
    operations = 0
    for _ in range(size.prompts):
        for place in range(5):
            operations += 2 * weights + 3 * 4 * 4 * (place + 1)
        for _ in range(size.group_size):
            for place in range(5, 7):  # the third and last token is not read
                operations += 2 * weights + 3 * 4 * 4 * (place + 1)
            operations += 3 * 2 * 4 * 10  # though predicted, as the other two
    assert least_training_gflop(size, model) == pytest.approx(3 * operations / 1e9)
    assert least_training_gflop(size, model) < training_gflop(size, model)


def test_the_utilised_step_is_the_one_that_was_asked_for() -> None:
    """6 operations for each weight and token that reads it is most of the work."""
    case = scaling.UTILISED
    assert (case.model.hidden, case.model.layers, case.size.vocabulary) == (512, 8, 8192)
    assert (case.size.prompts, case.size.group_size, case.size.prompt_tokens, case.size.new_tokens) == (
        2,
        8,
        320,
        64,
    )
    read = 2 * (320 + 8 * 63)
    weights = 6 * (case.model.block_parameters * read + 512 * 8192 * 2 * 8 * 64) / 1e9
    assert weights < least_training_gflop(case.size, case.model) < 1.1 * weights


def test_a_rate_is_measured_at_least_once() -> None:
    rates = product_rates(8, 0.0)
    assert len(rates) == 1
    assert rates[0] > 0
