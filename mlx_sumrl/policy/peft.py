"""A PEFT adapter folder taken in again: the reverse of `export_peft`.

Invariant: a policy computes with the folder's adapter, whole and bit for bit as it was exported, or, where an error
was raised, with what it had before; an adapter that covers only some of the layers that its names span is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from pydantic import ValidationError

from mlx_sumrl.config import LoraConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.policy import Policy

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TENSOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<half>[AB])\.weight")
IN_BLOCK = re.compile(r".*\blayers\.(?P<block>\d+)\.(?P<key>.+)")
NOT_TAKEN = {"use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "bias": "none"}
"""Options of PEFT that change what an adapter computes, and the only value of each that is taken here."""


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter as MLX lays it out, in memory."""

    lora: LoraConfig
    """Its shape, and the places that it covers."""
    weights: dict[str, tuple[mx.array, mx.array]]
    """By the path of a linear layer: A [in, rank] and B [rank, out]."""


def load_peft(policy: Policy, folder: str | Path) -> None:
    """`read_peft`, then `put_peft`. Raises `UserError`, and the policy is then as it was."""
    put_peft(policy, read_peft(policy, folder))


def put_peft(policy: Policy, adapter: PeftAdapter) -> None:
    """From now on the policy has this adapter in place of any that it had; its reference is the model without."""
    lora = adapter.lora
    remove_adapters(policy)
    policy.model.freeze()
    mlx_internals.add_adapters(
        policy.model,
        rank=lora.rank,
        scale=lora.scale,
        dropout=lora.dropout,
        layers=lora.layers,
        keys=lora.keys or (),
        dora=False,
    )
    policy.options = policy.options.model_copy(update={"lora": lora, "tuning": "lora"})
    policy.set_weights(
        {
            f"{path}.{leaf}": array
            for path, halves in adapter.weights.items()
            for leaf, array in zip(("lora_a", "lora_b"), halves, strict=True)
        }
    )


def remove_adapters(policy: Policy) -> None:
    """The policy is the model below its adapters; nothing happens to one that has none."""
    modules = mlx_internals.adapter_modules(policy.model)
    if modules:
        policy.model.update_modules(tree_unflatten([(name, module.linear) for name, module in modules]))
    policy.reference = None


def read_peft(policy: Policy, folder: str | Path) -> PeftAdapter:
    """The adapter of a PEFT folder, read to its end: the folder may go afterwards.

    Raises `UserError` for a folder that is not a PEFT LoRA adapter or does not fit the policy's model.
    """
    folder = Path(folder)
    config = _read_config(folder)
    weights = _read_halves(folder / WEIGHTS)
    for path, (a, b) in weights.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != config["r"] or b.shape[0] != config["r"]:
            raise UserError(
                f"{folder / WEIGHTS}: {path} is {a.shape} and {b.shape}, which is not of rank {config['r']}, as its "
                "config says; export the adapter again"
            )
    layers, keys = _checked_places(policy, weights, folder)
    try:
        lora = LoraConfig(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout") or 0.0,
            layers=layers,
            keys=keys,
        )
    except ValidationError as error:
        reasons = "; ".join(f"{entry['loc'][0]}: {entry['msg']}" for entry in error.errors())
        raise UserError(f"{folder / CONFIG} cannot be used ({reasons}); export the adapter again") from error
    return PeftAdapter(lora, weights)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is not a PEFT adapter folder: it needs {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); export the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(
            f"{path} does not describe a LoRA adapter (peft_type LORA), and no other kind is taken"
        )
    for name, only in NOT_TAKEN.items():
        if config.get(name, only) != only:
            raise UserError(
                f"{path}: {name} {config[name]!r} is not supported; fuse the adapter and load that"
            )
    for name in ("rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(name):
            raise UserError(f"{path}: {name} is not supported; fuse the adapter and load that")
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout") or 0.0
    if type(rank) is not int or type(alpha) not in (int, float) or type(dropout) not in (int, float):
        raise UserError(
            f"{path} lacks what an adapter needs: r {rank!r} and lora_alpha {alpha!r} must be numbers; "
            "export the adapter again"
        )
    return config


def _read_halves(file: Path) -> dict[str, tuple[mx.array, mx.array]]:
    try:
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        found: dict[str, dict[str, mx.array]] = {}
        for name, array in tensors.items():
            match = TENSOR.fullmatch(name)
            if match is None:
                raise UserError(f"{file} holds {name}, which is no part of a LoRA adapter; export it again")
            if not mx.issubdtype(array.dtype, mx.floating):
                raise UserError(f"{file} holds {name} as {array.dtype}; an adapter is of floating numbers")
            # Copied into the layout that training has: a product over a transposed view may differ in its last bit.
            found.setdefault(match["path"], {})[match["half"]] = mx.contiguous(array.T)
        mx.eval(found)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{file} is not a whole safetensors file ({error}); copy or export it again"
        ) from error
    for path, halves in found.items():
        if halves.keys() != {"A", "B"}:
            raise UserError(f"{file} has only lora_{next(iter(halves))} of {path}; export the adapter again")
    if not found:
        raise UserError(f"{file} holds no adapter at all; export it again")
    return {path: (halves["A"], halves["B"]) for path, halves in found.items()}


def _checked_places(
    policy: Policy, weights: dict[str, tuple[mx.array, mx.array]], folder: Path
) -> tuple[int, tuple[str, ...]]:
    """(last blocks or -1 for all, names in a block) that the adapter covers. Raises `UserError`."""
    blocks, keys = set(), set()
    for path in weights:
        match = IN_BLOCK.fullmatch(path)
        if match:
            blocks.add(int(match["block"]))
            keys.add(match["key"])
        elif path == mlx_internals.HEAD:
            keys.add(path)
    total = len(policy.model.layers)
    first = min(blocks, default=total)
    with mlx_internals.adapters_off(policy.model):
        linear = {
            name: module
            for name, module in policy.model.named_modules()
            if isinstance(module, mlx_internals.LINEAR_MODULES)
        }
    expected = {
        name
        for name in linear
        if (
            name in keys
            if (match := IN_BLOCK.fullmatch(name)) is None
            else int(match["block"]) >= first and match["key"] in keys
        )
    }
    if odd := sorted(expected ^ weights.keys()):
        which = "has nothing for" if odd[0] in expected else "is for a layer that is not there,"
        raise UserError(
            f"the adapter in {folder} {which} {odd[0]} of {policy.source}; export it from a policy on this model"
        )
    for path, (a, b) in weights.items():
        if (a.shape[0], b.shape[1]) != _sizes(linear[path]):
            raise UserError(
                f"the adapter in {folder} takes {path} for {a.shape[0]} x {b.shape[1]}, which in {policy.source} is "
                f"{' x '.join(map(str, _sizes(linear[path])))}; export it from a policy on this model"
            )
    return (-1 if first == 0 else total - first) or 1, tuple(sorted(keys))


def _sizes(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer, packed or not."""
    outputs, inputs = module.weight.shape
    return (inputs * 32 // module.bits if isinstance(module, nn.QuantizedLinear) else inputs), outputs
