"""Parameter counts against mlx-lm's own models; the parts of an estimate by hand. Peaks: test_measured_memory."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.nn as nn
import pytest
import yaml
from mlx.utils import tree_flatten

from mlx_sumrl.config import (
    GrpoConfig,
    OptimizerConfig,
    PolicyConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    SftConfig,
    StageConfig,
    StoppingConfig,
)
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
from mlx_sumrl.training.preparation import peak_estimate

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


def half_billion(**changes: Any) -> MemoryEstimate:
    options: dict[str, Any] = {
        "tuning": "full",
        "dtype": "bfloat16",
        "prompt_tokens": 200,
        "completion_tokens": 65,
        "prompts_per_step": 4,
        "group_size": 8,
        "micro_batch_tokens": 712,  # a group: 200 + 8 * 64
        "max_rows": 64,
    }
    return estimate_peak(ModelShape.from_config(QWEN_05B), **{**options, **changes})


class TestParts:
    def test_half_a_billion(self) -> None:
        """`python -m benchmarks.memory --shape qwen2.5-0.5b --reference 4bit --prompts 1 --group-size 2
        --prompt-tokens 8 --new-tokens 4` measured 3.80, 4.35 and 4.24 GB (10^9 bytes)."""
        estimate = half_billion(
            prompt_tokens=8,
            completion_tokens=4,
            prompts_per_step=1,
            group_size=2,
            gradient_checkpointing=True,
            reference="4bit",
            moments="bfloat16",
        )
        assert estimate.rollout / 1e9 == pytest.approx(3.80, rel=0.01)
        assert estimate.gradient / 1e9 == pytest.approx(4.35, rel=0.01)
        assert estimate.step / 1e9 == pytest.approx(4.24, rel=0.01)

    def test_by_hand(self) -> None:
        n = 494_032_768
        estimate = half_billion()
        assert estimate.weights == 2 * n
        assert estimate.moments == 8 * n
        # keys and values x 2 heads x 64 x bfloat16: 24 layers and a copy of one, for 265 tokens of each of 32 rows,
        # and 24 layers for the 4 prompts, in steps of 256
        assert estimate.kv_cache == 2 * 2 * 64 * 2 * (25 * 265 * 32 + 24 * 256 * 4)
        # several micro-batches in a graph are added up in float32, the old sum beside the new one
        assert (estimate.gradients, estimate.kept_gradients) == (8 * n, 4 * n)
        one = half_billion(prompts_per_step=1)
        assert (one.gradients, one.kept_gradients) == (2 * n, 2 * n)
        checkpointed = half_billion(gradient_checkpointing=True)
        assert (checkpointed.gradients, checkpointed.kept_gradients) == (2 * n, 2 * n)
        # What a rollout adds: the head's matrix in float32, unless it is that already.
        assert half_billion(max_rows=1).sampler > 4 * 151_936 * 896
        assert half_billion(max_rows=1, dtype="float32").sampler < 4 * 151_936 * 896
        assert half_billion(max_rows=0).sampler == half_billion(max_rows=0).kv_cache == 0

    def test_the_peak_is_that_of_the_largest_phase(self) -> None:
        parts = {"weights": 1, "moments": 2, "gradients": 3, "activations": 10, "head": 8}
        parts |= {"kept_gradients": 5, "update": 4, "kv_cache": 6, "sampler": 2}
        assert MemoryEstimate(**parts).total == 1 + 2 + 3 + 10
        assert MemoryEstimate(**parts | {"head": 20}).total == 1 + 2 + 20
        assert MemoryEstimate(**parts | {"kv_cache": 30}).total == 1 + 2 + 30 + 2
        assert MemoryEstimate(**parts | {"update": 40}).total == 1 + 2 + 5 + 40

    def test_lora_trains_little_and_needs_no_second_reference(self) -> None:
        lora = half_billion(tuning="lora", reference="4bit")
        assert lora.weights < 1.02 * 2 * 494_032_768
        assert lora.moments < half_billion().moments / 50
        assert lora.weights == half_billion(tuning="lora").weights
        assert half_billion(reference="copy").weights == 2 * half_billion().weights

    @pytest.mark.parametrize(("kind", "bits"), [("4bit", 4.5), ("8bit", 8.5)])
    def test_a_quantised_reference_by_hand(self, kind: str, bits: float) -> None:
        """A scale and a bias of 16 bits for each 64 weights; norms and biases stay as they are."""
        more = half_billion(reference=kind).weights - half_billion().weights
        assert bits <= 8 * more / 494_032_768 < bits + 0.01
        shape = ModelShape.from_config(QWEN_05B)
        plain = 2 * (shape.parameters - shape.matrix_parameters)
        assert more == pytest.approx(shape.matrix_parameters * bits / 8 + plain)

    def test_optimisers_by_hand(self) -> None:
        n, embedding = 494_032_768, 151_936 * 896
        assert half_billion(moments="bfloat16").moments == 4 * n
        assert half_billion(moments="blocks8").moments == pytest.approx(2 * n * (1 + 4 / 128))
        assert half_billion(optimizer="lion").moments == 4 * n
        assert half_billion(optimizer="muon").moments == 4 * n + 4 * embedding
        assert half_billion(optimizer="adafactor").moments < 0.01 * n
        assert half_billion(moments="blocks8", compensated=True).moments == pytest.approx(
            2 * n * (1 + 4 / 128) + 2 * n
        )
        # float32 weights, and so adapters, have no compensation.
        for changes in ({"tuning": "lora"}, {"dtype": "float32"}):
            kept = [half_billion(**changes, compensated=on).moments for on in (False, True)]
            assert kept[0] == kept[1]

    def test_quantised_weights(self) -> None:
        shape = ModelShape.from_config({**QWEN_05B, "quantization": {"bits": 4, "group_size": 64}})
        estimate = estimate_peak(
            shape,
            tuning="lora",
            dtype="bfloat16",
            prompt_tokens=1,
            completion_tokens=1,
            prompts_per_step=1,
            max_rows=1,
        )
        bits_per_weight = 8 * (estimate.weights - 4 * shape.adapter_parameters(8)) / shape.parameters
        assert 4.5 <= bits_per_weight < 4.51  # 4 bits, and 32 bits for each 64 weights
        assert estimate.sampler < 4 * 151_936 * 896  # a quantised head is multiplied with as it is


def option_value(option: str, value: str) -> dict[str, Any]:
    """The option as `estimate_peak` takes it, checked by the config."""
    room, name = option.split(".")
    rooms: dict[str, Any] = {
        "policy": lambda **value: PolicyConfig(model="m", **value),
        "grpo": GrpoConfig,
        "optimizer": OptimizerConfig,
        "sampling": SamplingConfig,
    }
    return {name: getattr(rooms[room](**{name: yaml.safe_load(value)}), name)}


class TestWaysOut:
    def test_every_one_is_an_option_and_makes_it_smaller(self) -> None:
        given: dict[str, Any] = {"dtype": "float32", "prompt_tokens": 400, "micro_batch_tokens": 8192}
        given |= {"group_size": 16, "reference": "copy"}
        estimate = half_billion(**given)
        assert {way.split()[0] for way in estimate.ways_out} == {
            "policy.gradient_checkpointing",
            "grpo.micro_batch_tokens",
            "policy.tuning",
            "optimizer.moments",
            "grpo.reference",
            "policy.dtype",
            "sampling.max_rows",
            "sampling.cache_bits",
        }
        for way in estimate.ways_out:
            option, value = way.split()
            parsed = option_value(option, value)
            smaller = half_billion(**given | parsed)
            phases = ("rollout", "gradient", "step")
            assert any(getattr(smaller, phase) < getattr(estimate, phase) for phase in phases), way
            assert smaller.total <= estimate.total, way

    def test_logits_where_they_are_the_most(self) -> None:
        """Tiles hardly depend on the budget; whole rows, which a filter needs, do."""
        given: dict[str, Any] = {"tuning": "lora", "gradient_checkpointing": True, "logits_mb": 2048}
        assert not [way for way in half_billion(**given).ways_out if "logits_mb" in way]
        filtered = half_billion(**given, filtered=True)
        assert "policy.logits_mb 512" in filtered.ways_out
        assert half_billion(**given | {"logits_mb": 512}, filtered=True).gradient < filtered.gradient

    def test_a_row_at_least(self) -> None:
        ways = half_billion(micro_batch_tokens=300).ways_out
        assert "grpo.micro_batch_tokens 265" in ways
        assert not [way for way in half_billion(micro_batch_tokens=265).ways_out if "micro_batch" in way]
        assert "sft.micro_batch_tokens 2048" in half_billion(micro_batch_tokens=4096, group_size=1).ways_out

    def test_references_become_smaller(self) -> None:
        kept = [half_billion(reference=kind) for kind in ("4bit", "8bit", "copy")]
        assert [one.total for one in kept] == sorted({one.total for one in kept})
        for one, next_smaller in zip(kept, (None, "4bit", "8bit"), strict=True):
            named = [way for way in one.ways_out if "reference" in way]
            assert named == ([f"grpo.reference {next_smaller}"] if next_smaller else [])
        assert not [way for way in half_billion().ways_out if "reference" in way]


class TestSentence:
    ESTIMATE = MemoryEstimate(6 * GIB, 0, 0, 0, 0, 0, 0, 0, 0, ways_out=("policy.tuning lora",))

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


class TestOfARun:
    """`preparation.peak_estimate`: the largest step of all phases, each with its own options."""

    STAGE = StageConfig(name="s", steps=1, rewards=(RewardConfig(kind="length"),))
    SUPERVISED = SftConfig(batch_size=64, micro_batch_tokens=64 * 700)

    def peak(self, **phases: Any) -> MemoryEstimate:
        config = RunConfig(policy=PolicyConfig(model="m"), **phases)
        return peak_estimate(config, config.policy, ModelShape.from_config(QWEN_05B))

    def test_the_larger_phase_counts(self) -> None:
        rewarded, supervised = self.peak(stages=(self.STAGE,)), self.peak(sft=self.SUPERVISED)
        assert supervised.total > rewarded.total
        assert self.peak(stages=(self.STAGE,), sft=self.SUPERVISED) == supervised
        assert supervised.kv_cache == supervised.sampler == 0
        assert supervised.ways_out[1].startswith("sft.micro_batch_tokens")

    def test_when_to_stop_is_learned_in_micro_batches_of_the_stages_or_its_own(self) -> None:
        of_both, own = StoppingConfig(), StoppingConfig(micro_batch_tokens=9000)
        fewer = self.peak(stopping=of_both, grpo=GrpoConfig(micro_batch_tokens=1300))
        more = self.peak(stopping=of_both, grpo=GrpoConfig(micro_batch_tokens=9000))
        assert fewer.total < more.total == self.peak(stopping=own).total
        assert "grpo.micro_batch_tokens 4500" in more.ways_out
        assert "stopping.micro_batch_tokens 4500" in self.peak(stopping=own).ways_out

    def test_options_of_the_sampler_count(self) -> None:
        plain = self.peak(stages=(self.STAGE,), sampling=SamplingConfig(max_rows=64))
        fewer = self.peak(stages=(self.STAGE,), sampling=SamplingConfig(max_rows=8))
        packed = self.peak(stages=(self.STAGE,), sampling=SamplingConfig(cache_bits=8))
        assert max(fewer.kv_cache, packed.kv_cache) < plain.kv_cache
