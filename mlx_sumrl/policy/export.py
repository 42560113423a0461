"""What was trained, as others load it: an mlx_lm adapter, a PEFT adapter, a whole model folder.

Every folder is written under another name and renamed when whole, so a half export is never taken for one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.policy import Policy

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)

QUANTIZATION = ("quantization", "quantization_config")
"""Keys of config.json that say how weights are packed."""


def export_adapter(policy: Policy, folder: str | Path) -> Path:
    """An adapter folder for ``mlx_lm.fuse``, ``mlx_lm.generate --adapter-path`` and ``policy.adapter``.

    Raises `UserError` for a policy without adapters.
    """
    lora = _lora(policy, "an adapter")
    config = {
        "fine_tune_type": policy.options.tuning,
        "model": policy.source,
        "num_layers": lora.layers,
        "lora_parameters": {
            "rank": lora.rank,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": list(lora.keys or ()),
        },
    }
    with whole_folder(Path(folder)) as path:
        mx.save_safetensors(str(path / "adapters.safetensors"), policy.weights())
        _write_json(path / "adapter_config.json", config)
    return Path(folder)


def export_peft(policy: Policy, folder: str | Path) -> Path:
    """The same adapter as PEFT (and vLLM) loads it; LoRA only.

    PEFT multiplies by lora_alpha / r and stores A as [rank, in] and B as [out, rank], the transposes of mlx-lm's.

    An adapter on the head (`lm_head`) is named as the others are. PEFT takes it; vLLM refuses it for families whose
    class does not register a head (qwen2 and qwen3 early in 2026, vllm-project/vllm#33234): give it
    `export_model`'s folder.
    """
    lora = _lora(policy, "a PEFT adapter")
    if policy.options.tuning != "lora":
        raise UserError("a PEFT adapter can be written for lora only; fuse a dora adapter instead")
    weights: dict[str, mx.array] = {}
    blocks: set[int] = set()
    adapters = mlx_internals.adapter_modules(policy.model)
    for name, module in adapters:
        weights[f"base_model.model.{name}.lora_A.weight"] = mx.contiguous(module.lora_a.T)
        weights[f"base_model.model.{name}.lora_B.weight"] = mx.contiguous(module.lora_b.T)
        blocks.update(int(part) for part in name.split(".") if part.isdigit())
    some_blocks = len(blocks) < len(policy.model.layers)
    # PEFT applies layers_to_transform to every module, and a head is in no layer: whole paths then.
    by_path = some_blocks and mlx_internals.HEAD in dict(adapters)
    modules = {name if by_path else name.rsplit(".", 1)[-1] for name, _ in adapters}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": policy.source,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(modules),
        "layers_to_transform": sorted(blocks) if some_blocks and not by_path else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    with whole_folder(Path(folder)) as path:
        mx.save_safetensors(str(path / "adapter_model.safetensors"), weights, metadata={"format": "pt"})
        _write_json(path / "adapter_config.json", config)
    return Path(folder)


def export_model(policy: Policy, folder: str | Path, dequantize: bool = False) -> Path:
    """A whole model folder, adapters merged in, that mlx-lm, vLLM and Hugging Face load.

    A policy on a quantised base is packed again, into as many bits, which loses what is smaller than a gap between
    two codes and which only mlx-lm loads; with ``dequantize`` it is written as it was trained.

    The config is the reconciled one, so mlx-lm reads it as it was trained; tokenizer, chat template and stop
    tokens are the base model's own files.
    """
    weights = mlx_internals.fused_weights(policy.model, dequantize)
    weights = mlx_internals.hugging_face_layout(weights, policy.config["model_type"])
    with whole_folder(Path(folder)) as path:
        mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "pt"})
        write_beside_weights(policy, path, dequantize)
    return Path(folder)


def write_beside_weights(policy: Policy, folder: Path, dequantized: bool = False) -> None:
    """Config, tokenizer, chat template and stop tokens: all that a model folder holds but the weights."""
    config = policy.config | dict.fromkeys(("dtype", "torch_dtype"), policy.options.dtype)
    if dequantized:
        config = {name: value for name, value in config.items() if name not in QUANTIZATION}
    _write_json(folder / "config.json", config)
    copy_tokenizer(policy.folder, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Tokenizer, chat template and stop tokens exactly as they are: a tokenizer that is saved anew may split texts
    by other rules."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _lora(policy: Policy, what: str) -> Any:
    if policy.options.tuning == "full":
        raise UserError(
            f"{what} needs a policy trained with lora or dora; this one is full: export the model"
        )
    return policy.options.lora


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write in that takes its name, and the place of one that was there, only when all went well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f".unfinished-{final.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        old = final.with_name(f".replaced-{final.name}-{os.getpid()}")
        if final.exists():
            os.replace(final, old)
        os.replace(unfinished, final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
