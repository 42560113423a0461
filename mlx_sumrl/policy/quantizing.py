"""A quantised copy of a model folder, to train adapters on (QLoRA, Dettmers et al. 2023, arXiv:2305.14314) or to run.

Invariant: the copy is whole or not there; its tokenizer, chat template and stop tokens are the original's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.export import QUANTIZATION, copy_tokenizer, whole_folder
from mlx_sumrl.policy.loading import checked_config, model_folder, read_tokenizer

Bits = Literal[4, 8]
GroupSize = Literal[32, 64, 128]


@dataclass(frozen=True)
class QuantizedCopy:
    """What became of a model."""

    folder: Path
    bytes_before: int
    """Of all weight files."""
    bytes_after: int
    packed: int
    """Matrices in few bits."""
    left: list[str]
    """Matrices kept as they were, since the group size does not divide their width."""


def quantize(
    model: str, out: str | Path, *, bits: Bits, group_size: GroupSize, trust_remote_code: bool = False
) -> QuantizedCopy:
    """Write a copy of a model folder or hub id with its matrices in ``bits``, a scale for each ``group_size`` weights.

    Raises `UserError` for a model that is not there, not supported, or quantised already, for an ``out`` that
    exists, and where no matrix can be packed.
    """
    out = Path(out).expanduser()
    if out.exists():
        raise UserError(f"{out} is there already: remove it, or name another folder by --out")
    folder = model_folder(model)
    config, _ = checked_config(folder, model)
    if any(config.get(name) for name in QUANTIZATION):
        had = next(config[name] for name in QUANTIZATION if config.get(name))
        bits_had = had.get("bits", "a few") if isinstance(had, dict) else "a few"
        raise UserError(
            f"{model} is quantised already ({bits_had} bits): quantise the model that it was made from"
        )
    read_tokenizer(folder, trust_remote_code)
    with whole_folder(out) as unfinished:
        packed, left = mlx_internals.write_quantized(
            folder,
            config,
            unfinished,
            bits=bits,
            group_size=group_size,
            trust_remote_code=trust_remote_code,
        )
        if not packed:
            raise UserError(
                f"no matrix of {model} has a width that {group_size} divides: take a smaller --group_size (32 is "
                "the smallest), or leave this model as it is"
            )
        copy_tokenizer(folder, unfinished)
    return QuantizedCopy(out, _weight_bytes(folder), _weight_bytes(out), len(packed), left)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
