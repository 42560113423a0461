"""The judge as a reward: scored beside the caller, nothing asked twice, what cannot be judged is missing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mlx_sumrl.config import (
    JudgeRewardConfig,
    LengthConfig,
    RewardConfig,
    ScoringConfig,
    StageConfig,
)
from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards import build_rewards
from mlx_sumrl.rewards.judge import JudgeReward
from mlx_sumrl.rewards.scorer import Scorer
from mlx_sumrl.rollouts.types import Group
from tests.endpoint.simulated_teacher import KEY, MODEL, SimulatedTeacher
from tests.judging.made import criterion_of, judge_server, parts_of

Make = Callable[..., Any]


def script(number: int, prompt: str) -> str:
    """As many marks as words, but for the clarity of *hm*, which it never says."""
    words = len(parts_of(prompt)["SUMMARY"].split())
    return "says hm" if "hm" in prompt and criterion_of(prompt) == "clarity" else f"says {min(words, 5)}"


@pytest.fixture
def server() -> Iterator[SimulatedTeacher]:
    with judge_server(script) as one:
        yield one


def options(server: SimulatedTeacher, **changes: Any) -> JudgeRewardConfig:
    given = {
        "server": server.url,
        "model": MODEL,
        "timeout_s": 30,
        "retry": {"first_wait_s": 0, "attempts": 2},
    }
    return JudgeRewardConfig.model_validate({**given, **changes})


@pytest.fixture
def reward() -> Iterator[Callable[..., JudgeReward]]:
    made: list[JudgeReward] = []

    def make(server: SimulatedTeacher, criterion: Any = "composite", **changes: Any) -> JudgeReward:
        made.append(JudgeReward("judged", criterion, options(server, **changes)))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "judge"]


def groups(group: Make, completion: Make, *texts: tuple[str, ...]) -> list[Group]:
    return [group(*(completion(text=text) for text in row)) for row in texts]


def test_values(server: SimulatedTeacher, reward: Make, group: Make, completion: Make) -> None:
    """One to five words are 0 to 1; nothing is 0; what has no well-formed reply is missing."""
    two = groups(group, completion, ("one", "one two three", " "), ("a b c d e f", "hm", "one"))
    composite, coverage = reward(server), reward(server, "coverage")
    np.testing.assert_array_equal(composite(two), [[0, 0.5, 0], [1, np.nan, 0]])
    asked = len(server.bodies)
    # "one" stands in two groups of the same document; clarity of "hm" is tried three times.
    assert asked == 4 * 4 + 2
    np.testing.assert_array_equal(coverage(two), [[0, 0.5, 0], [1, 0, 0]])
    np.testing.assert_array_equal(composite(two), composite(two))
    assert len(server.bodies) == asked


def test_one_criterion_asks_for_no_other(
    server: SimulatedTeacher, reward: Make, group: Make, completion: Make
) -> None:
    values = reward(server, "clarity")(groups(group, completion, ("one two", "one two three")))
    np.testing.assert_array_equal(values, [[0.25, 0.5]])
    assert [criterion_of(body["messages"][0]["content"]) for body in server.bodies] == ["clarity"] * 2


def test_begun_is_asked_while_others_are_awaited(
    server: SimulatedTeacher, reward: Make, group: Make, completion: Make
) -> None:
    """`begin` does not wait, though no reply comes before it has returned; they are there when wanted."""
    returned = threading.Event()

    def held(number: int, prompt: str) -> str:
        assert returned.wait(20)
        return script(number, prompt)

    server.script = held
    one = reward(server)
    (first,) = groups(group, completion, ("one two", "one"))
    one.begin(first)
    returned.set()
    server_side = time.monotonic() + 20
    while sum(server.delivered.values()) < 8:
        assert time.monotonic() < server_side, "what was begun was not asked"
        time.sleep(0.01)
    np.testing.assert_array_equal(one([first]), [[0.25, 0]])
    assert len(server.bodies) == 8


def test_a_ledger_is_gone_on_with(
    server: SimulatedTeacher, reward: Make, group: Make, completion: Make, tmp_path: Path
) -> None:
    two = groups(group, completion, ("one", "one two three"))
    first = reward(server, ledger=tmp_path / "ledger.jsonl")
    before = first(two)
    first.close()
    asked = len(server.bodies)
    np.testing.assert_array_equal(reward(server, ledger=tmp_path / "ledger.jsonl")(two), before)
    assert len(server.bodies) == asked


def test_a_cap_ends_the_run(
    server: SimulatedTeacher, reward: Make, group: Make, completion: Make, tmp_path: Path
) -> None:
    capped = {"ledger": tmp_path / "ledger.jsonl", "max_total_tokens": 6000}
    one = reward(server, **capped)
    many = groups(group, completion, *((f"one {n}", f"two {n} three") for n in range(20)))
    with pytest.raises(
        UserError, match=r"reward 'judged' cannot go on asking 127.0.0.1:\d+: max_total_tokens 6,000"
    ):
        one(many)
    assert 0 < server.billed.total() <= 6000
    asked = len(server.bodies)
    with pytest.raises(UserError, match="max_total_tokens"):
        one(many)
    assert len(server.bodies) == asked


def test_a_server_that_is_not_there(reward: Make, group: Make, completion: Make) -> None:
    with judge_server(script) as gone:
        pass
    one = reward(gone)
    for _ in range(2):
        with pytest.raises(UserError, match=r"no server answers at .*correct judge\.server"):
            one(groups(group, completion, ("one",)))


def test_rewards_share_a_ledger_where_all_else_is_equal(
    server: SimulatedTeacher, reward: Make, group: Make, completion: Make, tmp_path: Path
) -> None:
    ledger = {"ledger": tmp_path / "ledger.jsonl"}
    two = groups(group, completion, ("one", "one two three"))
    clarity, coverage = (reward(server, criterion, **ledger) for criterion in ("clarity", "coverage"))
    np.testing.assert_array_equal(clarity(two), coverage(two))
    with pytest.raises(UserError, match="two judges with other options have the same ledger"):
        reward(server, seed=1, **ledger)(two)


def test_a_ledger_that_cannot_be(
    server: SimulatedTeacher, reward: Make, group: Make, completion: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    one = reward(server, ledger=tmp_path / "file" / "ledger.jsonl")
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be opened"):
            one(groups(group, completion, ("one",)))


def test_a_key_that_is_not_there(server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any training, and never with the key itself."""
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    stage = stage_of(server, key_variable="JUDGE_KEY")
    with pytest.raises(UserError, match=r"JUDGE_KEY \(judge.key_variable\) is not set"):
        build_rewards(stage, LengthConfig())
    monkeypatch.setenv("JUDGE_KEY", KEY)
    build_rewards(stage, LengthConfig())
    assert KEY not in stage.model_dump_json()


def stage_of(server: SimulatedTeacher, **changes: Any) -> StageConfig:
    judge = json.loads(options(server, **changes).model_dump_json())
    kinds = [{"kind": "judge", "criterion": "clarity", "judge": judge}, {"kind": "judge", "judge": judge}]
    return StageConfig.model_validate({"name": "s", "steps": 1, "rewards": kinds})


def test_among_the_rewards_of_a_stage(server: SimulatedTeacher, group: Make, completion: Make) -> None:
    rewards = build_rewards(stage_of(server), LengthConfig())
    assert rewards.names == ("judge_clarity", "judge_composite")
    (one,) = groups(group, completion, ("one two", "hm"))
    with Scorer(rewards, ScoringConfig()) as scorer:
        scorer.begin(one)
        scores = scorer.scores([one])
    np.testing.assert_array_equal(scores.components["judge_clarity"], [[0.25, np.nan]])
    np.testing.assert_array_equal(scores.total_PG, [[0.5, 0]])
    assert scores.unscored == 1
    assert len(server.bodies) == 8 + 2
    assert not [thread for thread in threading.enumerate() if thread.name == "judge"]


def test_options() -> None:
    with pytest.raises(ValidationError, match="exactly when its kind is `judge`"):
        RewardConfig(kind="judge")
    with pytest.raises(ValidationError, match="server is missing"):
        JudgeRewardConfig()
    with pytest.raises(ValidationError, match="a cap needs a ledger"):
        JudgeRewardConfig(server="http://h", model="m", max_total_tokens=5)
