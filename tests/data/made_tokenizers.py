"""Tokenizers made on the spot, for what a test needs where no files are at hand."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def byte_tokenizer(*added: AddedToken, chat_template: str | None = None) -> Any:
    """One token per byte, a few merges, and `added`: what a test needs where nothing is shared."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = ["the cat sat on the mat", "we summarize the text", "the end"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    core.add_tokens(list(added))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = chat_template
    return tokenizer


def control(name: str, **options: bool) -> AddedToken:
    """A control token."""
    return AddedToken(name, normalized=False, **{"special": True, **options})


def metaspace_tokenizer() -> Any:
    """Like sentencepiece: spaces as U+2581, one more in front, bytes for rare characters."""
    letters = {c: i for i, c in enumerate("\u2581abcdefghijklmnopqrstuvwxyz.<>/")}
    byte_ids = {f"<0x{b:02X}>": len(letters) + b for b in range(256)}
    core = Tokenizer(models.BPE(vocab={**letters, **byte_ids}, merges=[], byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_tokens([control("<s>"), control("</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=core)
