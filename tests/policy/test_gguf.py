"""GGUF files, read back by llama.cpp's own reader, split by its rules, and run by llama.cpp where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.export import export_model
from mlx_sumrl.policy.gguf import check_gguf, export_gguf
from mlx_sumrl.policy.loading import load_policy
from tests.families import SHARED_MODELS, randomize_adapters

STORIES = SHARED_MODELS / "stories260K"
pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="no ../shared/models beside the checkout")
HEADS = {"attn_q": 8, "attn_k": 4}
TEXTS = (
    "Once upon a time, there was a little girl named Lily",
    "Tom and Sue went to the shop. They bought 12 apples!",
    "Zoë, naïve?  Two spaces\nand a line: 你好",
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with an adapter fused in, as a run exports it."""
    policy = load_policy(PolicyConfig(model=str(STORIES), dtype="float32"))
    weights = {name: array * 1 for name, array in policy.weights().items()}
    randomize_adapters(policy)
    policy.set_weights(
        {n: 0.01 * a if n.endswith("lora_b") else weights[n] for n, a in policy.weights().items()}
    )
    return export_model(policy, tmp_path_factory.mktemp("gguf") / "model")


@pytest.fixture(scope="module")
def reader(model: Path) -> Any:
    return GGUFReader(export_gguf(model, model.parent / "gguf") / "model-f16.gguf")


def field(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as llama.cpp rotates them: pairs (0, 1), (2, 3) where Hugging Face has (0, d/2), ..."""
    per_head = weight.shape[0] // heads
    rows = [
        head * per_head + pair + half * per_head // 2
        for head in range(heads)
        for pair in range(per_head // 2)
        for half in (0, 1)
    ]
    return weight[rows]


def test_every_tensor_is_the_model_s(model: Path, reader: Any) -> None:
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    written = {tensor.name: tensor for tensor in reader.tensors}
    for name, array in load_file(model / "model.safetensors").items():
        parts = name.split(".")
        if parts[1] == "layers":
            own = names[".".join(parts[3:-1])]
            theirs = f"blk.{parts[2]}.{own}.weight"
            if own in HEADS:
                array = interleaved(array, HEADS[own])
        else:
            theirs = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[parts[1]]
        tensor = written.pop(theirs)
        kind = "F32" if "norm" in theirs else "F16"
        assert tensor.tensor_type.name == kind
        expected = array.astype(np.float32 if kind == "F32" else np.float16)
        np.testing.assert_array_equal(tensor.data.reshape(expected.shape), expected, err_msg=name)
    assert not written


def test_the_metadata_is_the_config_s(reader: Any) -> None:
    config = json.loads((STORIES / "config.json").read_text())
    for name, key in (
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("rope.freq_base", "rope_theta"),
        ("rope.dimension_count", "head_dim"),
    ):
        assert field(reader, f"llama.{name}") == config[key], name
    assert field(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert field(reader, "general.architecture") == "llama"
    vocabulary = json.loads((STORIES / "tokenizer.json").read_text())["model"]["vocab"]
    assert field(reader, "tokenizer.ggml.tokens") == sorted(vocabulary, key=vocabulary.get)
    # llama.cpp reads types as signed numbers and refuses others: unknown, control, byte, normal.
    types = reader.fields["tokenizer.ggml.token_type"]
    assert types.types[-1].name == "INT32"
    assert types.contents()[:4] == [2, 3, 3, 6]
    assert types.contents()[-1] == 1
    assert (field(reader, "tokenizer.ggml.bos_token_id"), field(reader, "tokenizer.ggml.eos_token_id")) == (
        1,
        2,
    )


def sentencepiece(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """llama.cpp's tokenizer for `llama` vocabularies (llm_tokenizer_spm): the best pair is merged, the left one of
    equals, until none is in the vocabulary; what is left over falls back on bytes."""
    ids = {token: number for number, token in enumerate(tokens)}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [1] + [
        number
        for part in parts
        for number in ([ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_split_as_in_training(text: str, reader: Any) -> None:
    policy_ids = load_policy(str(STORIES)).tokenizer.encode(text)
    tokens, scores = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.scores")
    assert sentencepiece(text, tokens, scores) == policy_ids
    if text is TEXTS[0]:  # what the converter writes by itself would not
        assert sentencepiece(text, tokens, [-1000.0] * len(tokens)) != policy_ids


def test_llama_cpp_writes_what_mlx_does(model: Path, reader: Any) -> None:
    """By llama.cpp itself, in Python's clothes; greedy decoding of float16 weights, where no two tokens are near."""
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp for the real llama.cpp")
    program = (
        "import sys, json, xllamacpp\n"
        "p = xllamacpp.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 512; p.n_parallel = 1; p.warmup = False\n"
        "p.cpuparams.n_threads = 1\n"
        "asked = {'prompt': sys.argv[2], 'max_tokens': 30, 'temperature': 0}\n"
        "answer = xllamacpp.Server(p).handle_completions(asked)\n"
        "print(json.dumps([answer['choices'][0]['text'], answer['usage']['prompt_tokens']]))\n"
    )
    file = model.parent / "gguf" / "model-f16.gguf"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(file), TEXTS[0]], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    from mlx_lm import generate, load

    ours, tokenizer = load(str(model))
    text, tokens = json.loads(ended.stdout.splitlines()[-1])
    assert tokens == len(tokenizer.encode(TEXTS[0]))
    assert text == generate(ours, tokenizer, TEXTS[0], max_tokens=30)


def changed(model: Path, to: Path, config: dict[str, Any] | None = None, **tokenizer: Any) -> Path:
    """A copy of a model folder with another config.json or tokenizer.json."""
    shutil.copytree(model, to)
    for name, changes in (("config.json", config or {}), ("tokenizer.json", tokenizer)):
        content = json.loads((to / name).read_text())
        (to / name).write_text(json.dumps(content | changes))
    return to


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen2"}, "its family is qwen2"),
        ({"model_type": "mixtral"}, "its family is mixtral"),
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantised"),
    ],
)
def test_what_the_converter_would_do_wrongly_is_refused(
    config: dict[str, Any], words: str, model: Path, tmp_path: Path
) -> None:
    folder = changed(model, tmp_path / "other", config)
    with pytest.raises(UserError, match=words) as refused:
        check_gguf(folder, json.loads((folder / "config.json").read_text()))
    assert "convert_hf_to_gguf.py" in str(refused.value)


def test_tokenizers_that_it_cannot_write(
    model: Path, tmp_path: Path, family_folder: Callable[[str], Path]
) -> None:
    config = json.loads((model / "config.json").read_text())
    with pytest.raises(UserError, match="SentencePiece"):
        check_gguf(family_folder("llama"), config)  # splits bytes, as GPT-2 does
    with pytest.raises(UserError, match="no beginning-of-sequence token"):
        check_gguf(changed(model, tmp_path / "bare", post_processor=None), config)
    with pytest.raises(UserError, match="no space before a text"):
        check_gguf(changed(model, tmp_path / "tight", normalizer=None), config)


def test_weights_that_float16_cannot_hold(model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = 70_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"up_proj.*70000"):
        export_gguf(folder, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()


def test_a_chat_template_goes_along(model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(CHAT)
    out = export_gguf(folder, tmp_path / "gguf", system="Be brief.")
    assert field(GGUFReader(out / "model-f16.gguf"), "tokenizer.chat_template") == CHAT
    said = (out / "Modelfile").read_text()
    assert "FROM ./model-f16.gguf\n" in said
    assert 'SYSTEM """Be brief."""' in said
    assert 'PARAMETER stop "</s>"' in said
    assert "PARAMETER num_ctx 512" in said
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model-f16.gguf"]
