"""Good summaries of an asked length, in one stage: GRPO on length and quality together from the first step to the last.

python -m recipes.grpo_joint --config recipes/configs/tldr_qwen.yaml
"""

from __future__ import annotations

import sys

from mlx_sumrl.options.command_line import exit_code_of
from recipes.grpo import main

DESCRIPTION = (
    "Teach a model to write good summaries of an asked length, length and quality together in one stage."
)

if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main("grpo_joint", DESCRIPTION, staged=False)))
