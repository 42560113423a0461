"""Parameter counts against mlx-lm's own models; the peak against what MLX measured."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.memory_estimate import (
    GIB,
    MemoryEstimate,
    describe,
    estimate_peak,
    fits,
    machine_memory,
)
from mlx_sumrl.reporting.model_shape import ModelShape

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
}
LFM2 = {
    **SMALL,
    "norm_eps": 1e-5,
    "conv_L_cache": 3,
    "block_dim": 64,
    "block_ff_dim": 100,
    "block_multiple_of": 16,
    "block_ffn_dim_multiplier": 1.1,
    "layer_types": ["conv", "full_attention", "conv"],
}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", SMALL),
    ("qwen2", {**SMALL, "tie_word_embeddings": False}),
    ("llama", SMALL),
    (
        "llama",
        {**SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": False},
    ),
    ("phi3", SMALL),
    ("qwen3", {**SMALL, "head_dim": 32, "tie_word_embeddings": True}),
    ("lfm2", {**LFM2, "conv_bias": False, "block_auto_adjust_ff_dim": True}),
    ("lfm2", {**LFM2, "conv_bias": True, "block_auto_adjust_ff_dim": False}),
]
QWEN_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def build(family: str, config: dict[str, Any]) -> nn.Module:
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict({"model_type": family, **config}))
    return model


def size_of(model: nn.Module) -> int:
    return sum(array.size for _, array in tree_flatten(model.trainable_parameters()))


class TestParameters:
    @pytest.mark.parametrize(("family", "config"), FAMILIES)
    def test_as_many_as_mlx_lm_builds(self, family: str, config: dict[str, Any]) -> None:
        assert ModelShape.from_config({"model_type": family, **config}).parameters == size_of(
            build(family, config)
        )

    @pytest.mark.parametrize(("family", "config"), FAMILIES)
    def test_adapters_as_many_as_mlx_lm_builds(self, family: str, config: dict[str, Any]) -> None:
        tuner = importlib.import_module("mlx_lm.tuner.utils")
        for dora in (False, True):
            model = build(family, config)
            model.freeze()
            tuner.linear_to_lora_layers(model, 3, {"rank": 4, "scale": 1.0, "dropout": 0.0}, use_dora=dora)
            shape = ModelShape.from_config({"model_type": family, **config})
            assert shape.adapter_parameters(4, dora=dora) == size_of(model)

    def test_published_models(self) -> None:
        """Totals as the models' pages on the hub give them."""
        qwen = ModelShape.from_config(QWEN_05B)
        assert qwen.parameters == 494_032_768
        llama = {**QWEN_05B, "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16}
        llama |= {"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192}
        assert ModelShape.from_config({**llama, "vocab_size": 128256}).parameters == 1_235_814_400

    def test_what_a_config_lacks_is_named(self) -> None:
        with pytest.raises(UserError, match=r"'bert'.* lacks num_hidden_layers, vocab_size"):
            ModelShape.from_config({"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2})


def measured_peak(
    rows: int, prompt: int, completion: int, layers: int, dtype: mx.Dtype
) -> tuple[ModelShape, int]:
    """Peak of one backward pass over completion tokens, weights included, with a plain head."""
    config = {**SMALL, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": layers}
    model = build("qwen2", config)
    model.set_dtype(dtype)
    tokens = mx.random.randint(0, 300, (rows, prompt + completion))

    def loss(weights: dict[str, mx.array]) -> mx.array:
        model.update(tree_unflatten(list(weights.items())))
        hidden = model.model(tokens)[:, prompt - 1 : -1]
        logits = model.model.embed_tokens.as_linear(hidden).astype(mx.float32)
        return nn.losses.cross_entropy(logits, tokens[:, prompt:]).mean()

    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.eval(weights, tokens)
    mx.clear_cache()
    before = mx.get_active_memory() - sum(array.nbytes for array in weights.values())
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss)(weights))
    return ModelShape.from_config({"model_type": "qwen2", **config}), mx.get_peak_memory() - before


class TestEstimate:
    @pytest.mark.parametrize(
        ("rows", "prompt", "completion", "layers", "dtype"),
        [(8, 100, 64, 3, "float32"), (4, 200, 32, 6, "float32"), (8, 100, 64, 3, "bfloat16")],
    )
    def test_near_what_mlx_measures(
        self, rows: int, prompt: int, completion: int, layers: int, dtype: Any
    ) -> None:
        shape, measured = measured_peak(rows, prompt, completion, layers, getattr(mx, dtype))
        estimate = estimate_peak(
            shape,
            tuning="full",
            dtype=dtype,
            prompt_tokens=prompt,
            completion_tokens=completion,
            micro_batch_rows=rows,
            head_tokens=rows * completion,
        )
        backward = estimate.weights + estimate.gradients + estimate.activations + estimate.logits
        assert 0.8 < backward / measured < 1.3

    def half_billion(self, **changes: Any) -> MemoryEstimate:
        options: dict[str, Any] = {
            "tuning": "full",
            "dtype": "bfloat16",
            "prompt_tokens": 200,
            "completion_tokens": 64,
            "micro_batch_rows": 4,
            "sampler_rows": 32,
        }
        return estimate_peak(ModelShape.from_config(QWEN_05B), **{**options, **changes})

    def test_parts_by_hand(self) -> None:
        estimate = self.half_billion()
        assert estimate.weights == 2 * 494_032_768
        assert estimate.moments == 8 * 494_032_768
        assert estimate.gradients == 2 * 494_032_768
        # keys and values x 24 layers x 2 heads x 64 x bfloat16, for 264 tokens of each of 32 rows
        assert estimate.kv_cache == 2 * 24 * 2 * 64 * 2 * 264 * 32
        assert estimate.logits == 2 * 256 * 151936 * 4  # 4 x 64 completion tokens, fewer than a whole chunk
        assert self.half_billion(micro_batches=2).gradients == (2 + 4) * 494_032_768

    def test_the_peak_is_that_of_the_largest_phase(self) -> None:
        parts = {"weights": 1, "moments": 2, "gradients": 3, "activations": 10, "logits": 5, "update": 4}
        assert MemoryEstimate(**parts, kv_cache=6, sampler_logits=7).total == 1 + 2 + 3 + 10 + 5
        assert MemoryEstimate(**parts, kv_cache=30, sampler_logits=7).total == 1 + 2 + 37
        assert MemoryEstimate(**{**parts, "update": 40}, kv_cache=0, sampler_logits=0).total == 1 + 2 + 3 + 40

    def test_lora_trains_little_and_needs_no_second_reference(self) -> None:
        lora = self.half_billion(tuning="lora", reference="4bit")
        assert lora.weights < 1.02 * 2 * 494_032_768
        assert lora.moments < self.half_billion().moments / 50
        assert lora.weights == self.half_billion(tuning="lora").weights
        assert self.half_billion(reference="copy").weights == 2 * self.half_billion().weights

    @pytest.mark.parametrize(("kind", "bits"), [("4bit", 4.5), ("8bit", 8.5)])
    def test_a_quantised_reference_by_hand(self, kind: str, bits: float) -> None:
        """A scale and a bias of 16 bits for each 64 weights; norms and biases stay as they are."""
        more = self.half_billion(reference=kind).weights - self.half_billion().weights
        assert bits <= 8 * more / 494_032_768 < bits + 0.01
        shape = ModelShape.from_config(QWEN_05B)
        plain = 2 * (shape.parameters - shape.matrix_parameters)
        assert more == pytest.approx(shape.matrix_parameters * bits / 8 + plain)

    def test_optimisers_by_hand(self) -> None:
        n, embedding = 494_032_768, 151_936 * 896
        assert self.half_billion(moments="bfloat16").moments == 4 * n
        assert self.half_billion(moments="blocks8").moments == pytest.approx(2 * n * (1 + 4 / 128))
        assert self.half_billion(optimizer="lion").moments == 4 * n
        assert self.half_billion(optimizer="muon").moments == 4 * n + 4 * embedding
        assert self.half_billion(optimizer="adafactor").moments < 0.01 * n
        assert self.half_billion(moments="blocks8", compensated=True).moments == pytest.approx(
            2 * n * (1 + 4 / 128) + 2 * n
        )
        # float32 weights, and so adapters, have no compensation.
        for changes in ({"tuning": "lora"}, {"dtype": "float32"}):
            kept = [self.half_billion(**changes, compensated=on).moments for on in (False, True)]
            assert kept[0] == kept[1]

    def test_quantised_weights(self) -> None:
        shape = ModelShape.from_config({**QWEN_05B, "quantization": {"bits": 4, "group_size": 64}})
        estimate = estimate_peak(
            shape, tuning="lora", dtype="bfloat16", prompt_tokens=1, completion_tokens=1, micro_batch_rows=1
        )
        bits_per_weight = 8 * (estimate.weights - 4 * shape.adapter_parameters(8)) / shape.parameters
        assert 4.5 <= bits_per_weight < 4.51  # 4 bits, and 32 bits for each 64 weights

    def test_every_way_out_makes_it_smaller(self) -> None:
        big = {"micro_batch_rows": 64, "prompt_tokens": 448}
        worst = self.half_billion(**big)
        assert self.half_billion(**big | {"micro_batch_rows": 32}).total < worst.total
        assert self.half_billion(**big, gradient_checkpointing=True).total < worst.total
        assert self.half_billion(**big, tuning="lora").total < worst.total
        assert self.half_billion(**big, moments="blocks8").total < worst.total
        assert worst.total < self.half_billion(**big, dtype="float32").total
        kept = [self.half_billion(**big, reference=kind) for kind in ("4bit", "8bit", "copy")]
        assert [one.total for one in kept] == sorted({one.total for one in kept})
        for one, next_smaller in zip(kept, (None, "4bit", "8bit"), strict=True):
            named = [way for way in one.ways_out if "reference" in way]
            assert named == ([f"grpo.reference {next_smaller}"] if next_smaller else [])
        assert not [way for way in worst.ways_out if "reference" in way]


class TestSentence:
    ESTIMATE = MemoryEstimate(6 * GIB, 0, 0, 0, 0, 0, 0, 0, ways_out=("policy.tuning lora",))

    def test_it_fits(self) -> None:
        assert describe(self.ESTIMATE, 16 * GIB) == "estimated peak 6.0 GB of 16.0 GB"
        assert fits(self.ESTIMATE, 8 * GIB)

    def test_it_does_not(self) -> None:
        sentence = describe(self.ESTIMATE, 16 * GIB, working_set=5 * GIB)
        assert sentence == (
            "estimated peak 6.0 GB of 16.0 GB, more than the 5.0 GB that can be used: try policy.tuning lora"
        )
        assert not fits(self.ESTIMATE, 7 * GIB)

    def test_the_machine_has_memory(self) -> None:
        assert machine_memory() > GIB
