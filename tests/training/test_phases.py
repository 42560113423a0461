"""Where learning when to stop stands among the stages: in the run, in its evaluations, on the model card."""

from __future__ import annotations

import pytest

from mlx_sumrl.config import RunConfig
from mlx_sumrl.reporting.model_card import _method
from recipes.grpo import passed
from tests.recipes.jobs import two_stages
from tests.recipes.programs import tiny_job


@pytest.mark.parametrize(
    ("when", "stage", "order"),
    [
        ("before", None, "stopping first second"),
        ("before", "first", "stopping first second"),
        ("after", "first", "first stopping second"),
        ("before", "second", "first stopping second"),
        ("after", "second", "first second stopping"),
        ("after", None, "first second stopping"),
    ],
)
def test_stopping_stands_where_it_is_told_to(when: str, stage: str | None, order: str) -> None:
    options = {"stopping": {"steps": 1, "when": when, "stage": stage}, "stages": two_stages(), "sft": None}
    config = RunConfig.model_validate(tiny_job(options))
    assert " ".join(phase.name for phase in config.phases) == order
    assert passed(config) == order.removeprefix("stopping ").split(), "what is taught first counts as before"


@pytest.mark.parametrize(
    ("where", "stages", "said"),
    [
        ({"when": "before"}, True, "learning when to stop, then GRPO (stages: first and second)"),
        ({"when": "after"}, True, "GRPO (stages: first and second), then learning when to stop"),
        (
            {"when": "after", "stage": "first"},
            True,
            "GRPO (stages: first), then learning when to stop, then GRPO (stages: second)",
        ),
        ({"when": "after"}, False, "learning when to stop"),
    ],
)
def test_the_model_card_tells_them_in_their_order(where: dict[str, str], stages: bool, said: str) -> None:
    options = {"sft": None, "stopping": {"steps": 1, **where}, "stages": two_stages() if stages else []}
    assert _method(RunConfig.model_validate(tiny_job(options))) == said
