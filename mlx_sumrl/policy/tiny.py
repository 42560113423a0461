"""A tiny random model with its own tokenizer, made on the spot: for the quickstart and for tests.

The architecture is Qwen2's, the tokenizer a byte-level BPE trained on the texts at hand, the chat template ChatML.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_sumrl.config import TinyModelConfig
from mlx_sumrl.policy import mlx_internals

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAD, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def make_tiny_model(folder: Path, options: TinyModelConfig, texts: Iterable[str], seed: int) -> Path:
    """Write a whole model folder (float32) and return it; one that is already there is kept as it is."""
    if (folder / "config.json").is_file():
        return folder
    unfinished = folder.with_name(f".unfinished-{folder.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokenizer = train_tokenizer(texts, options.vocabulary)
    tokenizer.model_max_length = options.context
    tokenizer.save_pretrained(unfinished)
    stop = tokenizer.convert_tokens_to_ids(STOP)
    config = qwen2_config(options, len(tokenizer), stop)
    mx.random.seed(seed)
    weights = mlx_internals.named_arrays(mlx_internals.new_model(config).parameters())
    mx.save_safetensors(str(unfinished / "model.safetensors"), weights, metadata={"format": "pt"})
    (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (unfinished / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}) + "\n")
    os.replace(unfinished, folder)
    return folder


def qwen2_config(options: TinyModelConfig, vocabulary: int, stop_id: int) -> dict[str, Any]:
    """A config.json that mlx-lm, Hugging Face and vLLM read alike."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": options.hidden_size,
        "intermediate_size": 3 * options.hidden_size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": max(options.heads // 2, 1),
        "hidden_act": "silu",
        "max_position_embeddings": options.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
        "eos_token_id": stop_id,
        "torch_dtype": "float32",
    }


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with a chat template; the same texts give the same tokenizer.

    Texts are split as Qwen2's tokenizer splits them: for this model type transformers takes only the vocabulary
    from tokenizer.json and applies Qwen2's own rules, so that others would not see the tokens it was trained on.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, STOP],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=STOP)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
