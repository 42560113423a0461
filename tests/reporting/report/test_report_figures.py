"""What is drawn is what was measured, and captions say it; colours can be told apart and read."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.reporting.report import (
    answer_figures,
    comparison_figures,
    length_figures,
    quality_figures,
    training_figures,
)
from mlx_sumrl.reporting.report.gathering import Given, Wanted, gather
from mlx_sumrl.reporting.report.length_figures import pareto
from mlx_sumrl.reporting.report.material import Material
from mlx_sumrl.reporting.report.palette import COLOURS, SERIES, look
from mlx_sumrl.reporting.report.picture import Picture

from .conftest import Made, evaluation


def gathered(*paths: Path) -> Material:
    return gather([Given((path,)) for path in paths], Wanted(), ComparisonConfig(resamples=200))


@pytest.fixture
def pair(written: Made, before: dict[str, Any], after: dict[str, Any]) -> Material:
    return gathered(written("old", before), written("new", after))


def drawn(picture: Picture | None) -> Picture:
    assert picture is not None
    return picture


def by_gid(picture: Picture, gid: str) -> list[Any]:
    return [one for one in picture.figure.findobj() if one.get_gid() == gid]


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    light, dark = sorted([luminance(one), luminance(two)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(scheme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    value = {name: getattr(colour, scheme) for name, colour in COLOURS.items()}
    for text, ground in itertools.product(("ink", "muted", "link", "good", "bad"), ("page", "card")):
        assert contrast(value[text], value[ground]) >= 4.5, (text, ground)
    for place in range(SERIES):
        assert contrast(value[f"series{place + 1}"], value["card"]) >= 3
    assert contrast(value["ink"], value["band"]) >= 4.5
    assert len(set(value.values())) == len(value)  # a value names one colour


def test_nothing_is_told_by_colour_alone() -> None:
    looks = [look(place) for place in range(3 * SERIES)]
    for part in ("marker", "hatch", "dash"):
        assert len({getattr(one, part) for one in looks[:SERIES]}) == SERIES
    assert len(set(looks)) == len(looks)


def test_the_histogram_is_of_the_lengths(pair: Material, before: dict[str, Any]) -> None:
    picture = drawn(length_figures.histogram(pair))
    heights = [bar.get_height() for bar in by_gid(picture, "lengths-old")]
    lengths = [row["length"] for row in before["rows"]]
    low = min(lengths)
    expected = [100 * lengths.count(low + place) / 40 for place in range(len(heights))]
    np.testing.assert_allclose(heights, expected)
    assert picture.caption == "Within 20 ± 2 tokens: rises from 10 % to 90 % (new)."
    axes = picture.figure.axes[0]
    band = next(patch for patch in axes.patches if patch.get_label() == "asked for: 20 ± 2 tokens")
    assert (band.get_x(), band.get_x() + band.get_width()) == (17.5, 22.5)
    assert axes.get_title(loc="left") == f"old: {np.mean(lengths):.1f} ± {np.std(lengths):.1f} tokens"


def test_the_front() -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 5, 12):
        points = [tuple(map(float, pair)) for pair in random.integers(0, 5, (size, 2))]
        on = {points[place] for place in pareto(points)}
        # Swept from the left: a point is on the front if it is the highest of its column and of all before.
        expected, highest = set(), -1.0
        for x in sorted({x for x, _ in points}):
            top = max(y for a, y in points if a == x)
            if top > highest:
                expected.add((x, top))
                highest = top
        assert on == expected


def test_quality_against_length(pair: Material, before: dict[str, Any]) -> None:
    picture = drawn(length_figures.tradeoff(pair))
    (container,) = [one for one in picture.figure.axes[0].containers if one.lines[0].get_gid() == "point-old"]
    x, y = container.lines[0].get_xydata()[0]
    assert x == pytest.approx(np.mean([abs(row["length"] - 20) for row in before["rows"]]))
    assert y == pytest.approx(100 * np.mean([row["metrics"]["rougeL"] for row in before["rows"]]))
    assert "Nothing is better in both than new (" in picture.caption
    assert "old" not in picture.caption


def test_the_forest_and_the_tests(pair: Material) -> None:
    forest = drawn(comparison_figures.effects(pair))
    found = {one.metric: one for one in pair.comparisons}
    (mark,) = [
        one.lines[0]
        for axes in forest.figure.axes
        for one in axes.containers
        if one.lines[0].get_gid() == "effect-rougeL-new"
    ]
    assert mark.get_xdata()[0] == pytest.approx(100 * found["rougeL"].difference)
    assert forest.caption.startswith("2 of 2 differences are shown (filled marks)")
    grid = drawn(comparison_figures.significance(pair))
    assert "2 tests, counted together: 2 better" in grid.caption
    said = [text.get_text() for text in grid.figure.axes[0].texts]
    assert said == ["▲ < .001", "▲ < .001"]


def test_no_difference_is_said_to_be_none(written: Made, before: dict[str, Any]) -> None:
    material = gathered(written("old", before), written("same", before))
    assert "0 of 2 differences are shown" in drawn(comparison_figures.effects(material)).caption
    grid = drawn(comparison_figures.significance(material))
    assert [text.get_text() for text in grid.figure.axes[0].texts] == ["1", "1"]
    assert "2 no difference shown" in grid.caption


@pytest.mark.parametrize(
    ("sign", "said"), [(1, "collapse into one"), (-1, "pull apart")], ids=["alike", "opposed"]
)
def test_whether_coverage_and_conciseness_collapse(written: Made, sign: int, said: str) -> None:
    score = np.linspace(0.1, 0.9, 30)
    judged = {"judge_coverage": score.tolist(), "judge_conciseness": (0.5 + sign * (score - 0.5)).tolist()}
    content = evaluation([20] * 30, np.random.default_rng(0).uniform(size=30).tolist(), **judged)
    caption = drawn(comparison_figures.correlation(gathered(written("judged", content)))).caption
    assert f"The judge’s coverage and conciseness {said} (ρ = {'' if sign > 0 else '−'}1.00)" in caption


def test_overlap_and_spread(pair: Material, after: dict[str, Any]) -> None:
    picture = drawn(quality_figures.overlap(pair))
    values = [row["metrics"]["rougeL"] for row in after["rows"]]
    (bar,) = by_gid(picture, "overlap-new")
    assert bar.get_width() == pytest.approx(100 * np.mean(values))
    assert f"ROUGE-L new ({100 * np.mean(values):.1f})" in picture.caption
    spread = drawn(quality_figures.spread(pair))
    low, high = np.percentile([row["metrics"]["rougeL"] for row in after["rows"]], [25, 75])
    titles = [axes.get_title(loc="left") for axes in spread.figure.axes]
    assert titles == ["ROUGE-L, score × 100"]
    assert high > low


def test_consistency(written: Made, before: dict[str, Any]) -> None:
    summary = {**before["summary"], "consistency_rougeL": 0.25, "consistency_length": 0.125}
    picture = drawn(quality_figures.consistency(gathered(written("old", before, summary=summary))))
    assert sorted(bar.get_width() for bar in by_gid(picture, "consistency-old")) == [0.125, 0.25]
    assert picture.caption.startswith("old varies most in ROUGE-L (0.25).")


def test_training_curves(run_folder: Made, before: dict[str, Any], after: dict[str, Any]) -> None:
    material = gathered(run_folder("staged", {"before": before, "length": after, "quality": after}))
    rewards = drawn(training_figures.rewards(material))
    assert [axes.get_title(loc="left") for axes in rewards.figure.axes] == [
        "reward/mean, per completion",
        "reward/length, per completion",
    ]
    (line,) = by_gid(rewards, "0/reward/length")
    np.testing.assert_allclose(line.get_ydata(), [0.1, 0.2, 0.3, 0.4] * 2)
    assert "reward/length: length 0.1 → 0.4, quality 0.1 → 0.4" in rewards.caption
    progress = drawn(training_figures.progress(material))
    titles = [axes.get_title(loc="left") for axes in progress.figure.axes]
    assert titles == ["Within the asked length, share", "Length, tokens"]


def answers(f1: float, errors: list[float], blind: bool = False) -> dict[str, Any]:
    part = {"precision_mean": 0.5, "recall_mean": 0.75, "f1_mean": f1, "precision": 0, "recall": 0, "f1": 0}
    rows = [{"id": str(place), "metrics": {"f1": f1, "valid": 1.0}} for place in range(8)]
    content: dict[str, Any] = {
        "summary": {"rows": 8, "valid": 0.875},
        "fields": {"companies": part, "score": {**part, "errors": errors}},
        "consistency": {"score": 0.5},
    }
    if not blind:
        content |= {"rows": rows, "baselines": {"always empty": answers(0.25, [1.0], True)}}
    return content


def test_json_answers(written: Made) -> None:
    material = gathered(written("tags", answers(0.625, [-1.0, 0.0, 3.0])))
    assert list(material.json_answers) == ["tags", "always empty"]
    fields = drawn(answer_figures.fields(material))
    assert [bar.get_width() for bar in by_gid(fields, "f1-tags")] == [62.5, 62.5]  # means over rows
    assert [bar.get_width() for bar in by_gid(fields, "recall-tags")] == [75, 75]
    assert [bar.get_width() for bar in by_gid(fields, "f1-always empty")] == [25, 25]
    assert "tags does worst on companies (F1 62 %)" in fields.caption
    assert "Valid as they are: tags 88 % of 8" in drawn(answer_figures.validity(material)).caption
    errors = drawn(answer_figures.numeric_errors(material))
    assert errors.caption == "tags, score: off by 1.33 on average, median error 0."
    assert drawn(quality_figures.consistency(material)).caption.startswith("tags varies most in score (0.5)")
    both = gathered(written("tags", answers(0.5, [])), written("more", answers(0.75, [])))
    assert {one.metric: one.difference for one in both.comparisons} == {"f1": 0.25, "valid": 0.0}


def test_what_is_not_there_is_not_drawn(written: Made, before: dict[str, Any]) -> None:
    alone = gathered(written("old", before))
    for draw in (
        length_figures.tradeoff,
        comparison_figures.effects,
        comparison_figures.significance,
        answer_figures.validity,
        answer_figures.fields,
        answer_figures.numeric_errors,
        quality_figures.consistency,
        training_figures.rewards,
        training_figures.progress,
    ):
        assert draw(alone) is None


def test_an_inlined_figure(pair: Material) -> None:
    svg = drawn(length_figures.histogram(pair)).svg()
    assert not re.search(
        r"#[0-9a-fA-F]{3,8}\b(?=[;\"'\s])", svg.replace('href="#', "")
    )  # colours are the page's
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLOURS)
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(set(ids)) == len(ids)
    assert all(one.startswith("lengths-") for one in ids)
    referred = {*re.findall(r'href="#([^"]+)"', svg), *re.findall(r"url\(#([^)]+)\)", svg)}
    assert referred <= set(ids)
    assert "://" not in svg
    assert svg.index("<title") < svg.index("<desc") < svg.index("<g")


def test_files_beside(pair: Material, tmp_path: Path) -> None:
    picture = drawn(comparison_figures.effects(pair))
    svg, png = picture.save(tmp_path / "figures")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text(encoding="utf-8")
    assert "var(--" not in text  # they stand by themselves
    assert "DOCTYPE" not in text
