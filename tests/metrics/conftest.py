"""Tiny encoders with random weights, as a user's folder holds a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

POSITIONS = 48
WIDTH, WIDE, HEADS, LAYERS, WORDS = 32, 64, 4, 3, 300


def _bert_tokenizer(texts: list[str]) -> tuple[Tokenizer, dict[str, str]]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=special))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.decoder = decoders.WordPiece()
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return made, {**dict(zip(names, special, strict=True)), "tokenizer_class": "BertTokenizer"}


def _roberta_tokenizer(texts: list[str]) -> tuple[Tokenizer, dict[str, str | bool]]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    # bert-score asks for the space before the first word in a way that transformers 5 no longer hears: told here.
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    names = {
        "cls_token": "<s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "eos_token": "</s>",
    }
    return made, {
        **names,
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "tokenizer_class": "RobertaTokenizer",
        "add_prefix_space": True,
    }


def make_encoder(folder: Path, kind: str, texts: list[str], prefix: str = "", gamma: str = "weight") -> Path:
    """A BERT or RoBERTa of `LAYERS` layers, its weights as transformers names them, in ``folder``."""
    folder.mkdir(parents=True)
    first = 0 if kind == "bert" else 2
    tokenizer, names = (_bert_tokenizer if kind == "bert" else _roberta_tokenizer)(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "model_max_length": POSITIONS}))
    config = {
        "model_type": kind,
        "architectures": ["BertModel" if kind == "bert" else "RobertaModel"],
        "hidden_size": WIDTH,
        "intermediate_size": WIDE,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "vocab_size": WORDS,
        "max_position_embeddings": POSITIONS + first,
        "type_vocab_size": 2 if kind == "bert" else 1,
        "pad_token_id": first // 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12 if kind == "bert" else 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(3)
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS + first, WIDTH),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], WIDTH),
    }
    norms = ["embeddings"]
    for layer in (f"encoder.layer.{at}" for at in range(LAYERS)):
        parts = {"attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH)}
        parts |= {"attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH)}
        parts |= {"intermediate.dense": (WIDE, WIDTH), "output.dense": (WIDTH, WIDE)}
        for name, shape in parts.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    weights = {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.LayerNorm.{gamma}"] = draw.normal(1, 0.1, WIDTH).astype(np.float32)
        shift = "beta" if gamma == "gamma" else "bias"
        weights[f"{name}.LayerNorm.{shift}"] = draw.normal(0, 0.1, WIDTH).astype(np.float32)
    save_file({prefix + name: value for name, value in weights.items()}, str(folder / "model.safetensors"))
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory, dialogues) -> Callable[[str], Path]:
    """``kind`` -> the folder of a tiny encoder of that kind, made once."""
    made: dict[str, Path] = {}
    texts = [row["dialogue"] for row in dialogues]

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_encoder(tmp_path_factory.mktemp("encoders") / kind, kind, texts)
        return made[kind]

    return of
