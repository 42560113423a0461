"""Everything that touches mlx-lm's internals: this module is the only one that does.

mlx-lm renames things between minor versions; what is used of it here is what pyproject.toml pins. Callers see
four things: a model folder loaded, the backbone apart from the head, linear layers turned into adapters, and an
empty cache for a prompt.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.gguf import convert_to_gguf
from mlx_lm.models import base
from mlx_lm.models.cache import ArraysCache, KVCache, make_prompt_cache
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model as mlx_lm_load_model
from mlx_lm.utils import quantize_model, save_config, save_model

from mlx_sumrl.errors import UserError

FAMILIES = "qwen2, qwen3, llama, phi3, lfm2"
"""Model families that are tested."""
ADAPTER_MODULES = (LoRALinear, DoRALinear)
ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
LINEAR_MODULES = (nn.Linear, nn.QuantizedLinear)
QUANTIZED_MODULES = (nn.QuantizedLinear, nn.QuantizedEmbedding)
HEAD = "lm_head"
"""Name of a head that is not tied to the embedding."""
ATTENTION, SWIGLU = "scaled_dot_product_attention", "swiglu"
"""Names under which mlx-lm's model modules look functions up."""
Attend = Callable[[mx.array, mx.array, mx.array, Any, float, Any], mx.array]
"""From queries, keys, values, the layer's cache, the scale and the mask to what the queries see."""
Gate = Callable[[mx.array, mx.array], mx.array]
HEAD_ROWS = 16_384
"""Vocabulary whose weights the head holds in float32 at once, where they are kept in another type."""


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """A tree of parameters as a flat dict, ``model.layers.0.self_attn.q_proj.weight`` -> array."""
    return dict(tree_flatten(tree))  # type: ignore[arg-type]


def load_weights(
    folder: Path, config: dict[str, Any], trust_remote_code: bool, lazy: bool = False
) -> nn.Module:
    """The model of a local folder, with ``config`` in place of what its config.json says.

    ``lazy`` reads a weight when it is first used.
    """
    try:
        model, _ = mlx_lm_load_model(
            folder, lazy=lazy, model_config=config, trust_remote_code=trust_remote_code
        )
    except (ValueError, FileNotFoundError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error
    loaded: nn.Module = model
    return loaded


def new_model(config: dict[str, Any]) -> nn.Module:
    """A model of this config with random weights drawn from mx.random."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    model: nn.Module = model_class(args_class.from_dict(config))
    return model


def backbone(model: nn.Module, tokens_BL: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
    """Final hidden states [B, L, D], after the last norm and before the head."""
    hidden: mx.array = model.model(tokens_BL, cache=cache)
    return hidden


def head(model: nn.Module, hidden: mx.array) -> mx.array:
    """Logits [..., V] in float32 of hidden states [..., D].

    The product itself is done in float32: rounded to bfloat16, a logit near 20 is off by up to 0.06.
    """
    hidden = hidden.astype(mx.float32)
    matrix = head_matrix(model)
    if matrix is not None and matrix.codes is None and matrix.weight.dtype != mx.float32:
        # A range of the vocabulary at a time: no float32 copy of the whole matrix.
        logits = mx.concatenate(
            [
                hidden @ matrix.rows(slice(start, start + HEAD_ROWS)).T
                for start in range(0, matrix.weight.shape[0], HEAD_ROWS)
            ],
            axis=-1,
        )
        logits = logits if matrix.bias is None else logits + matrix.bias.astype(mx.float32)
    else:
        module = _head_module(model)
        logits = module.as_linear(hidden) if hasattr(module, "as_linear") else module(hidden)
        logits = logits.astype(mx.float32)
    cap = soft_cap(model)
    return logits if cap is None else cap * mx.tanh(logits / cap)


def widened_head(model: nn.Module) -> Callable[[mx.array], mx.array]:
    """`head` as it is now, for many calls: weights that are not float32 are widened once and not at each call."""
    matrix = head_matrix(model)
    plain = matrix is not None and matrix.codes is None and matrix.bias is None and soft_cap(model) is None
    if matrix is None or not plain or matrix.weight.dtype == mx.float32:
        return partial(head, model)
    weight: mx.array = matrix.weight.astype(mx.float32)
    return lambda hidden: hidden.astype(mx.float32) @ weight.T


@dataclass(frozen=True)
class HeadMatrix:
    """A head that is one matrix [V, D], plain or quantised."""

    weight: mx.array
    """[V, D], or its packed codes."""
    bias: mx.array | None
    """[V]"""
    width: int
    """D"""
    codes: dict[str, Any] | None = None
    """What `mx.dequantize` needs beside the packed codes: arrays with a row for each of the vocabulary, and options."""

    def rows(self, which: slice | mx.array) -> mx.array:
        """Rows of the matrix in float32."""
        if self.codes is None:
            return self.weight[which].astype(mx.float32)
        rest: dict[str, Any] = {
            name: value[which] if isinstance(value, mx.array) else value for name, value in self.codes.items()
        }
        return mx.dequantize(self.weight[which], **rest).astype(mx.float32)


def head_matrix(model: nn.Module) -> HeadMatrix | None:
    """The head's matrix; None for one with adapters."""
    module = _head_module(model)
    if type(module) in (nn.Linear, nn.Embedding):
        return HeadMatrix(module.weight, module.get("bias"), module.weight.shape[-1])
    if isinstance(module, QUANTIZED_MODULES):
        codes = {name: module[name] for name in ("scales", "biases") if name in module}
        codes |= {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        width = module.weight.shape[-1] * 32 // module.bits
        return HeadMatrix(module.weight, module.get("bias"), width, codes)
    return None


def head_is_trained(model: nn.Module) -> bool:
    """Whether any weight of the head is."""
    return bool(_head_module(model).trainable_parameters())


def head_weights(model: nn.Module) -> dict[str, Any]:
    """The trainable weights that `head` uses, as a tree for ``model.update``."""
    trainable = _head_module(model).trainable_parameters()
    return {HEAD: trainable} if HEAD in model else {"model": {"embed_tokens": trainable}}


def head_names(model: nn.Module) -> list[str]:
    """Names in the model of a plain head's weight and, where there is one, bias."""
    path = HEAD if HEAD in model else "model.embed_tokens"
    return [f"{path}.{leaf}" for leaf in ("weight", "bias") if leaf in _head_module(model)]


def soft_cap(model: nn.Module) -> float | None:
    """c where logits are c tanh(logits / c), as in Gemma 2."""
    cap = getattr(model, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def vocabulary(model: nn.Module) -> int:
    """V, the number of logits."""
    embedding = model.model.embed_tokens
    return int(getattr(embedding, "embedding", embedding).weight.shape[0])


def _head_module(model: nn.Module) -> nn.Module:
    module: nn.Module = model.lm_head if HEAD in model else model.model.embed_tokens
    return module


def check_split(model: nn.Module, source: str) -> None:
    """Make sure that head after backbone is the model itself, for families that were not tested too.

    Raises `UserError` naming ``source`` otherwise.
    """
    tokens = mx.array([[0, 1, 2, 3]])
    try:
        split = head(model, backbone(model, tokens))
        whole = model(tokens).astype(mx.float32)
        agrees = bool(mx.all(mx.abs(split - whole) <= 0.05 * (1 + mx.abs(whole).max())).item())
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: this model family is not supported ({_first_line(error)}); "
            f"tested families: {FAMILIES}"
        ) from error
    if not agrees:
        raise UserError(
            f"{source}: this model family does more after its last norm than a head (scaling or capping of "
            f"logits) and is not supported; tested families: {FAMILIES}"
        )


def usual_attention(
    queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: Any
) -> mx.array:
    """mlx-lm's own, for quantised keys and values too."""
    seen: mx.array = base.scaled_dot_product_attention(
        queries, keys, values, cache=cache, scale=scale, mask=mask
    )
    return seen


@contextmanager
def computing_by(module: nn.Module, attend: Attend, gate: Gate | None = None) -> Iterator[None]:
    """Inside, blocks of the kind of ``module`` call these in place of mlx-lm's; put back whatever happens.

    mlx-lm's attention is a kernel that cannot read a prompt's keys where they are. Each family's Python module
    looks both functions up by name. ``gate`` is for SwiGLU; None leaves it as it is.
    """
    family = sys.modules[type(module).__module__]
    ours: dict[str, Any] = {
        ATTENTION: lambda queries, keys, values, cache, scale, mask, **rest: attend(
            queries, keys, values, cache, scale, mask
        )
    }
    if gate is not None and hasattr(family, SWIGLU):
        ours[SWIGLU] = gate
    originals = {name: getattr(family, name) for name in ours}
    try:
        for name, function in ours.items():
            setattr(family, name, function)
        yield
    finally:
        for name, function in originals.items():
            setattr(family, name, function)


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer keeps its weights as packed codes."""
    return any(isinstance(module, QUANTIZED_MODULES) for _, module in model.named_modules())


def linear_names(model: nn.Module) -> list[str]:
    """Names, inside a block, of the linear layers that can get adapters, sorted."""
    return sorted(
        {
            name
            for layer in model.layers
            for name, module in layer.named_modules()
            if isinstance(module, LINEAR_MODULES)
        }
    )


def head_linear_name(model: nn.Module) -> str | None:
    """Name of the head's linear layer, which can get an adapter too; None for a head tied to the embedding."""
    return HEAD if isinstance(model.get(HEAD), LINEAR_MODULES) else None


def add_adapters(
    model: nn.Module, *, rank: int, scale: float, dropout: float, layers: int, keys: Sequence[str], dora: bool
) -> None:
    """Turn linear layers of the last ``layers`` blocks (-1: all) into LoRA or DoRA layers, in place.

    The head too, whatever ``layers`` is, where ``keys`` name it.
    """
    linear_to_lora_layers(
        model,
        layers,
        {"rank": rank, "scale": scale, "dropout": dropout, "keys": list(keys)},
        use_dora=dora,
    )


def adapter_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, LoRA or DoRA layer) pairs, in the model's order."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, ADAPTER_MODULES)]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before it got adapters; no weights are copied."""
    adapters = adapter_modules(model)
    model.update_modules(tree_unflatten([(name, module.linear) for name, module in adapters]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(adapters))


def fused_weights(model: nn.Module, dequantize: bool = False) -> dict[str, mx.array]:
    """All weights by their names in the base model, adapters merged in; the model itself is not changed.

    Packed matrices with an adapter are packed again, which loses what is smaller than a gap between two codes;
    with ``dequantize`` no matrix is packed, and nothing is lost.
    """
    fused: dict[str, mx.array] = {}
    covered: set[str] = set()
    for name, module in adapter_modules(model):
        covered.add(name + ".")
        below = named_arrays(module.linear.parameters())
        kind = below["scales"].dtype if "scales" in below else below["weight"].dtype
        for leaf, array in named_arrays(module.fuse(dequantize=dequantize).parameters()).items():
            # DoRA's float32 magnitudes widen it.
            fused[f"{name}.{leaf}"] = array.astype(
                kind if mx.issubdtype(array.dtype, mx.floating) else array.dtype
            )
    if dequantize:
        for name, module in model.named_modules():
            if isinstance(module, QUANTIZED_MODULES) and not any(name.startswith(one) for one in covered):
                covered.add(name + ".")
                fused[f"{name}.weight"] = unpacked(module)
                if "bias" in module:
                    fused[f"{name}.bias"] = module.bias
    for name, array in named_arrays(model.parameters()).items():
        if not any(name.startswith(prefix) for prefix in covered):
            fused[name] = array
    return fused


def unpacked(module: nn.Module) -> mx.array:
    """The matrix of a quantised layer or embedding, in the type of its scales."""
    weight: mx.array = mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    )
    return weight


def write_quantized(
    folder: Path, config: dict[str, Any], out: Path, *, bits: int, group_size: int, trust_remote_code: bool
) -> tuple[list[str], list[str]]:
    """Quantise the model of ``folder`` by mlx-lm's own functions and write weights and config.json into ``out``.

    ``config`` stands in for what the folder's config.json says. Returns the names of the matrices that were packed
    and of those whose width ``group_size`` does not divide; without any of the first nothing is written.
    """
    model = load_weights(folder, config, trust_remote_code, lazy=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its bits per weight; the recipe says more
        model, packed_config = quantize_model(model, config, group_size, bits)
    modules = [(name, module) for name, module in model.named_modules() if "weight" in module]
    packed = [name for name, module in modules if isinstance(module, QUANTIZED_MODULES)]
    left = [name for name, module in modules if isinstance(module, nn.Linear | nn.Embedding)]
    if packed:
        save_model(out, model, donate_model=True)
        save_config(packed_config, out / "config.json")
    return packed, left


def hugging_face_layout(weights: dict[str, mx.array], family: str) -> dict[str, mx.array]:
    """The same weights as Hugging Face lays them out: lfm2's convolutions are [C, 1, K] there, [C, K, 1] in MLX."""
    if family != "lfm2":
        return weights
    return {
        name: mx.swapaxes(array, 1, 2) if name.endswith("conv.conv.weight") else array
        for name, array in weights.items()
    }


def write_gguf(folder: Path, weights: dict[str, mx.array], config: dict[str, Any], file: Path) -> None:
    """What ``mlx_lm.fuse --export-gguf`` writes of a model folder's weights and tokenizer."""
    with contextlib.redirect_stdout(io.StringIO()):
        convert_to_gguf(folder, weights, config, str(file))


def prompt_cache(model: nn.Module) -> list[KVCache | ArraysCache]:
    """An empty cache for one prompt. Raises `UserError` for a family with caches of another kind."""
    caches = make_prompt_cache(model)
    for cache in caches:
        if type(cache) not in (KVCache, ArraysCache):
            raise UserError(
                f"a model with a {type(cache).__name__} (sliding windows) is not supported; "
                f"tested families: {FAMILIES}"
            )
    return list(caches)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
