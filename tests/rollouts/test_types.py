"""What a completion and a group say about themselves."""

from __future__ import annotations

import subprocess
import sys

from mlx_sumrl.rollouts.types import Completion, FinishReason, Group
from tests.families import example


def completion(ids: tuple[int, ...], reason: FinishReason, version: int = 0) -> Completion:
    return Completion(ids, (-1.0,) * len(ids), reason, version, "")


def test_length_leaves_out_the_stop_token() -> None:
    assert completion((5, 6, 7, 2), "stop").length == 3
    assert completion((2,), "stop").length == 0
    assert completion((5, 6, 7, 2), "length").length == 4


def test_a_group_is_as_old_as_its_oldest_completion() -> None:
    group = Group(example(1), tuple(completion((2,), "stop", version) for version in (5, 3, 4)))
    assert group.policy_version == 3


def test_types_never_load_mlx() -> None:
    """The cluster layer stands on them, where only HTTP and vLLM are."""
    script = "import sys, mlx_sumrl.rollouts, mlx_sumrl.rollouts.types; print('mlx.core' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
