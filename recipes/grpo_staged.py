"""Good summaries of an asked length, in stages of your own or in those that won: GRPO.

python -m recipes.grpo_staged --config recipes/configs/quickstart.yaml
python -m recipes.grpo_staged --resume runs/quickstart
"""

from __future__ import annotations

import sys

from mlx_sumrl.options.command_line import exit_code_of
from recipes.grpo import main

DESCRIPTION = "Teach a model to write good summaries of an asked length, in stages."

if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: main("grpo_staged", DESCRIPTION)))
