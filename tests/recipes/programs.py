"""Recipes run as programs, in this process or in one of their own, on the smallest job there is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlx_sumrl.options.tree import merged

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"

VOWELS = '''
def vowels(prompts, completions, **columns):
    """Differs between almost any two completions, so that every group teaches something."""
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]
'''


LACKING = "the WordNet corpus is not on this machine: get it"
"""What is said where `no_wordnet` hides it."""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str


Program = Callable[..., Ended]
"""``program("grpo_staged", "--config", file)``."""


def tiny_job(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Options of a run of 20 steps (6 supervised, 7, 7) that takes two or three seconds."""
    options = {
        "name": "job",
        "policy": {
            "tiny": {"vocabulary": 320, "hidden_size": 32, "layers": 2, "heads": 2, "context": 128},
            "tuning": "full",
            "dtype": "float32",
        },
        "data": {
            "grammar": {"train_posts": 40, "evaluation_posts": 6},
            "instruction": "Summarize.\n\n{document}",
            "max_prompt_tokens": 64,
        },
        "length": {"target": 12, "tolerance": 4},
        "sampling": {"max_tokens": 20},
        "sft": {"steps": 6, "batch_size": 4, "optimizer": {"learning_rate": 3e-3}},
        "optimizer": {"learning_rate": 3e-3},
        "grpo": {"prompts_per_step": 2, "group_size": 4},
        "checkpoint": {"every": 3},
        "reporting": {"rollouts_every": 2},
        "evaluation": {"samples": 1},
        "report": False,
    }
    return dict(merged(options, changes or {}))


def write_options(folder: Path, options: Mapping[str, Any], name: str = "job.yaml") -> str:
    """A config file; its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(dict(options)), encoding="utf-8")
    return str(path)


def start(recipe: str, *argv: str, folder: Path) -> subprocess.Popen[str]:
    """A recipe in a process of its own, seen from ``folder``; its stderr comes with its stdout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", f"recipes.{recipe}", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
