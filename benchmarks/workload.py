"""The work that is measured: a random Qwen2 made on the spot, prompts as token ids, and a reward.

Never imports mlx by itself, so that a worker can choose what is imported first.
"""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_sumrl.config import TinyModelConfig
from mlx_sumrl.data.example import Example

REWARD = "benchmarks.workload:checksum"


@dataclass(frozen=True)
class Model:
    """A Qwen2 of about 4 million parameters (hidden 256, 4 layers, vocabulary 4,096)."""

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    context: int = 2048

    @property
    def block_parameters(self) -> int:
        """Weights of all blocks that are multiplied with, biases and norms left out."""
        kv = self.hidden // self.heads * self.kv_heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * kv + 9 * self.hidden**2)

    @property
    def parameters(self) -> int:
        """The same with the embedding, which is the head too."""
        return self.block_parameters + self.vocabulary * self.hidden


def make_model(folder: Path, model: Model, seed: int = 0) -> Path:
    """Write the model with its tokenizer, float32; the same seed gives the same files."""
    import mlx.core as mx

    from mlx_sumrl.policy import mlx_internals
    from mlx_sumrl.policy.tiny import qwen2_config, train_tokenizer

    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        "".join(draw.choices(letters, k=draw.randint(4, 9))) for _ in range(max(400, 2 * model.vocabulary))
    ]
    tokenizer = train_tokenizer([" ".join(words)], model.vocabulary)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    options = TinyModelConfig(
        vocabulary=model.vocabulary,
        hidden_size=model.hidden,
        layers=model.layers,
        heads=model.heads,
        context=model.context,
    )
    config = qwen2_config(options, model.vocabulary, tokenizer.eos_token_id)
    config["num_key_value_heads"] = model.kv_heads
    mx.random.seed(seed)
    weights = mlx_internals.named_arrays(mlx_internals.new_model(config).parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def prompts(count: int, tokens: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Random ids without the special ones; the same for whoever asks."""
    draw = random.Random(f"{seed} {tokens} {vocabulary}")
    return [[draw.randrange(3, vocabulary) for _ in range(tokens)] for _ in range(count)]


def examples(ids: list[list[int]]) -> list[Example]:
    """The prompts as examples of this library; the text counts for nothing here."""
    return [
        Example(
            id=str(place), prompt_ids=tuple(row), prompt="", document="", reference="", fields={"answer": ""}
        )
        for place, row in enumerate(ids)
    ]


def checksum(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward in [0, 1) that costs nothing and differs within every group."""
    return [zlib.crc32(text.encode()) % 1000 / 1000 for text in completions]
