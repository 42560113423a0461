"""A model's own tokenizer.json is what splits its texts, whatever transformers would rather have."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mlx_sumrl.policy.loading import load_tokenizer, read_tokenizer
from tests.families import FAMILIES, REFERENCE_MODELS, SHARED_MODELS, TEXTS

Folder = Callable[[str], Path]

# Numbers, apostrophes, capitals, blank lines and a decomposed accent: where rules for splitting differ.
TEXT = "Anna: It'S 1234 o'clock at 9:30?!\n\n   #1# We meet at noon, cafe\u0301 你好 2024\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_tokenizer_json(family: str, family_folder: Folder) -> None:
    truth = Tokenizer.from_file(str(family_folder(family) / "tokenizer.json"))
    tokenizer = load_tokenizer(family_folder(family))
    for text in (TEXT, *TEXTS):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == truth.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 0


def test_others_split_a_tiny_models_texts_alike(family_folder: Folder) -> None:
    """mlx_lm and vLLM read a folder through AutoTokenizer, which for qwen2 applies rules of its own."""
    ours = load_tokenizer(family_folder("qwen2"))
    theirs = AutoTokenizer.from_pretrained(family_folder("qwen2"))
    assert not read_tokenizer(family_folder("qwen2"))[1]
    for text in (TEXT, *TEXTS):
        assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_chat_template_is_kept(family: str, family_folder: Folder) -> None:
    tokenizer = load_tokenizer(family_folder(family))
    messages = [{"role": "user", "content": "Are you coming?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nAre you coming?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(text)[0] == 1  # a special token, not letters


@pytest.mark.skipif(not SHARED_MODELS.is_dir(), reason="no ../shared/models beside the checkout")
@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_real_tokenizers_give_the_ids_of_their_file(name: str) -> None:
    # summarizer-5m is a qwen2 with a byte-level tokenizer of its own: transformers 5 splits its texts as Qwen's.
    folder = SHARED_MODELS / name
    truth = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(TEXT) == truth.encode(TEXT).ids
    for case in json.loads((folder / "reference.json").read_text())["cases"]:
        text = truth.decode(case["token_ids"], skip_special_tokens=False)
        if truth.encode(text).ids == case["token_ids"]:  # not every row of ids is what its own text gives
            assert tokenizer.encode(text) == case["token_ids"]
