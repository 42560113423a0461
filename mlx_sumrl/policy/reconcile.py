"""Model configs that mlx-lm would misread without a word, put right or refused.

mlx-lm's model classes pick the keys they know out of config.json and fall back to defaults for the rest. A model
then loads, runs and babbles: no error, log-probabilities off by 10 % and more. Known cases, each handled here:

* transformers 5 writes the rotary base (and scaling) only inside ``rope_parameters``; qwen2, llama and phi3 read
  only the top level. Where neither says anything transformers takes 10,000, mlx-lm's qwen2 1,000,000.
* qwen2 and llama tie the output head to the embeddings when ``tie_word_embeddings`` is absent, and then drop a
  ``lm_head.weight`` that is there.
* lfm2 always ties its head, and reads no rotary scaling.
* an activation other than SiLU is ignored.

Never imports mlx.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mlx_sumrl.errors import UserError

SILU_NAMES = {"silu", "swish"}
UNSAID_ROTARY_BASE = {"qwen2": 10_000.0, "qwen3": 10_000.0}
"""What transformers takes when a config names no rotary base, where mlx-lm takes another or none."""


def weight_names(folder: Path) -> set[str]:
    """Names of all tensors in a folder's ``model*.safetensors``, read from the headers alone."""
    names: set[str] = set()
    for file in sorted(folder.glob("model*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            try:
                header = json.loads(stream.read(size)) if 0 < size <= file.stat().st_size else None
            except ValueError:
                header = None
        if not isinstance(header, dict):
            raise UserError(f"{file} is not a whole safetensors file; copy or download the model again")
        names.update(name for name in header if name != "__metadata__")
    return names


def reconciled_config(config: dict[str, Any], tensors: Collection[str], source: str) -> dict[str, Any]:
    """A copy of ``config`` that mlx-lm reads the way the model was trained.

    Raises `UserError` where that cannot be done; ``source`` names the model in it.
    """
    config = dict(config)
    family = config.get("model_type")
    _reconcile_rotary(config, source)
    _check_scaling(config, source)
    if config.get("rope_theta") is None and family in UNSAID_ROTARY_BASE:
        config["rope_theta"] = UNSAID_ROTARY_BASE[family]
    if family == "lfm2":
        if config.get("tie_embedding", True) is False or config.get("tie_word_embeddings", True) is False:
            raise UserError(f"{source}: an lfm2 model with an untied output head is not supported by mlx-lm")
    else:
        _reconcile_head(config, tensors, source)
    activation = config.get("hidden_act", "silu")
    if family in {"qwen2", "qwen3", "llama", "phi3"} and activation not in SILU_NAMES:
        raise UserError(
            f"{source}: activation {activation!r} is not SiLU, the only one mlx-lm's {family} has"
        )
    return config


def context_length(config: dict[str, Any]) -> int | None:
    """Most tokens for which mlx-lm computes what the model was trained to; None when the config does not say.

    mlx-lm ignores the sliding windows of qwen2 and phi3, which is right only for texts that fit in one.
    """
    limits = [config.get("max_position_embeddings")]
    if config.get("model_type") == "phi3" or config.get("use_sliding_window"):
        limits.append(config.get("sliding_window"))
    known = [limit for limit in limits if isinstance(limit, int)]
    return min(known) if known else None


def _reconcile_rotary(config: dict[str, Any], source: str) -> None:
    nested = config.get("rope_parameters")
    if not isinstance(nested, dict):
        return
    if any(isinstance(value, dict) for value in nested.values()):
        raise UserError(f"{source}: rotary parameters per layer type ({', '.join(nested)}) are not supported")
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if key not in nested:
            continue
        outer = config.get(key)
        if outer is not None and float(outer) != float(nested[key]):
            raise UserError(
                f"{source}: config.json gives {key} as {outer} and, in rope_parameters, as {nested[key]}; "
                "correct the one that is wrong"
            )
        config[key] = nested[key]
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind == "default":
        return
    if config.get("model_type") == "lfm2":
        raise UserError(f"{source}: rotary scaling {kind!r} is not supported for lfm2")
    if config.get("rope_scaling") is None:
        config["rope_scaling"] = {**nested, "type": kind}


def _check_scaling(config: dict[str, Any], source: str) -> None:
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) == "dynamic":
        # its base depends on how long the text is, so a batch of prompts of different lengths has no single one
        raise UserError(f"{source}: rotary scaling 'dynamic' is not supported; export the model with another")


def _reconcile_head(config: dict[str, Any], tensors: Collection[str], source: str) -> None:
    has_head = "lm_head.weight" in tensors
    tied = config.get("tie_word_embeddings")
    if tied is None:
        config["tie_word_embeddings"] = not has_head
    elif not tied and not has_head:
        raise UserError(
            f"{source}: config.json says the output head is not tied to the embeddings, "
            "but the weights have no lm_head.weight; the model is incomplete"
        )
