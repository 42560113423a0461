"""A GGUF file of an exported model folder, for llama.cpp and Ollama: by mlx-lm's converter, and then mended.

What ``mlx_lm.fuse --export-gguf`` of mlx-lm 0.32 writes by itself is of no use there (seen with llama.cpp of autumn
2026): token types are unsigned, which llama.cpp refuses to load; every token has the score -1000, so that texts are
merged from the left and not by rank ("Lily" in other tokens than in training); norms of bfloat16 models become float16.

Invariant: a file that is written holds matrices in float16 and norms in float32, and splits texts as the folder's
tokenizer does; a model for which the converter cannot do that is refused, before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.export import QUANTIZATION, whole_folder
from mlx_sumrl.policy.loading import checked_config, load_tokenizer
from mlx_sumrl.policy.modelfile import modelfile

FAMILIES = ("llama", "mistral")
"""Of the families that ``mlx_lm.fuse`` lets through, those whose weights it names rightly: a mixtral's experts are
stacked in mlx-lm, and it looks for them one by one."""
FILE = "model-f16.gguf"
MODELFILE = "Modelfile"
UNKNOWN = 2
"""The token type of GGUF for what no token stands for."""
NEVER = -1e9
"""Score of a token that no merge makes."""
SPACE = "▁"


def export_gguf(model: str | Path, folder: str | Path, system: str | None = None) -> Path:
    """Write `FILE` and Ollama's `MODELFILE` of an exported model folder into ``folder``, and return it.

    ``system`` is the system prompt that the model was trained with. Raises `UserError` for a model that the
    converter cannot do, see `check_gguf`, and for weights that float16 cannot hold.
    """
    model, folder = Path(model), Path(folder)
    config, _ = checked_config(model, str(model))
    check_gguf(model, config)
    tokenizer = load_tokenizer(model)
    weights: dict[str, mx.array] = {}
    for file in sorted(model.glob("model*.safetensors")):
        weights |= mx.load(str(file))  # type: ignore[arg-type]
    weights = {name: _narrowed(name, array) for name, array in weights.items()}
    with whole_folder(folder) as path:
        mlx_internals.write_gguf(model, weights, config, path / "converted.gguf")
        _mend(
            path / "converted.gguf",
            path / FILE,
            json.loads((model / "tokenizer.json").read_text()),
            tokenizer,
        )
        (path / "converted.gguf").unlink()
        text = modelfile(tokenizer, FILE, system, config.get("max_position_embeddings"))
        (path / MODELFILE).write_text(text, encoding="utf-8")
    return folder


def check_gguf(folder: Path, config: Mapping[str, Any], unpacked: bool = False) -> None:
    """Raises `UserError` for a model that mlx-lm's converter cannot do, or would do wrongly without a word.

    ``folder`` holds the tokenizer; ``unpacked`` says that a quantised model will be written as it was trained.
    """
    refusal = (
        _refused_family(config)
        or _refused_shape(config)
        or (None if unpacked else _refused_packing(config))
        or _refused_tokenizer(folder)
    )
    if refusal:
        raise UserError(
            f"no GGUF file can be written here of {folder.name}: {refusal}; leave export.gguf (--gguf) out and "
            "convert the exported folder by llama.cpp: python convert_hf_to_gguf.py export/model --outtype f16"
        )


def _refused_family(config: Mapping[str, Any]) -> str | None:
    family = config.get("model_type")
    if family in FAMILIES:
        return None
    return f"its family is {family}, and mlx-lm's converter knows {' and '.join(FAMILIES)}"


def _refused_shape(config: Mapping[str, Any]) -> str | None:
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            return (
                f"it has biases ({name}), which mlx-lm's converter leaves in another order than their weights"
            )
    wide = config["hidden_size"] // config["num_attention_heads"]
    if config.get("head_dim") not in (None, wide):
        return f"its head_dim is {config['head_dim']}, and mlx-lm's converter writes {wide}"
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        return f"its rotary scaling is {kind!r}, and mlx-lm's converter writes none or another"
    return None


def _refused_packing(config: Mapping[str, Any]) -> str | None:
    if any(config.get(name) for name in QUANTIZATION):
        return "its weights are quantised (export it with export.dequantize true first)"
    return None


def _refused_tokenizer(folder: Path) -> str | None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return "it has no tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return "its tokenizer is not SentencePiece's (BPE with bytes to fall back on), the only one it writes"
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a")
    if tokenizer.bos_token_id is None or ids[:1] != [tokenizer.bos_token_id]:
        return "its tokenizer puts no beginning-of-sequence token before a text, and llama.cpp would"
    if not tokenizer.convert_ids_to_tokens(ids)[1].startswith(SPACE):
        return "its tokenizer puts no space before a text, and llama.cpp would"
    return None


def _narrowed(name: str, array: mx.array) -> mx.array:
    """Norms in float32, all else in float16. Raises `UserError` for a weight beyond float16."""
    if "norm" in name:
        return array.astype(mx.float32)
    narrow = array.astype(mx.float32).astype(mx.float16)
    if not mx.isfinite(narrow).all().item():
        raise UserError(
            f"{name} holds numbers that float16 cannot ({mx.abs(array).max().item():g}): no GGUF file in float16"
        )
    return narrow


def _mend(written: Path, to: Path, tokenizer_json: Mapping[str, Any], tokenizer: Any) -> None:
    """The converter's file with types and scores of tokens as llama.cpp reads them, and the chat template."""
    loaded: Any = mx.load(str(written), return_metadata=True)
    weights, metadata = loaded
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"].astype(mx.int32).tolist()
    if tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = UNKNOWN
    metadata["tokenizer.ggml.token_type"] = mx.array(types, dtype=mx.int32)
    scores = _scores(tokens, tokenizer_json["model"]["merges"])
    metadata["tokenizer.ggml.scores"] = mx.array(scores, dtype=mx.float32)
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    mx.save_gguf(str(to), weights, metadata)


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """SentencePiece merges the pair whose result has the highest score: minus the rank of its first merge."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else NEVER if len(token) > 1 else 0.0 for token in tokens]
