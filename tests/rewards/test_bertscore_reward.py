"""BERTScore as a reward: the metric's F1, in the training thread, beside rewards in processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_sumrl.config import LengthConfig, RewardConfig, ScoringConfig, StageConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.bertscore import BertScorer
from mlx_sumrl.rewards import Scorer, build_rewards
from tests.metrics.conftest import make_encoder


def stage(folder: Path) -> StageConfig:
    rewards = [{"kind": "bertscore", "encoder": str(folder)}, {"kind": "chrf"}]
    return StageConfig.model_validate({"name": "s", "steps": 1, "rewards": rewards})


def test_it_is_the_metric(tmp_path, completion, group, dialogues):
    texts = [row["summary"] for row in dialogues[:6]]
    folder = make_encoder(tmp_path / "encoder", "bert", texts)
    groups = [
        group(
            completion(text=texts[p + 1]), completion(text=texts[p]), completion(text=""), reference=texts[p]
        )
        for p in range(4)
    ]
    rewards = build_rewards(stage(folder), LengthConfig())
    with Scorer(rewards, ScoringConfig(processes=1)) as scorer:
        scores = scorer.scores(groups)
    found = scores.components["bertscore"]
    for p in range(4):
        [[_, _, expected]] = BertScorer(folder).score([texts[p + 1]], [texts[p]])
        assert found[p, 0] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(found[:, 1:], [[1, 0]] * 4, atol=1e-6)
    np.testing.assert_array_equal(scores.components["chrf"], rewards.score(groups).components["chrf"])


def test_what_is_missing_is_told_before_training(tmp_path):
    with pytest.raises(ValueError, match="`encoder: FOLDER` exactly when its kind is `bertscore`"):
        RewardConfig(kind="bertscore")
    with pytest.raises(UserError, match="nowhere"):
        build_rewards(stage(tmp_path / "nowhere"), LengthConfig())
