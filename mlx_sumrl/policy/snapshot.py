"""What the trainer publishes after a step, and a sampler's process takes in: an adapter, or all weights.

Invariant: a folder is whole or not there, holds the policy bit for bit as it was, and while whole weights are written
or read no second copy of the model is alive, one tensor apart. (What is fused, adapters that no engine takes by
themselves, is rounded into the type of the weights once.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.export import export_peft, whole_folder, write_beside_weights
from mlx_sumrl.policy.peft import remove_adapters
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.policy.reconcile import weight_names

SAFETENSORS_TYPES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}
"""Types that weights are published in, as a safetensors header calls them."""
BITS = {mx.bfloat16: mx.uint16, mx.float16: mx.uint16, mx.float32: mx.uint32}
WEIGHTS = "model.safetensors"
SCORED_AT_ONCE = 128
"""Positions whose logits are there at once: 78 MB for a vocabulary of 151,936."""


class HalfTakenError(UserError):
    """Weights broke off on the way in: the policy is of no use until others are taken."""


def write_snapshot(policy: Policy, folder: str | Path) -> Literal["adapter", "full"]:
    """Write the policy for samplers elsewhere, and say as what.

    LoRA is a PEFT adapter; all else is whole weights as Hugging Face has them, with config and tokenizer: full
    training, DoRA, and an adapter on the head, which vLLM does not take. Raises `UserError` for a quantised model
    whose weights would have to be fused: what was learnt is less than the gap between two of its codes.
    """
    head = mlx_internals.HEAD in dict(mlx_internals.adapter_modules(policy.model))
    if policy.options.tuning == "lora" and not head:
        export_peft(policy, folder)
        return "adapter"
    if mlx_internals.is_quantized(policy.model):
        what = "an adapter on the head" if head else f"policy.tuning {policy.options.tuning}"
        raise UserError(
            f"{what} on the quantised model {policy.source} cannot be sent to workers; train with policy.tuning lora "
            "without lm_head, or start from the model that is not quantised"
        )
    weights = mlx_internals.fused_weights(policy.model)
    weights = mlx_internals.hugging_face_layout(weights, policy.config["model_type"])
    with whole_folder(Path(folder)) as path:
        write_safetensors(path / WEIGHTS, weights)
        write_beside_weights(policy, path)
        # Workers have their own, and take in no file whose ending says nothing of what is in it.
        (path / "tokenizer.model").unlink(missing_ok=True)
    return "full"


def write_safetensors(file: Path, weights: Weights) -> None:
    """Write arrays, computed and let go one by one; ``weights`` is used up. Raises ValueError for other types.

    ``mx.save_safetensors`` computes all of them before it writes the first.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in weights.items():
        if array.dtype not in SAFETENSORS_TYPES:
            raise ValueError(f"{name} is {array.dtype}; weights are bfloat16, float16 or float32")
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": SAFETENSORS_TYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in list(weights):
            array = weights.pop(name)
            # Not a copy on a CPU, and with unified memory: numpy looks at MLX's own.
            bits = np.array(mx.contiguous(array).reshape(-1).view(BITS[array.dtype]), copy=False)
            stream.write(bits.data if bits.size else b"")


def take_weights(policy: Policy, folder: str | Path) -> None:
    """From now on the policy is the model of these whole weights, without adapters.

    Raises `UserError` for a folder whose weights are not those of this model; nothing has changed then, but where
    it is a `HalfTakenError`: a file that could not be read to its end.
    """
    folder = Path(folder)
    if mlx_internals.is_quantized(policy.model):
        raise UserError(
            f"{policy.source} is quantised and takes no whole weights; serve the model that is not quantised"
        )
    names = weight_names(folder) if folder.is_dir() else set()
    if not names:
        raise UserError(f"{folder} has no model*.safetensors: name a folder with whole weights")
    weights: Weights = {}
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            weights |= mx.load(str(file))  # type: ignore[arg-type]
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} is not a whole safetensors file ({error}); send it again") from error
    if hasattr(policy.model, "sanitize"):
        weights = policy.model.sanitize(weights)
    with mlx_internals.adapters_off(policy.model):
        current = mlx_internals.named_arrays(policy.model.parameters())
    if odd := sorted(current.keys() ^ weights.keys()):
        kind = "lacks" if odd[0] in current else "holds, where the model has none,"
        raise UserError(
            f"{folder} {kind} {odd[0]}: these are not the weights of {policy.source}; send a version of this model"
        )
    for name, array in weights.items():
        if array.shape != current[name].shape:
            raise UserError(
                f"{folder} has {name} as {array.shape}, where {policy.source} has {current[name].shape}; "
                "send a version of this model"
            )
    types = {name: array.dtype for name, array in current.items()}
    del current, array
    remove_adapters(policy)
    for name in list(weights):
        new = weights.pop(name).astype(types[name])
        try:
            mx.eval(new)
        except RuntimeError as error:
            raise HalfTakenError(
                f"{folder} could not be read to its end ({error}), and some of its weights are in: send it again, or "
                "load other weights, before anything is sampled"
            ) from error
        policy.set_weight(name, new)
    mx.clear_cache()


def text_logprobs(policy: Policy, token_ids: list[int] | tuple[int, ...]) -> list[float]:
    """log p of every token but the first, at temperature 1 and unfiltered: what a canary compares.

    Raises ValueError for fewer than two tokens.
    """
    if len(token_ids) < 2:
        raise ValueError("a text to score has at least two tokens")
    model, training = policy.model, policy.model.training
    model.eval()
    try:
        hidden_LD = mlx_internals.backbone(model, mx.array([list(token_ids[:-1])]))[0]
        targets_L = mx.array(list(token_ids[1:]))
        found: list[float] = []
        for start in range(0, len(token_ids) - 1, SCORED_AT_ONCE):
            part = slice(start, start + SCORED_AT_ONCE)
            logits_NV = mlx_internals.head(model, hidden_LD[part])
            chosen_N = mx.take_along_axis(logits_NV, targets_L[part][:, None], axis=-1)[:, 0]
            found += (chosen_N - mx.logsumexp(logits_NV, axis=-1)).tolist()  # type: ignore[arg-type]
        return found
    finally:
        model.train(training)
