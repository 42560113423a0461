"""A policy from a local folder or a hub id: config reconciled, adapters added, everything checked before training."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from pydantic import ValidationError

from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.host_memory import keep_freed_memory
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.blocks import check_blocks
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.reconcile import context_length, reconciled_config, weight_names

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
HUB_FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"]


def load_policy(
    options: PolicyConfig | str, *, adapter: str | None = None, seed: int = 0, trained: bool = True
) -> Policy:
    """A policy ready to train and to sample from.

    Not ``trained``, one that only samples and scores: nothing in it is trainable, and no new adapters are put beside
    its layers, which add nothing and take a third of the time (``adapter`` still is).

    ``options`` is a `PolicyConfig`, or just a folder or hub id for the defaults; ``adapter`` stands in for
    ``options.adapter``; ``seed`` draws the adapters' first weights. Raises `UserError` for a model that is not
    there, not whole, not supported, or that an adapter does not fit.
    """
    if isinstance(options, str):
        options = PolicyConfig(model=options)
    if adapter is not None:
        options = options.model_copy(update={"adapter": adapter})
    if options.model is None:
        raise UserError("policy.model is missing: name a model folder or a hub id")
    folder = model_folder(options.model)
    keep_freed_memory()
    config, reconciled = checked_config(folder, options.model)
    model = mlx_internals.load_weights(folder, config, options.trust_remote_code)
    dtype = getattr(mx, options.dtype)
    model.update(
        tree_map(lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters())
    )
    mlx_internals.check_split(model, options.model)
    check_blocks(model, options.model)
    tokenizer, splits_otherwise = read_tokenizer(folder, options.trust_remote_code)
    stop_ids = _stop_ids(config, tokenizer, options.model)
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        config=config,
        folder=folder,
        options=options,
        stop_ids=stop_ids,
        stop_id=tokenizer.eos_token_id if tokenizer.eos_token_id in stop_ids else min(stop_ids),
        context=context_length(config),
        reconciled=reconciled,
        splits_otherwise=splits_otherwise,
        source=options.model,
    )
    if trained or options.adapter is not None:
        _make_trainable(policy, seed)
    if not trained:
        model.freeze()
    return policy


def checked_config(folder: Path, source: str) -> tuple[dict[str, Any], bool]:
    """A folder's config as mlx-lm has to read it, and whether that is not how it is written. Raises `UserError`."""
    names = weight_names(folder)
    if not names:
        raise UserError(
            f"{folder} has no model*.safetensors: point policy.model at a folder with weights "
            "(pickled weights are not loaded; convert them with mlx_lm.convert)"
        )
    raw = _read_config(folder)
    config = reconciled_config(raw, names, source)
    return config, config != raw


def model_folder(name: str) -> Path:
    """The local folder of a model: ``name`` itself, or a hub id downloaded. Raises `UserError`."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} has no config.json: it is not a model folder")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 or path.parent.is_dir():
        raise UserError(f"there is no model folder {name}; check policy.model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises many kinds, all of which mean: not to be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"policy.model {name!r} is neither a local folder nor to be had from the hub ({reason}); "
            "download it where there is a network and give its folder"
        ) from error


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The Hugging Face tokenizer of a model folder, exactly as its tokenizer.json has it. Raises `UserError`."""
    return read_tokenizer(folder, trust_remote_code)[0]


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> tuple[Any, bool]:
    """As `load_tokenizer`, and whether AutoTokenizer, and with it mlx_lm and vLLM, would split texts otherwise."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        # transformers 5 then makes an empty tokenizer for some families and says nothing
        raise UserError(
            f"{folder} has no tokenizer ({', '.join(VOCABULARY_FILES)}): copy it from the base model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        rebuilt = _rebuilt(tokenizer, folder / "tokenizer.json")
        if rebuilt:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} has no tokenizer that can be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder} has only a slow tokenizer; it needs a tokenizer.json")
    return tokenizer, rebuilt


def _rebuilt(tokenizer: Any, file: Path) -> bool:
    """Whether transformers split texts by rules of its own in place of those in tokenizer.json.

    For model_type qwen2 (among others) it takes only the vocabulary from the file and builds the rest as Qwen's
    own tokenizer has it: a model trained with another one then gets half of its prompts in other tokens.
    """
    if not tokenizer.is_fast or not file.is_file():
        return False
    ours, theirs = (
        json.loads(file.read_text(encoding="utf-8")),
        json.loads(tokenizer.backend_tokenizer.to_str()),
    )
    return any(ours.get(part) != theirs.get(part) for part in ("normalizer", "pre_tokenizer"))


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for file in ("config.json", "generation_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        content = _read_object(path)
        if file == "config.json":
            config = content
        elif content.get("eos_token_id") is not None:
            config["eos_token_id"] = content["eos_token_id"]
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} where a JSON object belongs")
    return content


def _stop_ids(config: dict[str, Any], tokenizer: Any, source: str) -> frozenset[int]:
    listed = config.get("eos_token_id")
    ids = {listed} if isinstance(listed, int) else set(listed or [])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise UserError(f"{source} names no stop token (eos_token_id): without one no completion ever ends")
    return frozenset(ids)


def _make_trainable(policy: Policy, seed: int) -> None:
    """Full: everything is trained. LoRA, DoRA: only adapters, new or loaded.

    Raises `UserError` for options that do not fit the model or each other.
    """
    options, model = policy.options, policy.model
    if options.tuning == "full":
        if options.adapter is not None:
            raise UserError(
                "policy.adapter and policy.tuning full do not go together: fuse the adapter first "
                "(mlx_lm.fuse), or train with lora or dora"
            )
        if mlx_internals.is_quantized(model):
            raise UserError(
                f"policy.tuning full cannot train {policy.source}: its weights are quantised, and packed codes have "
                "no gradient; set policy.tuning lora (or dora), or give policy.model the model it was made from"
            )
        model.unfreeze()
        return
    saved = _read_adapter_config(Path(options.adapter)) if options.adapter else None
    lora = saved[1] if saved else options.lora
    dora = (saved[0] if saved else options.tuning) == "dora"
    keys = _check_keys(policy, lora)
    model.freeze()
    mx.random.seed(seed)
    mlx_internals.add_adapters(
        model,
        rank=lora.rank,
        scale=lora.scale,
        dropout=lora.dropout,
        layers=lora.layers,
        keys=keys,
        dora=dora,
    )
    policy.options = options.model_copy(
        update={"lora": lora.model_copy(update={"keys": keys}), "tuning": "dora" if dora else "lora"}
    )
    if not policy.weights():
        raise UserError(f"policy.lora.layers {lora.layers} leaves nothing to train; -1 means all")
    if options.adapter:
        _load_adapter_weights(policy, Path(options.adapter))


def _check_keys(policy: Policy, lora: LoraConfig) -> tuple[str, ...]:
    known = mlx_internals.linear_names(policy.model)
    if lora.keys is None:
        return tuple(known)
    if head := mlx_internals.head_linear_name(policy.model):
        known.append(head)
    for key in lora.keys:
        if key not in known:
            close = [name for name in known if name.endswith(f".{key}")]
            close += difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(
                f"policy.lora.keys: {key!r} matches no linear layer of {policy.source}{meant}; "
                f"its layers are {', '.join(known)}"
            )
    if not lora.keys:
        raise UserError("policy.lora.keys is empty: nothing would be trained; null means all linear layers")
    return lora.keys


def _read_adapter_config(folder: Path) -> tuple[str, LoraConfig]:
    """(lora or dora, its shape) of an mlx_lm adapter folder."""
    path = folder / "adapter_config.json"
    if not path.is_file() or not (folder / "adapters.safetensors").is_file():
        raise UserError(
            f"{folder} is not an mlx_lm adapter folder (adapter_config.json, adapters.safetensors)"
        )
    content = _read_object(path)
    kind = content.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UserError(f"{path}: fine_tune_type {kind!r} is not lora or dora")
    try:
        parameters = content["lora_parameters"]
        rank = parameters["rank"]
        lora = LoraConfig(
            rank=rank,
            alpha=parameters["scale"] * rank,
            dropout=parameters.get("dropout", 0.0),
            layers=content.get("num_layers", -1),
            keys=parameters.get("keys"),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            reason = "; ".join(f"{entry['loc'][0]}: {entry['msg']}" for entry in error.errors())
        else:
            reason = str(error)
        raise UserError(
            f"{path} lacks what an adapter needs (lora_parameters with rank and scale): {reason}"
        ) from error
    return kind, lora


def _load_adapter_weights(policy: Policy, folder: Path) -> None:
    file = folder / "adapters.safetensors"
    try:
        weights = mx.load(str(file))
    except RuntimeError as error:
        raise UserError(
            f"{file} is not a whole safetensors file ({error}); copy or export it again"
        ) from error
    assert isinstance(weights, dict)
    try:
        policy.set_weights(weights)
    except ValueError as error:
        raise UserError(f"the adapter in {folder} does not fit {policy.source}: {error}") from error
    # With a start of its own, the reference is that start, not the model below it.
    policy.reference = policy.snapshot()
