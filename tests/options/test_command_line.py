"""Options from defaults, YAML and the command line; every mistake is one sentence with a way out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mlx_sumrl.config import RunConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse, parse_command

LEAST = ["--policy.model", "some/model", "--data.train", "rows.jsonl"]
STAGES = {"stages": [{"name": "length", "steps": 100, "rewards": [{"kind": "length"}]}]}


def run_config(*argv: str, defaults: dict[str, Any] | None = None) -> RunConfig:
    return parse(RunConfig, [*LEAST, *argv], prog="recipe", description="Trains.", defaults=defaults)


def refusal(*argv: str, defaults: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        run_config(*argv, defaults=defaults)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    return sentence


def written(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


class TestValues:
    def test_each_kind_of_value(self) -> None:
        config = run_config(
            *("--grpo.group_size", "16", "--grpo.beta=1e-3", "--optimizer.betas", "[0.8, 0.95]"),
            *("--policy.lora.keys", "self_attn.q_proj,self_attn.v_proj", "--policy.lora.layers", "-1"),
            *("--policy.gradient_checkpointing", "--export.fused", "false", "--data.evaluation_rows", "null"),
            *("--data.instruction", "{document} = [short]: 1", "--data.system", "123", "--runs_dir", "out/x"),
        )
        assert config.grpo.group_size == 16
        assert config.grpo.beta == 1e-3
        assert config.optimizer.betas == (0.8, 0.95)
        assert config.policy.lora.keys == ("self_attn.q_proj", "self_attn.v_proj")
        assert config.policy.lora.layers == -1
        assert config.policy.gradient_checkpointing is True
        assert config.export.fused is False
        assert config.data.evaluation_rows is None
        assert config.data.instruction == "{document} = [short]: 1"
        assert config.data.system == "123"
        assert config.runs_dir == Path("out/x")

    def test_a_number_among_choices(self) -> None:
        assert run_config("--sampling.cache_bits", "8").sampling.cache_bits == 8
        assert run_config("--sampling.cache_bits", "null").sampling.cache_bits is None
        assert "4 or 8" in refusal("--sampling.cache_bits", "3")

    def test_a_list_of_models_as_json(self) -> None:
        stages = '[{"name": "a", "steps": 3, "rewards": [{"kind": "rougeL", "weight": 2}]}]'
        config = run_config("--stages", stages)
        assert [stage.name for stage in config.stages] == ["a"]
        assert config.stages[0].rewards[0].weight == 2

    def test_the_last_of_two_wins(self) -> None:
        assert run_config("--seed", "1", "--seed", "2").seed == 2

    def test_a_room_that_is_off_is_switched_on_by_name_or_by_an_option_of_its_own(self) -> None:
        assert run_config().sft is None
        assert run_config("--sft").sft is not None
        on = run_config("--sft.steps", "7").sft
        assert on is not None
        assert on.steps == 7
        assert run_config("--sft.steps", "7", "--sft", "null").sft is None

    def test_a_partial_room_keeps_the_default_of_the_room_above(self) -> None:
        """SftConfig's optimizer learns at 1e-4, OptimizerConfig by itself at what the model bears."""
        config = run_config("--sft.optimizer.weight_decay", "0.1")
        assert config.sft is not None
        assert config.sft.optimizer.learning_rate == 1e-4
        assert config.sft.optimizer.weight_decay == 0.1
        assert run_config("--optimizer.weight_decay", "0.1").optimizer.learning_rate is None

    def test_environment_variables_are_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEED", "99")
        monkeypatch.setenv("NAME", "from-the-environment")
        assert run_config().seed == 0
        assert run_config().name == "grpo"


class TestOrder:
    def test_defaults_then_file_then_command_line(self, tmp_path: Path) -> None:
        file = written(tmp_path, "seed: 2\ngrpo: {group_size: 6, beta: 0.1}\n")
        defaults = {"seed": 1, "name": "mine", "grpo": {"group_size": 3, "epsilon_low": 0.3}}
        config = run_config("--config", file, "--grpo.beta", "0.2", defaults=defaults)
        assert (config.name, config.seed) == ("mine", 2)
        assert (config.grpo.epsilon_low, config.grpo.group_size, config.grpo.beta) == (0.3, 6, 0.2)

    def test_lists_are_replaced_as_a_whole(self, tmp_path: Path) -> None:
        file = written(tmp_path, "stages: [{name: b, steps: 5, rewards: [{kind: within}]}]\n")
        config = run_config("--config", file, defaults=STAGES)
        assert [(stage.name, stage.steps) for stage in config.stages] == [("b", 5)]

    def test_one_entry_of_a_list_can_be_changed(self) -> None:
        config = run_config("--stages.0.steps", "30", "--stages.0.rewards.0.weight=2", defaults=STAGES)
        assert (config.stages[0].name, config.stages[0].steps) == ("length", 30)
        assert config.stages[0].rewards[0].weight == 2
        assert STAGES["stages"][0]["steps"] == 100, "the recipe's own defaults are left alone"

    def test_an_empty_file_changes_nothing(self, tmp_path: Path) -> None:
        assert run_config("--config", written(tmp_path, "# nothing yet\n")) == run_config()


class TestUnknownOptions:
    @pytest.mark.parametrize(
        ("option", "meant"),
        [
            ("--grpo.group_sze", "--grpo.group_size"),
            ("--grpo.group-size", "--grpo.group_size"),
            ("--group_size", "--grpo.group_size"),
            ("--polcy.model", "--policy.model"),
            ("--stages.0.stesp", "--stages.0.steps"),
            ("--confg", "--config"),
        ],
    )
    def test_on_the_command_line(self, option: str, meant: str) -> None:
        with pytest.raises(UserError) as caught:
            parse_command(RunConfig, [*LEAST, option, "3"], prog="r", description="", defaults=STAGES)
        sentence = str(caught.value)
        assert f"unknown option {option} (value '3')" in sentence
        assert f"did you mean {meant}?" in sentence

    @pytest.mark.parametrize(
        ("text", "name", "meant"),
        [
            ("sead: 3", "sead", "seed"),
            ("grpo: {group_sze: 3}", "grpo.group_sze", "grpo.group_size"),
            ("group_size: 3", "group_size", "grpo.group_size"),
            ("stages: [{name: a, stesp: 3}]", "stages.0.stesp", "stages.0.steps"),
            (
                "stages: [{name: a, steps: 1, rewards: [{kind: length}, {kind: within, wieght: 3}]}]",
                "stages.0.rewards.1.wieght",
                "stages.0.rewards.1.weight",
            ),
        ],
    )
    def test_in_the_file_at_any_depth(self, tmp_path: Path, text: str, name: str, meant: str) -> None:
        file = written(tmp_path, text)
        sentence = refusal("--config", file)
        assert f"unknown option {name} (value 3) in {file}" in sentence
        assert f"did you mean {meant}?" in sentence

    def test_inside_a_list_given_on_the_command_line(self) -> None:
        assert "stages.0.setps" in refusal("--stages", '[{"name": "a", "setps": 3, "rewards": []}]')

    def test_nothing_close(self) -> None:
        assert "--help lists every option" in refusal("--zzz", "1")

    def test_words_that_are_no_option(self) -> None:
        assert "did you mean --config my.yaml?" in refusal("my.yaml")
        assert "'-x' is no option" in refusal("-x", "1")


class TestWrongValues:
    @pytest.mark.parametrize(
        ("argv", "parts"),
        [
            (["--grpo.group_size", "x"], ["grpo.group_size is 'x' on the command line", "valid integer"]),
            (["--grpo.group_size", "1"], ["grpo.group_size is '1'", "greater than or equal to 2"]),
            (["--grpo.loss", "ppo"], ["grpo.loss is 'ppo'", "'dr_grpo'"]),
            (["--grpo.reference", "3bit"], ["grpo.reference is '3bit'", "'copy', '8bit' or '4bit'"]),
            (["--export.fused", "maybe"], ["export.fused is 'maybe'", "boolean"]),
            (["--stages", "[{"], ["--stages '[{' is not valid JSON or YAML", "quote"]),
            (["--seed"], ["--seed needs a value: int"]),
            (["--name", "a/b"], ["name is 'a/b'", "pattern"]),
            (["--length.target", "200"], ["length.target 200", "sampling.max_tokens 96", "206"]),
            (["--stages.0.steps", "3"], ["entry 0 of a list of 0", "--stages '[...]'"]),
            (["--policy.adapter", "null", "--policy.lora", "3"], ["policy.lora is 3", "options of its own"]),
        ],
    )
    def test_name_value_and_way_out(self, argv: list[str], parts: list[str]) -> None:
        sentence = refusal(*argv)
        for part in parts:
            assert part in sentence

    def test_an_entry_that_is_wrong_does_not_make_its_list_wrong(self) -> None:
        sentence = refusal("--stages", '[{"name": "a", "steps": 3, "rewards": [{"kind": "lenth"}]}]')
        assert sentence.startswith("stages.0.rewards.0.kind is 'lenth'")
        assert "also" not in sentence

    def test_the_place_of_a_models_own_check_is_named(self) -> None:
        stages = '[{"name": "a", "steps": 3, "rewards": [{"kind": "function"}]}]'
        assert refusal("--stages", stages).startswith(
            "stages.0.rewards.0 on the command line: a reward needs"
        )

    def test_several_at_once(self) -> None:
        sentence = refusal("--seed", "x", "--grpo.loss", "ppo", "--sft.steps", "0")
        assert (
            sentence.index("seed is 'x'") < sentence.index("; also: ") < sentence.index("grpo.loss is 'ppo'")
        )
        assert "sft.steps is '0'" in sentence

    def test_a_required_room_says_what_it_needs(self) -> None:
        with pytest.raises(UserError, match=r"exactly one of policy\.model"):
            parse(RunConfig, [], prog="r", description="")

    def test_the_file_is_named_where_the_value_comes_from_it(self, tmp_path: Path) -> None:
        file = written(tmp_path, "name: 2024\n")
        assert refusal("--config", file).startswith(f"name is 2024 in {file}: it should be a valid string")


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        written(tmp_path, "seed: 1", "staged.yaml")
        assert f"did you mean {tmp_path / 'staged.yaml'}?" in refusal(
            "--config", str(tmp_path / "stagd.yaml")
        )
        assert "does not exist" in refusal("--config", str(tmp_path / "no" / "where.yaml"))

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("data:\n  instruction: Sum: {document}\n", ["line 2", "quotes"]),
            ("grpo: {beta: 1}\ngrpo: {group_size: 4}\n", ["'grpo' is there twice", "line 2"]),
            ("- 1\n- 2\n", ["holds [1, 2]", "must hold options"]),
            ("grpo:\n", ["grpo is null", "leave it out"]),
        ],
    )
    def test_broken(self, tmp_path: Path, text: str, parts: list[str]) -> None:
        file = written(tmp_path, text)
        sentence = refusal("--config", file)
        for part in [file, *parts]:
            assert part in sentence

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "weights.yaml").write_bytes(b"\xff\xfe\x00\x01\xff")
        assert "not UTF-8 text" in refusal("--config", str(tmp_path / "weights.yaml"))
        assert "cannot be read" in refusal("--config", str(tmp_path))

    def test_anchors_and_merge_keys_work(self, tmp_path: Path) -> None:
        text = "optimizer: &o {eps: 0.1, weight_decay: 0.2}\nsft:\n  optimizer: {<<: *o, eps: 0.3}\n"
        config = run_config("--config", written(tmp_path, text))
        assert config.sft is not None
        assert (config.sft.optimizer.eps, config.sft.optimizer.weight_decay) == (0.3, 0.2)


class TestResumeAndExtra:
    def command(self, *argv: str) -> Any:
        extra = {"cluster": "Names the samplers."}
        return parse_command(RunConfig, argv, prog="r", description="", extra=extra)

    def test_resume_gives_the_folder(self) -> None:
        command = self.command("--resume", "runs/one", "--cluster", "nodes.yaml")
        assert command.run == Path("runs/one")
        assert command.extra == {"cluster": "nodes.yaml"}

    def test_a_new_run_gives_its_options(self) -> None:
        command = self.command(*LEAST)
        assert isinstance(command.run, RunConfig)
        assert command.extra == {}

    def test_resume_takes_no_options(self) -> None:
        with pytest.raises(UserError, match=r"leave out --config, --grpo\.beta"):
            self.command("--resume", "runs/one", "--grpo.beta", "1", "--config", "x.yaml")

    def test_twice(self) -> None:
        with pytest.raises(UserError, match=r"--config is there twice \(a.yaml and b.yaml\)"):
            self.command("--config", "a.yaml", "--config", "b.yaml")

    def test_a_recipe_without_resume_does_not_know_it(self) -> None:
        assert "unknown option --resume" in refusal("--resume", "runs/one")


class Loose(BaseModel):
    """A recipe's own model, which would itself ignore what it does not know."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    kind: Literal["a", "b"] = "a"
    """Which one."""
    needed: int
    mixed: int | list[str] | None = None
    names: dict[str, float] = Field(default_factory=dict)


class TestAnyModel:
    def parse(self, *argv: str) -> Loose:
        return parse(Loose, argv, prog="r", description="")

    def test_values(self) -> None:
        loose = self.parse("--needed", "3", "--names", "{x: 1.5}", "--names.y", "2", "--mixed", '["q"]')
        assert loose == Loose(needed=3, names={"x": 1.5, "y": 2}, mixed=["q"])

    def test_unknown_is_refused_though_the_model_would_ignore_it(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"kid .*did you mean kind"):
            self.parse("--needed", "3", "--config", written(tmp_path, "kid: a"))

    def test_missing(self) -> None:
        with pytest.raises(UserError, match=r"needed is missing; set it in the config file or with --needed"):
            self.parse()

    def test_a_union_is_named_once(self) -> None:
        with pytest.raises(UserError) as caught:
            self.parse("--needed", "3", "--mixed", "{a: 1}")
        assert str(caught.value).count("mixed is") == 1


class TestHelp:
    @pytest.fixture
    def page(self, capsys: pytest.CaptureFixture[str]) -> str:
        with pytest.raises(SystemExit) as caught:
            parse_command(
                RunConfig,
                ["--help"],
                prog="python -m recipes.grpo_staged",
                description="Two stages.",
                defaults=STAGES,
                extra={"cluster": "Names the samplers."},
            )
        assert caught.value.code == 0
        return capsys.readouterr().out

    def test_every_option_with_its_sentence(self, page: str) -> None:
        flat = " ".join(page.split())

        def walk(model: type[BaseModel], prefix: str) -> None:
            for name, field in model.model_fields.items():
                assert f"{prefix}{name}" in page
                assert " ".join((field.description or "").split()) in flat
                for room in (field.annotation, *getattr(field.annotation, "__args__", ())):
                    if isinstance(room, type) and issubclass(room, BaseModel):
                        listed = getattr(field.annotation, "__origin__", None) is tuple
                        walk(room, f"{prefix}{name}.{'N.' if listed else ''}")

        walk(RunConfig, "--")

    def test_types_defaults_and_rooms(self, page: str) -> None:
        assert "--grpo.group_size  int, default 8" in page
        assert "--sft.optimizer.learning_rate  float, default 0.0001" in page
        assert "--optimizer.learning_rate  float or null, default null" in page
        assert "--policy.dtype  float32 | bfloat16, default 'bfloat16'" in page
        assert "\ngrpo: Group relative policy optimisation" in page
        assert 'default [{"name": "length"' in page

    def test_usage_and_width(self, page: str) -> None:
        assert page.startswith("usage: python -m recipes.grpo_staged [--config FILE.yaml]")
        assert "--resume runs/NAME" in page
        assert "--cluster VALUE" in page
        assert max(map(len, page.splitlines())) <= 100


class TestExitCode:
    def test_codes_and_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        def refused() -> None:
            raise UserError("seed is 'x':\n  give a number")

        def interrupted() -> None:
            raise KeyboardInterrupt

        assert exit_code_of(lambda: None) == 0
        assert exit_code_of(refused) == 2
        assert capsys.readouterr().err == "error: seed is 'x': give a number\n"
        assert exit_code_of(interrupted) == 130
        assert capsys.readouterr().err == "interrupted\n"

    def test_a_fault_of_the_program_keeps_its_traceback(self) -> None:
        with pytest.raises(ZeroDivisionError):
            exit_code_of(lambda: 1 / 0)


def test_never_imports_mlx() -> None:
    script = (
        "import sys, mlx_sumrl.options.command_line, mlx_sumrl.options.help\n"
        "assert not [name for name in sys.modules if name == 'mlx' or name.startswith('mlx.')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
