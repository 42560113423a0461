"""What the recipes do where the options name no stages: what won the study, as far as this machine can pay for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mlx_sumrl.config import RunConfig, StageConfig, StudyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import parse, parse_command
from mlx_sumrl.training.peak_rate import peak_rate
from mlx_sumrl.training.schedule import learning_rate
from mlx_sumrl.training.stages import CONSTRAINED, CURRICULUM, laid_under, what_is_left_out, why_not_taught
from recipes.study_plan import planned

from .programs import LACKING, ROOT, Program, tiny_job, write_options

WON = "decoupled"
WON_WITHOUT = "constrained"
"""Of those that learn from rewards alone."""


def by_default(*argv: str) -> RunConfig:
    """Of somebody who names a model and rows, and little else."""
    argv = ("--policy.model", "models/mine", "--data.train", "rows.jsonl", *argv)
    return parse(RunConfig, argv, prog="", description="", defaults=laid_under)


def rates(config: RunConfig, stage: StageConfig) -> list[float]:
    policy: Any = SimpleNamespace(options=config.policy, width=256)
    peak = stage.learning_rate or stage.learning_rate_share * peak_rate(config.optimizer, policy)
    return [learning_rate(config.optimizer, step, stage.steps, peak) for step in range(stage.steps)]


@pytest.mark.usefixtures("wordnet", "shared")
@pytest.mark.parametrize(("method", "argv"), [(WON, ()), (WON_WITHOUT, ("--stopping", "null"))])
def test_it_is_what_won_the_study(
    method: str, argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    study = ["--config", "recipes/configs/study.yaml"]
    command = parse_command(StudyConfig, study, prog="", description="", based=("options",))
    assert not isinstance(command.run, Path)
    runs = [one.run for one in planned(command.run).subjects if one.run is not None]
    won = next(run.config for run in runs if run.method == method)
    own = by_default(*argv)
    assert (own.sampling, own.grpo, own.length) == (won.sampling, won.grpo, won.length)
    assert (own.stopping is None) == bool(argv)
    assert own.stopping == won.stopping
    assert (own.policy.tuning, own.policy.lora) == (won.policy.tuning, won.policy.lora)
    rate = {"learning_rate"}
    assert own.optimizer.model_dump(exclude=rate) == won.optimizer.model_dump(exclude=rate)
    assert len(own.stages) == len(won.stages)
    apart = {*rate, "rewards"}
    for mine, theirs in zip(own.stages, won.stages, strict=True):
        assert mine.model_dump(exclude=apart) == theirs.model_dump(exclude=apart)
        assert {one.label: one for one in mine.rewards} == {one.label: one for one in theirs.rewards}
        assert rates(own, mine) == pytest.approx(rates(won, theirs))


@pytest.mark.usefixtures("no_wordnet")
@pytest.mark.parametrize(
    ("stages", "argv"), [(CURRICULUM["stages"], ()), (CONSTRAINED["stages"], ("--policy.tuning", "full"))]
)
def test_without_wordnet_rouge_has_the_weight_of_both(
    stages: list[dict[str, Any]], argv: tuple[str, ...]
) -> None:
    whole = [StageConfig.model_validate(stage) for stage in stages]
    left = by_default(*argv)
    for before, after in zip(whole, left.stages, strict=True):
        paid = {reward.label: reward.weight for reward in before.rewards}
        assert {reward.label: reward.weight for reward in after.rewards} == {
            **{name: weight for name, weight in paid.items() if name != "meteor"},
            "rougeL": paid["rougeL"] + paid["meteor"],
        }
        assert before.model_dump(exclude={"rewards"}) == after.model_dump(exclude={"rewards"})
    said = what_is_left_out(left.stages)
    assert said is not None
    assert said.endswith(LACKING)
    assert what_is_left_out(whole) is None, "of one's own stages nothing is left out"
    other = by_default(*argv, "--stages.0.rewards.0.weight", "9", "--stages.0.steps", "3")
    assert what_is_left_out(other.stages) == said, "whatever else is changed"


@pytest.mark.usefixtures("no_wordnet")
def test_without_wordnet_a_run_says_so_and_goes_on(program: Program, tmp_path: Path) -> None:
    """To its end, and with the rate that it is told of, which a resumed run would have too."""
    config = write_options(tmp_path, tiny_job({"sft": {"steps": 2}, "optimizer": {"learning_rate": None}}))
    ended = program("grpo_staged", "--config", config, "--stages.0.steps", "2")
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert f"quality is ROUGE-L alone, METEOR is not paid for: {LACKING}" in said
    assert "learning rate 1e-05, by policy.tuning full and a model 32 wide" in said
    kept = json.loads((tmp_path / "runs" / "job" / "config.json").read_text())
    assert kept["options"]["optimizer"]["learning_rate"] == 1e-5
    assert {"command", "versions"} <= kept.keys()


@pytest.mark.usefixtures("no_wordnet")
def test_it_trains_by_default(program: Program, tmp_path: Path) -> None:
    """All phases with an adapter, each evaluated; the card tells of all; going on adds nothing."""
    adapter = {"tuning": "lora", "lora": {"rank": 2}}
    config = write_options(tmp_path, tiny_job({"sft": None, "policy": adapter}))
    few = ("--stages.0.steps", "2", "--stages.1.steps", "2", "--stopping.steps", "3")
    ended = program("grpo_staged", "--config", config, *few)
    assert (ended.code, ended.err) == (0, "")
    assert "the recipe's own stage is" not in ended.out
    run = tmp_path / "runs" / "job"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["stage"] for row in rows] == ["joint"] * 2 + ["stopping"] * 3 + ["cool"] * 2
    assert {"reward/length", "reward/rougeL"} < rows[0].keys()
    assert {"reward/whole_sentences", "reward/whole_in_time", "reward/in_time"} < rows[-1].keys()
    measured = {file.stem for file in (run / "evaluation").glob("*.json")}
    assert {"before", "joint", "stopping", "cool", "final"} <= measured
    card = (run / "export" / "model" / "README.md").read_text()
    phases = ("joint", "stopping", "cool")
    assert [name for name in phases if re.search(rf"^\| {name} \|", card, re.MULTILINE)] == [*phases]
    assert re.search(r"3 supervised steps of when to stop", card)
    again = program("grpo_staged", "--resume", str(run))
    assert again.code == 0
    assert (run / "metrics.jsonl").read_text().splitlines() == lines


@pytest.mark.usefixtures("no_wordnet")
def test_a_run_says_why_when_to_stop_is_not_taught(program: Program, tmp_path: Path) -> None:
    config = write_options(tmp_path, tiny_job({"sft": None}))
    ended = program("grpo_staged", "--config", config, "--stages.0.steps", "1")
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert (
        "stage is 'constrained' here, in which when to stop is not taught, since policy.tuning is full"
        in said
    )


def test_with_wordnet_nothing_is_left_out(
    wordnet: None, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NLTK_DATA", str(shared / "nltk_data"))
    assert laid_under({}) == CURRICULUM
    assert what_is_left_out(by_default().stages) is None


@pytest.mark.usefixtures("no_wordnet")
class TestWhatIsGiven:
    def test_ones_own_stages_have_nothing_laid_under_them(self) -> None:
        stages = '[{"name": "mine", "steps": 3, "rewards": [{"kind": "length"}]}]'
        own = by_default("--stages", stages)
        plain = RunConfig(policy=own.policy, data=own.data, stages=own.stages)
        assert own == plain

    def test_one_entry_changed_is_still_the_recipes(self) -> None:
        own = by_default("--stages.0.learning_rate", "0.25", "--stages.0.steps", "7")
        assert [stage.steps for stage in own.stages] == [7, 40]
        assert own.sampling.temperature == CURRICULUM["sampling"]["temperature"]
        assert max(rates(own, own.stages[0])) == 0.25

    def test_a_rate_for_a_stage_that_comes_with_a_share(self) -> None:
        """The way out that is told is one."""
        rate = ("--stages.1.learning_rate", "0.25")
        with pytest.raises(UserError, match="set the share to 1 where it comes with the recipe's own stages"):
            by_default(*rate)
        own = by_default(*rate, "--stages.1.learning_rate_share", "1")
        assert max(rates(own, own.stages[1])) == 0.25

    @pytest.mark.parametrize(
        ("argv", "reason"),
        [
            (("--policy.tuning", "full"), "policy.tuning is full"),
            (("--length.unit", "words"), "length.unit is words"),
            (("--answer.after", "</think>"), "answer.after is '</think>'"),
            (("--stopping", "null"), "stopping is null"),
            (("--sampling.top_k", "20"), "sampling.top_k is 20"),
            (("--sampling.top_p", "0.9"), "sampling.top_p is 0.9"),
            (("--length.targets", "[24, 48]"), "length.targets asks for several lengths"),
            (("--grpo.loss", "dr_grpo"), "grpo.loss is dr_grpo"),
            (("--grpo.scale_advantages", "none"), "grpo.scale_advantages is none"),
            (("--grpo.normalize_rewards", "sum"), "grpo.normalize_rewards is sum"),
        ],
    )
    def test_where_it_cannot_be_taught(self, argv: tuple[str, str], reason: str) -> None:
        """Or no reward can pay for it alone: the share within is kept by rewards, and the run says why."""
        own = by_default(*argv)
        assert own.stopping is None
        assert [stage.name for stage in own.stages] == ["constrained"]
        name, value = argv[0].removeprefix("--").split(".") if "." in argv[0] else ("stopping", "")
        given = {name: {value: yaml.safe_load(argv[1])} if value else None}
        said = why_not_taught(given)
        assert said is not None
        assert said.endswith(f"since {reason}")
        assert why_not_taught(given | {"stages": [{"name": "mine"}]}) is None

    def test_one_of_its_options(self) -> None:
        """Which asks for it under full tuning, too."""
        for tuning in ((), ("--policy.tuning", "full")):
            own = by_default("--stopping.steps", "7", *tuning)
            assert own.stopping is not None
            assert (own.stopping.steps, own.stopping.when, own.stopping.stage) == (7, "before", "cool")
            assert [stage.name for stage in own.stages] == ["joint", "cool"]
        assert why_not_taught({"stopping": {"steps": 7}, "policy": {"tuning": "full"}}) is None

    def test_taught_beside_a_stage_that_was_not_made_for_it(self) -> None:
        """Where it is asked for, and the curriculum that has it cannot be."""
        own = by_default("--stopping.steps", "7", "--length.targets", "[24, 48]")
        assert [phase.name for phase in own.phases] == ["stopping", "constrained"]
        said = why_not_taught({"stopping": {"steps": 7}, "length": {"targets": [24, 48]}})
        assert (
            said
            == "the recipe's own stage is 'constrained' here, since length.targets asks for several lengths"
        )

    def test_joint_has_one_stage(self) -> None:
        argv = ["--policy.model", "models/mine", "--data.train", "rows.jsonl"]

        def brought(given: Mapping[str, Any]) -> dict[str, Any]:
            return laid_under(given, staged=False)

        joint = parse(RunConfig, argv, prog="", description="", defaults=brought)
        assert [phase.name for phase in joint.phases] == ["constrained"]
        untaught = by_default("--stopping", "null")
        assert (joint.stages, joint.sampling, joint.grpo) == (
            untaught.stages,
            untaught.sampling,
            untaught.grpo,
        )

    def test_every_kind_of_adapter(self) -> None:
        dora = by_default("--policy.tuning", "dora")
        assert (dora.stages, dora.stopping) == (by_default().stages, by_default().stopping)

    def test_an_entry_that_is_not_there_names_those_that_are(self) -> None:
        with pytest.raises(UserError, match=r"entry 1 of a list of 1 \(constrained\)"):
            by_default("--policy.tuning", "full", "--stages.1.steps", "2")

    @pytest.mark.parametrize(
        "argv",
        [
            ("--sampling.top_p", "1"),
            ("--sampling.top_p", "1.0"),
            ("--sampling.top_k", "0"),
            ("--length.targets", "[]"),
            ("--grpo.loss", "gspo"),
            ("--grpo.normalize_rewards", "each"),
        ],
    )
    def test_saying_what_holds_anyway_changes_nothing(self, argv: tuple[str, str]) -> None:
        given, plain = by_default(*argv), by_default()
        assert (given.stages, given.stopping) == (plain.stages, plain.stopping)
        assert given.grpo.model_copy(update={"loss": plain.grpo.loss}) == plain.grpo

    @pytest.mark.parametrize("room", ["length", "sampling", "answer", "policy", "grpo", "optimizer"])
    def test_a_room_that_is_none_is_left_to_validation(self, room: str) -> None:
        assert laid_under({room: "64"})["stages"]

    def test_a_warm_up_by_share_takes_the_place_of_steps(self) -> None:
        own = by_default("--optimizer.warmup_ratio", "0.1")
        assert (own.optimizer.warmup_steps, own.optimizer.warmup_ratio) == (0, 0.1)
        assert own.optimizer.schedule == CURRICULUM["optimizer"]["schedule"]


def test_what_a_file_switches_off_and_the_command_line_on_again_is_the_recipes_own(tmp_path: Path) -> None:
    file = tmp_path / "off.yaml"
    file.write_text("stopping: null\n")
    off = by_default("--config", str(file))
    assert [phase.name for phase in off.phases] == ["constrained"]
    on = by_default("--config", str(file), "--stopping.steps", "7", "--stages.0.steps", "3")
    own = by_default("--stopping.steps", "7", "--stages.0.steps", "3")
    assert [(phase.name, phase.steps) for phase in on.phases] == [("joint", 3), ("stopping", 7), ("cool", 40)]
    assert (on.stopping, on.stages) == (own.stopping, own.stages)
    again = by_default("--config", str(file), "--stopping.steps", "7", "--stopping", "null")
    assert [phase.name for phase in again.phases] == ["constrained"]
