"""Length and quality together from the first step: joint GRPO.

python -m recipes.grpo_joint --config recipes/configs/tldr_qwen.yaml
"""

from __future__ import annotations

import sys

from mlx_sumrl.options.command_line import exit_code_of
from mlx_sumrl.training.stages import JOINT
from recipes.grpo import main

DESCRIPTION = "Teach a model to write good summaries of an asked length, both at once."

if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main("grpo_joint", DESCRIPTION, JOINT)))
