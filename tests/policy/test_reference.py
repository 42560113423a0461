"""Real models against what transformers and torch computed with them, kept in reference.json beside the weights.

The greedy continuations there do not end at stop tokens; a sampler does, so it is compared up to the first one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Sampling
from tests.families import REFERENCE_MODELS, SHARED_MODELS, example

pytestmark = pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="no ../shared/models beside the checkout")


def load(folder: Path) -> Policy:
    return load_policy(PolicyConfig(model=str(folder), tuning="full", dtype="float32"))


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((SHARED_MODELS / name / "reference.json").read_text())["cases"]


def copied(name: str, to: Path, **changes: Any) -> Path:
    """A copy of a model whose config.json has these changes; None takes a key out."""
    folder = to / name
    shutil.copytree(SHARED_MODELS / name, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def check(policy: Policy, name: str) -> None:
    """Log-probabilities by teacher forcing, one row a case and all cases in one batch, and greedy tokens."""
    expected = cases(name)
    rows = [case["token_ids"] for case in expected]
    batch = token_batch([row[:1] for row in rows], [row[1:] for row in rows])
    together = np.array(completion_logprobs(policy.model, batch))
    for i, case in enumerate(expected):
        truth = case["logprobs"][1:]
        np.testing.assert_allclose(together[i, : len(truth)], truth, atol=1e-4)

    longest = max(len(case["greedy"]) for case in expected)
    groups = LocalSampler(policy).sample(
        [example(*row) for row in rows], 1, Sampling(temperature=0, max_tokens=longest), seed=0
    )
    for group, case in zip(groups, expected, strict=True):
        stops = [i for i, token in enumerate(case["greedy"]) if token in policy.stop_ids]
        until = stops[0] + 1 if stops else len(case["greedy"])
        [completion] = group.completions
        assert list(completion.token_ids[:until]) == case["greedy"][:until]
        assert (completion.finish_reason == "stop") == bool(stops) or len(case["greedy"]) < longest
        if stops:
            assert len(completion.token_ids) == until


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_the_model_is_the_one_that_torch_ran(name: str) -> None:
    check(load(SHARED_MODELS / name), name)


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_a_rotary_base_only_inside_rope_parameters_is_read(name: str, tmp_path: Path) -> None:
    nested = {"rope_theta": 10000.0, "rope_type": "default"}
    policy = load(copied(name, tmp_path, rope_theta=None, rope_parameters=nested))
    assert policy.reconciled
    check(policy, name)


def test_without_any_rotary_base_the_family_has_its_own(tmp_path: Path) -> None:
    # Hugging Face's Qwen2Config has 10,000 where nothing is said; mlx-lm's qwen2 has 1,000,000.
    policy = load(copied("summarizer-5m", tmp_path, rope_theta=None, rope_parameters=None))
    check(policy, "summarizer-5m")


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_contradictory_rotary_bases_are_refused(name: str, tmp_path: Path) -> None:
    nested = {"rope_theta": 500000.0, "rope_type": "default"}
    folder = copied(name, tmp_path, rope_theta=10000.0, rope_parameters=nested)
    with pytest.raises(UserError, match=r"rope_theta as 10000.*500000") as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_the_wrong_rotary_base_would_show(tmp_path: Path) -> None:
    """The comparison above can fail: 1,000,000, mlx-lm's own default, is caught by it."""
    with pytest.raises(AssertionError):
        check(load(copied("summarizer-5m", tmp_path, rope_theta=1e6, rope_parameters=None)), "summarizer-5m")
