"""Teach small language models, on Apple Silicon, to write summaries that are good and exactly as long as asked.

Public names load when they are first used, so that ``mlx_sumrl.config`` and ``mlx_sumrl.rollouts`` work where mlx
is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlx_sumrl import blas as blas  # before the first import of mlx, see there
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from mlx_sumrl.notebook import evaluate as evaluate
    from mlx_sumrl.notebook import load_examples as load_examples
    from mlx_sumrl.notebook import load_policy as load_policy
    from mlx_sumrl.notebook import summarize as summarize
    from mlx_sumrl.notebook import train_grpo as train_grpo
    from mlx_sumrl.notebook import train_sft as train_sft
    from mlx_sumrl.policy.export import export_adapter as export_adapter
    from mlx_sumrl.policy.export import export_model as export_model
    from mlx_sumrl.policy.export import export_peft as export_peft

_HOMES = {
    "evaluate": "mlx_sumrl.notebook",
    "export_adapter": "mlx_sumrl.policy.export",
    "export_model": "mlx_sumrl.policy.export",
    "export_peft": "mlx_sumrl.policy.export",
    "load_examples": "mlx_sumrl.notebook",
    "load_policy": "mlx_sumrl.notebook",
    "summarize": "mlx_sumrl.notebook",
    "train_grpo": "mlx_sumrl.notebook",
    "train_sft": "mlx_sumrl.notebook",
}

__all__ = [
    "UserError",
    "evaluate",
    "export_adapter",
    "export_model",
    "export_peft",
    "load_examples",
    "load_policy",
    "summarize",
    "train_grpo",
    "train_sft",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
