"""The shipped YAML files, read as the recipes read them: options, stages and their gates, memory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from mlx_sumrl.config import RunConfig, SmallLaptopConfig, StageConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import load_examples
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.options.command_line import Command
from mlx_sumrl.options.command_line import parse as parse_options
from mlx_sumrl.policy.tiny import train_tokenizer
from mlx_sumrl.reporting.memory_estimate import GIB, USABLE_SHARE
from mlx_sumrl.reporting.model_shape import ModelShape
from mlx_sumrl.rewards.scoring import build_rewards
from mlx_sumrl.rollouts.types import Completion, Group
from mlx_sumrl.training import preparation
from mlx_sumrl.training.peak_rate import peak_rate
from recipes import grpo, small_laptop

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


def recipe_of(file: Path) -> str:
    """The recipe that a file is for: the one that its comments name first."""
    named = re.search(r"^#.*python -m recipes\.(\w+) --config", file.read_text(), re.MULTILINE)
    return named.group(1) if named else "grpo_staged"


CONFIGS = [file for file in FILES if recipe_of(file).startswith("grpo")]
LAPTOPS = [file for file in FILES if recipe_of(file) == "small_laptop"]
RECIPES = ("grpo_staged", "grpo_joint")
ATTENTION = (2, 5, 8, 10, 12, 14)
PUBLISHED: dict[str, dict[str, Any]] = {
    "tldr_qwen": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    "tldr_lfm2": {
        "model_type": "lfm2",
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
        "block_ff_dim": 6656,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "conv_L_cache": 3,
        "conv_bias": False,
        "layer_types": ["full_attention" if layer in ATTENTION else "conv" for layer in range(16)],
        "max_position_embeddings": 32768,
    },
}
"""config.json of Qwen2.5-0.5B and LFM2-350M, as far as sizes go."""
PARAMETERS = {"tldr_qwen": 494_032_768, "tldr_lfm2": 354_483_968}
"""Totals as the models' pages on the hub give them."""
FULL = ("--policy.tuning", "full", "--optimizer.learning_rate", "2e-6")

Parse = Callable[..., RunConfig]


class _ParsedError(Exception):
    """Thrown in place of training."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """What `recipes.grpo` makes of a command line, by its own parser."""
    commands: list[Command[RunConfig]] = []

    def opened(command: Command[RunConfig], config_type: type[RunConfig]) -> NoReturn:
        commands.append(command)
        raise _ParsedError

    monkeypatch.setattr(grpo, "opened", opened)

    def parse(*argv: str, recipe: str = "grpo_staged") -> RunConfig:
        with pytest.raises(_ParsedError):
            grpo.main(recipe, "", argv, staged=recipe == "grpo_staged")
        config = commands.pop().run
        assert isinstance(config, RunConfig)
        return config

    return parse


def path_of(name: str) -> str:
    return str(ROOT / "recipes" / "configs" / f"{name}.yaml")


@pytest.fixture
def rewards_there(file: Path, request: pytest.FixtureRequest) -> None:
    """WordNet, for a file whose own stages pay for METEOR."""
    if "meteor" in file.read_text():
        request.getfixturevalue("wordnet")


@pytest.mark.usefixtures("rewards_there")
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
class TestEveryConfig:
    def test_it_is_a_run_with_its_own_name(self, file: Path, parse: Parse) -> None:
        config = parse("--config", str(file))
        assert config.name == file.stem
        assert config.stages
        assert config.length.target + config.length.tolerance < config.sampling.max_tokens
        if config.policy.tiny is not None:
            assert config.data.max_prompt_tokens + config.sampling.max_tokens <= config.policy.tiny.context

    def test_commands_in_its_comments_work(self, file: Path, parse: Parse) -> None:
        comments = "\n".join(re.findall(r"^# ?(.*)$", file.read_text(), re.MULTILINE))
        commands = re.findall(r"python -m recipes\.(\S+) (.*)", comments.replace("\\\n", " "))
        names = []
        for recipe, options in commands:
            argv = [str(ROOT / word) if word.endswith(".yaml") else word for word in shlex.split(options)]
            names.append(parse(*argv, recipe=recipe).name)
        assert len(set(names)) == len(names), "two commands would write to one folder"

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_no_stage_forgets_the_length(self, file: Path, recipe: str, parse: Parse) -> None:
        """Each pays for the length itself, and quality behind a gate, or beside a constraint that keeps the length, or
        only for decisions that the length is not made of, or before the length is taught and a stage that keeps it."""
        config = parse("--config", str(file), recipe=recipe)
        for stage in config.stages:
            taught = (
                stage is not config.stages[-1]
                and config.stopping in config.phases[config.phases.index(stage) :]
            )
            rewards = {reward.label: reward for reward in stage.rewards}
            assert rewards["length"].weight > 0
            assert rewards["length"].gate is None
            quality = [reward for reward in stage.rewards if reward.kind in ("meteor", "rougeL")]
            assert quality
            for reward in quality:
                gated = reward.gate is not None and reward.gate.reward == "within"
                kept = stage.constraint is not None and stage.constraint.reward == "within"
                apart = (rewards["length"].credit, reward.credit) == ("stop", "content")
                assert gated or kept or apart or taught or reward.weight == 0
        assert all(reward.weight > 0 for reward in quality), "in the last stage"


class TestQuickstart:
    """Its own stages: the length, then quality behind a gate."""

    def test_quality_is_paid_only_within_the_length(self, parse: Parse) -> None:
        config = parse("--config", path_of("quickstart"))
        last = config.stages[-1]
        rewards = {reward.label: reward for reward in last.rewards}
        # By what is paid: the reference itself, at the target, at the edge, a token beyond it, and cut there.
        target, tolerance = config.length.target, config.length.allowed
        paid = totals(
            last,
            config,
            [(target, True), (target + tolerance, True), (target + tolerance + 1, True), (target, False)],
        )
        weight = rewards["rougeL"].weight
        assert paid[0] == pytest.approx(weight)
        assert paid[1] == pytest.approx(weight - rewards["length"].weight * tolerance / target)
        assert paid[2] == pytest.approx(-rewards["length"].weight * (tolerance + 1) / target)
        assert paid[3] == pytest.approx(-rewards["length"].weight)

    def test_it_begins_with_the_length_and_no_quality(self, parse: Parse) -> None:
        config = parse("--config", path_of("quickstart"))
        first = config.stages[0]
        assert {reward.label for reward in first.rewards if reward.weight} == {"length"}
        assert first.until is not None
        assert first.until.metric == "length/within"
        assert totals(first, config, [(config.length.target, True)])[0] == 0


def totals(stage: StageConfig, config: RunConfig, wanted: Sequence[tuple[int, bool]]) -> list[float]:
    """What a stage pays for completions that say the reference, with (length, stopped by itself)."""
    text = "my boss hid my phone and I want it back"
    completions = tuple(
        Completion(
            token_ids=tuple(range(1, length + 1)) + (0,) * stopped,  # nothing is repeated
            logprobs=(-1.0,) * (length + stopped),
            finish_reason="stop" if stopped else "length",
            policy_version=0,
            text=text,
        )
        for length, stopped in wanted
    )
    group = Group(Example("1", (1,), "prompt", "document", text), completions)
    return [float(total) for total in build_rewards(stage, config.length).score([group]).total_PG[0]]


@pytest.mark.parametrize("name", PUBLISHED)
class TestRedditPosts:
    def test_what_the_file_promises(self, name: str, parse: Parse) -> None:
        config = parse("--config", path_of(name))
        assert (config.length.target, config.length.tolerance) == (64, 5)
        assert config.policy.tuning == "lora"
        assert config.policy.gradient_checkpointing
        assert config.checkpoint.every == 25
        assert [stage.name for stage in config.stages] == ["joint", "cool"]
        assert config.stopping is not None
        joint = parse("--config", path_of(name), recipe="grpo_joint")
        assert [phase.name for phase in joint.phases] == ["constrained"]
        full = parse("--config", path_of(name), *FULL)
        assert full.policy.dtype == "bfloat16"
        assert full.optimizer.rounding == "stochastic", "or most of such a small step is lost"
        width = PUBLISHED[name]["hidden_size"]
        mine: Any = SimpleNamespace(options=config.policy, width=width)
        assert full.optimizer.learning_rate is not None
        assert peak_rate(config.optimizer, mine) > 10 * full.optimizer.learning_rate

    def test_prompts_tell_the_length_before_the_post(self, name: str, parse: Parse) -> None:
        config = parse("--config", path_of(name))
        post = "SUBREDDIT: r/tifu\n\nTITLE: TIFU by {sleeping}\n\nPOST: I slept through it.\n\nTL;DR:"
        rows = Rows("posts", [Row("1", {"prompt": post, "completion": " I slept."})])
        tokenizer = train_tokenizer([post, config.data.instruction], 300)
        example = load_examples(rows, config.data, tokenizer, config.length.target).examples[0]
        assert example.reference == "I slept."
        system, _, turn = example.prompt.partition("<|im_start|>user\n")
        assert str(config.data.system) in system
        instruction, _, rest = turn.partition("\n\n")
        assert "64 tokens" in instruction
        assert rest.startswith(post)

    @pytest.mark.parametrize("tuning", ["lora", "full"])
    def test_it_fits_a_mac_with_16_gb(self, name: str, tuning: str, parse: Parse) -> None:
        config = parse("--config", path_of(name), *(FULL if tuning == "full" else ()))
        parameters, shape = PARAMETERS[name], ModelShape.from_config(PUBLISHED[name])
        assert shape.parameters == parameters
        estimate = preparation.peak_estimate(config, config.policy, shape)
        assert estimate.total < USABLE_SHARE * 16 * GIB
        # bf16 weights, and with full tuning two float32 moments and a bf16 gradient at least
        assert estimate.total > parameters * (2 + (8 + 2) * (tuning == "full"))
        # The comment at the top says the same, to what the estimate is good for.
        comment = " ".join(line.lstrip("# ") for line in Path(path_of(name)).read_text().splitlines()[:8])
        assert "NOT RUN ON METAL YET" in comment
        said = re.search(r"([\d.]+) GB with LoRA \(this file\) and ([\d.]+) GB with full", comment)
        assert said is not None
        assert float(said[1 if tuning == "lora" else 2]) == pytest.approx(estimate.total / GIB, rel=0.2)

    def test_prompts_and_completions_fit_the_model(self, name: str, parse: Parse) -> None:
        config = parse("--config", path_of(name))
        context = PUBLISHED[name]["max_position_embeddings"]
        preparation.check_context(config, SimpleNamespace(context=context, source=name))  # type: ignore[arg-type]


def test_every_file_is_looked_at_here() -> None:
    """But for the studies' and what they prepare, which tests of `recipes.study` look at."""
    others = [file for file in FILES if recipe_of(file) in ("study", "prepare")]
    assert [file.stem for file in others] == [
        "study",
        "study_articles",
        "study_posts",
        "study_three_kinds",
        "three_kinds",
    ]
    assert sorted([*CONFIGS, *LAPTOPS, *others]) == FILES


@pytest.mark.parametrize("file", LAPTOPS, ids=lambda file: file.stem)
class TestSmallLaptops:
    def test_it_is_what_the_issue_asks_for(self, file: Path) -> None:
        config = laptop("--config", str(file))
        assert config.name == file.stem
        assert config.quantize.bits == 4
        assert (config.sft.steps, config.policy.lora.layers) == (100, 8)
        assert config.policy.gradient_checkpointing
        assert (config.policy.tuning, config.export.fused) == ("lora", True)
        assert config.data.train == config.data.evaluation == "xsum"
        assert config.data.train_split != config.data.evaluation_split

    def test_rows_and_answers_fit(self, file: Path) -> None:
        """In Phi-3-mini's window of 2,047 tokens, which is what mlx-lm computes rightly."""
        config = laptop("--config", str(file))
        assert config.sft.max_tokens >= config.data.max_prompt_tokens + config.comparison.max_tokens
        assert config.sft.max_tokens <= 2047
        assert config.sft.micro_batch_tokens >= config.sft.max_tokens
        assert config.length.target + config.length.tolerance < config.comparison.max_tokens

    def test_commands_in_its_comments_work(self, file: Path) -> None:
        comments = "\n".join(re.findall(r"^# ?(.*)$", file.read_text(), re.MULTILINE))
        commands = re.findall(r"python -m recipes\.small_laptop (.*)", comments.replace("\\\n", " "))
        argvs = [
            [str(ROOT / word) if word.endswith(".yaml") else word for word in shlex.split(one)]
            for one in commands
        ]
        assert len({laptop(*argv).name for argv in argvs}) == len(argvs) == 2


def laptop(*argv: str) -> SmallLaptopConfig:
    return parse_options(SmallLaptopConfig, argv, prog="", description="", defaults=small_laptop.DEFAULTS)
