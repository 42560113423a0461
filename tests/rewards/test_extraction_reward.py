"""Copying, novelty and entities by hand."""

from __future__ import annotations

import numpy as np

from mlx_sumrl.config import LengthConfig, StageConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.rewards import EntityCoverageReward, build_rewards
from mlx_sumrl.rollouts.types import Completion, Group

DOCUMENT = "Anna met Bob Smith in Paris. They talked for 25 minutes about trains."


def group(*texts: str, reference: str = "They met Bob Smith in Paris.") -> Group:
    completions = tuple(Completion((1, 0), (0.0, 0.0), "stop", 0, text) for text in texts)
    return Group(Example("row", (1,), "", DOCUMENT, reference), completions)


def test_extractiveness_and_novelty() -> None:
    stage = StageConfig.model_validate(
        {
            "name": "s",
            "steps": 1,
            "rewards": [
                {"kind": "extractiveness", "weight": -1},
                {"kind": "novelty"},
                {"kind": "novelty", "novel_ngram": 1, "name": "words"},
            ],
        }
    )
    scores = build_rewards(stage, LengthConfig()).score(
        [group("Anna met Tom in Paris", "met Bob", "new words", "")]
    )
    # anna met | in paris are copied, 4 of 5 words; of four pairs met-tom and tom-in are new.
    np.testing.assert_allclose(scores.components["extractiveness"], [[0.8, 1, 0, 0]])
    np.testing.assert_allclose(scores.components["novelty"], [[0.5, 0, 1, 0]])
    np.testing.assert_allclose(scores.components["words"], [[0.2, 0, 1, 0]])
    np.testing.assert_allclose(scores.total_PG, [[-0.8 + 0.5 + 0.2, -1, 2, 0]])


def test_entities_of_reference_and_document() -> None:
    texts = ("bob smith went to Paris", "Paris", "Anna, 25, Bob Smith, Paris", "")
    found = EntityCoverageReward("e", "reference")([group(*texts)])
    np.testing.assert_allclose(found, [[1, 0.5, 1, 0]])
    found = EntityCoverageReward("e", "document")([group(*texts)])
    np.testing.assert_allclose(
        found, [[2 / 3, 1 / 3, 1, 0]]
    )  # Anna stands where a sentence begins: no entity
    nothing = EntityCoverageReward("e", "reference")([group("Paris", reference="they talked")])
    assert np.isnan(nothing).all(), "nothing to mention is nothing to say"
