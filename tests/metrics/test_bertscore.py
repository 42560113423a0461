"""BERTScore against the bert-score package on tiny encoders, by its definition, and what is refused.

The package needs torch, which is in the environment of ``make vllm``; $VLLM_ENV names another one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.bertscore import BertScorer

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("VLLM_ENV", ROOT / ".vllm")) / "bin" / "python"
PACKAGE = """
import json, sys
try:
    from bert_score import BERTScorer
except ImportError as error:
    print("MISSING", error)
    sys.exit()
asked = json.load(sys.stdin)
found = []
for folder, layer, idf in asked["encoders"]:
    scorer = BERTScorer(model_type=folder, num_layers=layer, idf=idf, nthreads=0, device="cpu")
    if idf:
        scorer.compute_idf(asked["references"])
    found.append([part.tolist() for part in scorer.score(asked["texts"], asked["references"], batch_size=16)])
print("FOUND" + json.dumps(found))
"""
KINDS = ("bert", "roberta")


def package(encoders, texts, references) -> np.ndarray:
    """What the package says [E, N, 3] with each of E encoders."""
    if not PYTHON.is_file():
        pytest.skip("there is no environment with torch and bert-score: make vllm")
    asked = {
        "encoders": [[str(one[0]), *one[1:]] for one in encoders],
        "texts": texts,
        "references": references,
    }
    ended = subprocess.run(
        [PYTHON, "-c", PACKAGE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    assert ended.returncode == 0, ended.stderr
    if ended.stdout.startswith("MISSING"):
        pytest.skip(f"{PYTHON} has no bert-score ({ended.stdout.strip()}): make vllm")
    return np.array(json.loads(ended.stdout.partition("FOUND")[2])).transpose(0, 2, 1)


@pytest.mark.slow
def test_equals_the_package(encoder, dialogues):
    texts = [row["dialogue"][:length] for row, length in zip(dialogues, range(5, 205, 10), strict=True)]
    references = [row["summary"] for row in dialogues]
    texts += [references[0], "  Hello  there "]
    references += [references[0], "hello there"]
    assert max(map(len, references)) > 150  # longer than the encoder reads
    encoders = [
        (encoder(kind), layer, idf) for kind in KINDS for layer, idf in ((3, False), (1, False), (2, True))
    ]
    expected = package(encoders, texts, references)
    for (folder, layer, idf), theirs_N3 in zip(encoders, expected, strict=True):
        scorer = BertScorer(folder, layer, idf=idf, batch_size=8)
        found_N3 = scorer.score(texts, references)
        assert found_N3.shape == (len(texts), 3)
        assert np.abs(found_N3 - theirs_N3).max() < 1e-4
        assert scorer.cut > 0
        assert found_N3[-2] == pytest.approx(1.0, abs=1e-5)
        assert np.ptp(found_N3[:-2]) > 0.05  # there is something to be right about


def test_layer_0_by_the_definition(encoder):
    """Layer 0 is a table that can be looked up by hand; numpy does the rest."""
    folder = encoder("bert")
    weights = load_file(str(folder / "model.safetensors"))
    scorer = BertScorer(folder, 0)

    def vectors(text: str) -> np.ndarray:
        ids = scorer._tokenizer.encode(text)
        sums = weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        sums += weights["embeddings.position_embeddings.weight"][: len(ids)]
        sums += weights["embeddings.token_type_embeddings.weight"][0]
        sums = (sums - sums.mean(axis=1, keepdims=True)) / sums.std(axis=1, keepdims=True)
        sums = sums * weights["embeddings.LayerNorm.weight"] + weights["embeddings.LayerNorm.bias"]
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    similar = vectors("what is it") @ vectors("it is the one").T
    precision, recall = similar[1:-1].max(axis=1).mean(), similar[:, 1:-1].max(axis=0).mean()
    f1 = 2 * precision * recall / (precision + recall)
    assert scorer.score(["what is it"], ["it is the one"])[0] == pytest.approx(
        [precision, recall, f1], abs=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_changes_nothing_and_an_empty_text_has_nothing(encoder, dialogues, kind):
    texts = [row["dialogue"][:60] for row in dialogues[:5]] + ["", "words", " "]
    references = [row["summary"] for row in dialogues[:5]] + ["words", "", ""]
    together = BertScorer(encoder(kind)).score(texts, references)
    alone = [
        BertScorer(encoder(kind), batch_size=1).score([t], [r])[0]
        for t, r in zip(texts, references, strict=True)
    ]
    assert together == pytest.approx(np.array(alone), abs=1e-5)
    assert not together[-3:].any()
    assert BertScorer(encoder(kind)).score([], []).shape == (0, 3)
    with pytest.raises(ValueError, match="got 1 texts and 0 references"):
        BertScorer(encoder(kind)).score(["a"], [])


def test_names_of_weights_and_of_folders(encoder, tmp_path):
    """With a head's prefix and with TensorFlow's names of norms, as older files have them; and the layer by name."""
    plain = encoder("bert")
    renamed = tmp_path / "bert-base-uncased"
    shutil.copytree(plain, renamed)
    weights = load_file(str(renamed / "model.safetensors"))
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in weights.items()
    }
    save_file(old | {"cls.predictions.bias": np.zeros(300, np.float32)}, str(renamed / "model.safetensors"))
    texts, references = ["what is it", "the one"], ["it is the one", "what"]
    assert np.array_equal(
        BertScorer(plain).score(texts, references), BertScorer(renamed).score(texts, references)
    )
    assert BertScorer(plain).layer == 3  # the last
    config = json.loads((plain / "config.json").read_text())
    (renamed / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12}))
    with pytest.raises(UserError, match=r"have no encoder.layer.3.*whole bert encoder of 9 layers"):
        BertScorer(renamed)


def test_what_is_no_encoder_is_refused(encoder, shared, tmp_path):
    with pytest.raises(UserError, match=r"nowhere holds no config.json"):
        BertScorer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a model of type 'llama'; BERTScore takes an encoder of type bert"):
        BertScorer(shared / "models" / "stories260K")
    with pytest.raises(UserError, match=r"has no layer 4: give one from 0 to 3"):
        BertScorer(encoder("bert"), 4)

    def changed(name: str, **options) -> Path:
        folder = tmp_path / name
        shutil.copytree(encoder("roberta"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | options))
        return folder

    with pytest.raises(UserError, match=r"has relative_key positions"):
        BertScorer(changed("relative", position_embedding_type="relative_key"))
    with pytest.raises(UserError, match=r"does not say what an encoder is made of"):
        BertScorer(changed("odd", num_attention_heads="four"))
    folder = changed("pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no .safetensors file"):
        BertScorer(folder)
    (folder / "model.safetensors").write_bytes(b"\x10" + bytes(20))
    with pytest.raises(UserError, match=r"is no whole safetensors file"):
        BertScorer(folder)
    folder = changed("mute")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"mute holds no tokenizer \(tokenizer.json"):
        BertScorer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"the tokenizer in .* cannot be loaded"):
        BertScorer(folder)
