"""Length first, then quality: staged GRPO.

python -m recipes.grpo_staged --config recipes/configs/quickstart.yaml
python -m recipes.grpo_staged --resume runs/quickstart
"""

from __future__ import annotations

import sys

from mlx_sumrl.options.command_line import exit_code_of
from mlx_sumrl.training.stages import STAGED
from recipes.grpo import main

DESCRIPTION = "Teach a model to write summaries of an asked length, then good ones of that length."

if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main("grpo_staged", DESCRIPTION, STAGED)))
