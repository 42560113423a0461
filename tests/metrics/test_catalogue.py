"""The catalogue has every number that an evaluation has, and says true things of it."""

from __future__ import annotations

import pytest

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation import score
from mlx_sumrl.metrics.catalogue import CATALOGUE
from mlx_sumrl.rollouts.types import Completion, Group


@pytest.mark.usefixtures("wordnet")
def test_every_metric_of_a_row_is_in_it_and_within_its_bounds(dialogues):
    groups = [
        Group(
            Example(row["id"], (1,), "p", row["dialogue"], row["summary"]),
            (Completion((1, 2, 0), (0.0,) * 3, "stop", 0, text),),
        )
        for row in dialogues
        for text in (row["dialogue"][:200], dialogues[0]["summary"], "", "!")
    ]
    seen = {name: set() for name in CATALOGUE}
    for row in score(groups, LengthConfig()).rows:
        for name, value in row.metrics.items():
            metric = CATALOGUE[name]
            seen[name].add(value)
            if value is not None:
                assert metric.low is None or value >= metric.low - 1e-12, name
                assert metric.high is None or value <= metric.high + 1e-12, name
    assert sum(len(values) > 0 for values in seen.values()) > 20


def test_entries_are_whole():
    assert all(name == one.name and one.title and one.says for name, one in CATALOGUE.items())
    assert len({one.title for one in CATALOGUE.values()}) == len(CATALOGUE)
