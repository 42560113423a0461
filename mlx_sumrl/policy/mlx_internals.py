"""Everything that touches mlx-lm's internals: this module is the only one that does.

mlx-lm renames things between minor versions; what is used of it here is what pyproject.toml pins. Callers see
five things: a model folder loaded, the backbone apart from the head, linear layers turned into adapters, an
empty cache for a prompt, and layers that are recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import ArraysCache, KVCache, make_prompt_cache
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model as mlx_lm_load_model

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.prefix_cache import PrefixCache, PrefixState

ADAPTER_MODULES = (LoRALinear, DoRALinear)
ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
LINEAR_MODULES = (nn.Linear, nn.QuantizedLinear)


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """A tree of parameters as a flat dict, ``model.layers.0.self_attn.q_proj.weight`` -> array."""
    return dict(tree_flatten(tree))  # type: ignore[arg-type]


def load_weights(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> nn.Module:
    """The model of a local folder, with ``config`` in place of what its config.json says."""
    try:
        model, _ = mlx_lm_load_model(folder, model_config=config, trust_remote_code=trust_remote_code)
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
    logits: mx.array = (
        model.lm_head(hidden) if "lm_head" in model else model.model.embed_tokens.as_linear(hidden)
    )
    return logits.astype(mx.float32)


def widened_head(model: nn.Module) -> Callable[[mx.array], mx.array]:
    """`head` as it is now, for many calls: weights that are not float32 are widened once and not at each call."""
    module = model.lm_head if "lm_head" in model else model.model.embed_tokens
    if type(module) not in (nn.Linear, nn.Embedding) or "bias" in module or module.weight.dtype == mx.float32:
        return partial(head, model)
    weight: mx.array = module.weight.astype(mx.float32)
    return lambda hidden: hidden.astype(mx.float32) @ weight.T


def head_weights(model: nn.Module) -> dict[str, Any]:
    """The trainable weights that `head` uses, as a tree for ``model.update``."""
    if "lm_head" in model:
        return {"lm_head": model.lm_head.trainable_parameters()}
    return {"model": {"embed_tokens": model.model.embed_tokens.trainable_parameters()}}


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
            "tested families: qwen2, qwen3, llama, phi3, lfm2"
        ) from error
    if not agrees:
        raise UserError(
            f"{source}: this model family does more after its last norm than a head (scaling or capping of "
            "logits) and is not supported; tested families: qwen2, qwen3, llama, phi3, lfm2"
        )


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


def add_adapters(
    model: nn.Module, *, rank: int, scale: float, dropout: float, layers: int, keys: Sequence[str], dora: bool
) -> None:
    """Turn linear layers of the last ``layers`` blocks (-1: all) into LoRA or DoRA layers, in place."""
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


def fused_weights(model: nn.Module) -> dict[str, mx.array]:
    """All weights by their names in the base model, adapters merged in; the model itself is not changed."""
    fused: dict[str, mx.array] = {}
    covered: set[str] = set()
    for name, module in adapter_modules(model):
        covered.add(name + ".")
        below = named_arrays(module.linear.parameters())
        for leaf, array in named_arrays(module.fuse().parameters()).items():
            fused[f"{name}.{leaf}"] = array.astype(below[leaf].dtype)  # DoRA's float32 magnitudes widen it
    for name, array in named_arrays(model.parameters()).items():
        if not any(name.startswith(prefix) for prefix in covered):
            fused[name] = array
    return fused


def hugging_face_layout(weights: dict[str, mx.array], family: str) -> dict[str, mx.array]:
    """The same weights as Hugging Face lays them out: lfm2's convolutions are [C, 1, K] there, [C, K, 1] in MLX."""
    if family != "lfm2":
        return weights
    return {
        name: mx.swapaxes(array, 1, 2) if name.endswith("conv.conv.weight") else array
        for name, array in weights.items()
    }


def prompt_cache(model: nn.Module) -> list[KVCache | ArraysCache]:
    """An empty cache for one prompt. Raises `UserError` for a family with caches of another kind."""
    caches = make_prompt_cache(model)
    for cache in caches:
        if type(cache) not in (KVCache, ArraysCache):
            raise UserError(
                f"a model with a {type(cache).__name__} (sliding windows) cannot be sampled from here"
            )
    return list(caches)


def run_group(
    model: nn.Module, prompt_1L: mx.array, completions_GT: mx.array, checkpointing: bool
) -> tuple[mx.array, mx.array]:
    """Final hidden states of a prompt [1, L, D] and of completions that follow it [G, T, D], after the last norm.

    Block by block, the prompt first; completions see all of it and their own past.
    """
    inner = model.model
    norm = inner.norm if "norm" in inner else inner.embedding_norm
    prompt, completions = inner.embed_tokens(prompt_1L), inner.embed_tokens(completions_GT)
    G, T = completions_GT.shape
    for layer in model.layers:
        # Masks are causal; "causal" with more keys than queries aligns the last of both, as it has to be here.
        attends = getattr(layer, "is_attention_layer", True)

        def block(
            weights: Any, prompt: mx.array, completions: mx.array, layer: Any = layer, attends: bool = attends
        ) -> Any:
            layer.update(weights)
            kind: type[PrefixCache] | type[PrefixState] = PrefixCache if attends else PrefixState
            recorded: Any = kind()
            prompt = layer(prompt, "causal" if attends else None, cache=recorded)
            if T > 0:
                completions = layer(completions, "causal" if attends else None, cache=kind(recorded, G))
            return prompt, completions

        run = mx.checkpoint(block) if checkpointing else block
        prompt, completions = run(layer.trainable_parameters(), prompt, completions)
    return norm(prompt), norm(completions)


@contextmanager
def checkpointed_layers(model: nn.Module, active: bool) -> Iterator[None]:
    """Inside, each block keeps only its input for the backward pass and computes the rest again.

    The blocks' class is changed for the time being and put back at the end, whatever happens; entering twice
    raises RuntimeError rather than recomputing twice.
    """
    if not active:
        yield
        return
    classes = {type(layer) for layer in model.layers}
    originals: dict[type, Callable[..., Any]] = {}
    for cls in classes:
        original = cls.__call__
        if getattr(original, "recomputes", False):
            raise RuntimeError(f"{cls.__name__} is checkpointed already")
        originals[cls] = original
    try:
        for cls, original in originals.items():
            cls.__call__ = _recomputing(original)  # type: ignore[method-assign]
        yield
    finally:
        for cls, original in originals.items():
            cls.__call__ = original  # type: ignore[method-assign]


def _recomputing(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def forward(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            layer.update(parameters)
            return original(layer, *args, **kwargs)

        return mx.checkpoint(forward)(layer.trainable_parameters(), *args, **kwargs)

    call.recomputes = True  # type: ignore[attr-defined]
    return call


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
