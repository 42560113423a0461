"""A copy of a model in few bits, to train adapters on in little memory (QLoRA) or to run.

python -m recipes.quantize --model models/my-model --bits 4 --group_size 64 --out models/my-model-4bit
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_sumrl.config import Room
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.policy.quantizing import Bits, GroupSize, quantize

DESCRIPTION = "Write a quantised copy of a model; tokenizer and chat template are the original's."


class QuantizeConfig(Room):
    """Which model, into how many bits, where to."""

    model: str
    """A model folder or a Hugging Face id."""
    out: Path
    """Folder for the copy; one that exists is refused."""
    bits: Bits = 4
    """Bits of a weight."""
    group_size: GroupSize = 64
    """Weights that share a scale and a bias; fewer are more exact and take more memory."""
    trust_remote_code: bool = False
    """Run Python that a model folder brings along."""


def main(argv: Sequence[str] | None = None) -> None:
    """Quantise, and say what it saved."""
    config = parse(QuantizeConfig, argv, prog="python -m recipes.quantize", description=DESCRIPTION)
    made = quantize(
        config.model,
        config.out,
        bits=config.bits,
        group_size=config.group_size,
        trust_remote_code=config.trust_remote_code,
    )
    saved = made.bytes_before / made.bytes_after
    print(
        f"{config.model}: weights of {_size(made.bytes_before)}; {made.folder}: {_size(made.bytes_after)}, "
        f"{saved:.2f} times smaller ({made.packed} matrices in {config.bits} bits)"
    )
    if made.left:
        names = ", ".join(made.left[:3]) + (", ..." if len(made.left) > 3 else "")
        print(
            f"{len(made.left)} matrices stay as they were: {config.group_size} does not divide their width ({names})"
        )
    print(f"train on it: python -m recipes.sft --policy.model {made.folder} --policy.tuning lora ...")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
