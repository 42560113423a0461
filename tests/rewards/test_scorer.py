"""The rewards of a stage, each where it belongs: the numbers are those of the training thread alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from mlx_sumrl.config import GateConfig, GrpoConfig, LengthConfig, ScoringConfig, StageConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards import FunctionReward, RewardSet, Scorer, build_rewards
from mlx_sumrl.rewards import scorer as scorer_module
from mlx_sumrl.rollouts.types import Completion, Group
from mlx_sumrl.training.advantages import group_advantages

from made_for_the_pool import Obeys, Plain  # isort: skip

NAN = np.nan
TWO = ScoringConfig(processes=2)
KINDS = [
    *({"kind": kind} for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum", "meteor", "bleu", "chrf")),
    *({"kind": kind} for kind in ("length", "within", "repetition", "language", "extractiveness", "novelty")),
    *({"kind": kind} for kind in ("ends_sentence", "whole_sentences")),
    {"kind": "entity_coverage", "gate": {"reward": "within"}},
    {"kind": "format_bullets", "bullets": 2, "max_words": 9},
    {"kind": "function", "function": "made_functions:distinct_letters"},
]


def group(*texts: str, row: str = "row", reference: str = "reference") -> Group:
    completions = tuple(Completion((1, 0), (-1.0, -1.0), "stop", 0, text) for text in texts)
    return Group(Example(row, (1, 2), "prompt", "document", reference), completions)


@pytest.fixture
def real(dialogues: list[dict[str, str]]) -> list[Group]:
    """10 rows, each with the summaries of 5 others and some of its own words."""
    made = []
    for p, row in enumerate(dialogues[:10]):
        texts = [dialogues[p + g]["summary"] for g in range(1, 6)] + [row["dialogue"][:150], ""]
        lengths = [len(text.split()) for text in texts]
        completions = tuple(
            Completion((*range(n), 0), (-1.0,) * (n + 1), "stop", 0, text)
            for n, text in zip(lengths, texts, strict=True)
        )
        made.append(Group(Example(row["id"], (1,), "p", row["dialogue"], row["summary"]), completions))
    return made


@pytest.mark.usefixtures("wordnet")
def test_all_kinds_are_what_the_training_thread_says(
    real: list[Group], tmp_path, monkeypatch: pytest.MonkeyPatch, shared
) -> None:
    (tmp_path / "made_functions.py").write_text(
        "def distinct_letters(prompts, completions, **columns):\n    return [len(set(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NLTK_DATA", str(shared / "nltk_data"))
    stage = StageConfig.model_validate({"name": "s", "steps": 1, "rewards": KINDS})
    rewards = build_rewards(stage, LengthConfig(target=24, tolerance=8))
    expected = rewards.score(real)
    with Scorer(rewards, TWO) as scorer:
        for one in real[::2]:
            scorer.begin(one)
        scores = scorer.scores(real)
        assert scorer.report().keys() == {"time/score"}
    np.testing.assert_array_equal(scores.weighted_PGR, expected.weighted_PGR)
    np.testing.assert_array_equal(scores.total_PG, expected.total_PG)
    assert list(scores.components) == [one["kind"] for one in KINDS[:-1]] + ["distinct_letters"]
    differing = {name for name, values in scores.components.items() if np.nanmax(values) > np.nanmin(values)}
    assert differing == scores.components.keys() - {"format_bullets", "repetition"}


def test_timeouts_are_counted_and_a_reward_that_never_speaks_stops_the_run() -> None:
    rewards = RewardSet((Obeys(), Plain()), (1.0, 1.0), (None, None), (0.4, 60.0))
    with Scorer(rewards, TWO) as scorer:
        scores = scorer.scores([group("say 1", "sleep 2"), group("say 3", "say 4", row="b")])
        np.testing.assert_array_equal(scores.components["obeys"], [[1, NAN], [3, 4]])
        np.testing.assert_array_equal(scores.total_PG, [[2, 2], [6, 8]])
        assert scores.means() == {"obeys": 8 / 3, "plain": 2.5}
        assert scorer.report()["reward/obeys/timeouts"] == 1.0
        scorer.scores([group("say 1", "say 2")])
        assert scorer.report().keys() == {"time/score"}
        with pytest.raises(UserError, match=r"'obeys' scored none of a step's 2 completions within.* 0.4 s"):
            scorer.scores([group("sleep 1", "sleep 2")])


def test_gates_and_missing_scores_with_each_reward_normalised_by_itself() -> None:
    """What a time-out leaves out, a gate shuts and `each` compares, by hand."""
    rewards = RewardSet(
        (Obeys(), Plain()),
        (2.0, 1.0),
        (GateConfig(reward="plain", at_least=2, otherwise=-1), None),
        (0.4, 60.0),
    )
    with Scorer(rewards, TWO) as scorer:
        scores = scorer.scores([group("say 1", "say 2", "sleep 3", "say 5")])
    # The gate is shut for 1: worth -1; 3 is missing.
    np.testing.assert_array_equal(scores.gated_PGR[0, :, 0], [-1, 2, NAN, 5])
    np.testing.assert_array_equal(scores.components["obeys"], [[1, 2, NAN, 5]])
    options = GrpoConfig(normalize_rewards="each")
    found = group_advantages(scores.weighted_PGR, scores.weights_R, options).values_PG[0]
    of_three = (np.array([-1, 2, 5]) - 2) / np.std([-1, 2, 5])
    of_four = (np.array([1, 2, 3, 5]) - 2.75) / np.std([1, 2, 3, 5])
    np.testing.assert_allclose(found, 2 * np.array([*of_three[:2], 0, of_three[2]]) + of_four)


def test_what_was_begun_is_not_done_twice_and_what_is_not_wanted_is_forgotten(tmp_path) -> None:
    rewards = RewardSet((Obeys(folder=str(tmp_path)),), (1.0,), (None,), (60.0,))
    wanted, unwanted = group("say 1", "say 2", row="wanted"), group("say 7", "say 8", row="unwanted")
    with Scorer(rewards, TWO) as scorer:
        threads = [threading.Thread(target=scorer.begin, args=(one,)) for one in (unwanted, wanted, wanted)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # The same row, with other completions: sampled again by a newer policy.
        other = Group(wanted.example, group("say 3", "say 4").completions)
        again = Group(wanted.example, tuple(wanted.completions))
        np.testing.assert_array_equal(scorer.scores([again, other]).total_PG, [[1, 2], [3, 4]])
        assert len(list(tmp_path.glob("wanted-*"))) == 4
        for _ in range(scorer_module.KEPT_STEPS):
            scorer.scores([other])
        assert not scorer._begun
        np.testing.assert_array_equal(scorer.scores([unwanted]).total_PG, [[7, 8]])
        assert len(list(tmp_path.glob("unwanted-*"))) == 4


def test_one_row_twice_in_a_step(tmp_path) -> None:
    rewards = RewardSet((Obeys(),), (1.0,), (None,), (60.0,))
    same = group("say 1", "say 2")
    with Scorer(rewards, TWO) as scorer:
        np.testing.assert_array_equal(scorer.scores([same, same]).total_PG, [[1, 2], [1, 2]])
        assert not scorer._begun


@dataclass
class Here:
    """Says in which thread it was called."""

    name: str = "here"

    def __call__(self, groups: Sequence[Group]) -> np.ndarray:
        return np.full((len(groups), len(groups[0].completions)), float(threading.get_ident()))


def test_functions_run_in_order_in_one_other_thread() -> None:
    called: list[tuple[str, int, int]] = []

    def function(name: str):
        def score(prompts: list[str], completions: list[str]) -> list[float]:
            called.append((name, threading.get_ident(), len(completions)))
            return [float(text.split()[1]) for text in completions]

        return FunctionReward(name, f"mine.py:{name}", score)

    rewards = RewardSet((function("b"), Here(), function("a")), (1.0, 0.0, 10.0), (None,) * 3, (5.0,) * 3)
    with Scorer(rewards, TWO) as scorer:
        assert scorer.pool is None, "nothing to do for processes"
        for _ in range(2):
            scores = scorer.scores([group("say 1", "say 2"), group("say 3", "say 4")])
            np.testing.assert_array_equal(scores.total_PG, [[11, 22], [33, 44]])
    assert [(name, count) for name, _, count in called] == [("b", 4), ("a", 4)] * 2
    assert len({thread for _, thread, _ in called} | {threading.get_ident()}) == 2
    assert scores.components["here"][0, 0] == threading.get_ident()


def test_a_function_that_never_returns_stops_the_run_and_what_it_raises_passes() -> None:
    def endless(prompts: list[str], completions: list[str]) -> list[float]:
        time.sleep(20)
        return [0.0]

    def wrong(prompts: list[str], completions: list[str]) -> list[float]:
        raise TimeoutError("its own")

    for function, limit, error, message in (
        (endless, 0.2, UserError, r"'mine.py:f' has not returned after 0.2 s"),
        (wrong, 5.0, TimeoutError, "its own"),
    ):
        rewards = RewardSet((FunctionReward("f", "mine.py:f", function),), (1.0,), (None,), (limit,))
        with Scorer(rewards, TWO) as scorer, pytest.raises(error, match=message):
            scorer.scores([group("say 1")])


@pytest.mark.parametrize(
    ("rewards", "scoring", "processes"),
    [
        ([{"kind": "rougeL"}, {"kind": "length"}], {}, 0),
        ([{"kind": "rougeL"}, {"kind": "chrf"}], {}, 3),
        ([{"kind": "rougeL"}], {"processes": 1}, 1),
        ([{"kind": "chrf"}], {"processes": 0}, 0),
        ([{"kind": "length"}], {"processes": 2}, 0),
    ],
)
def test_processes_start_where_they_are_worth_it(
    rewards, scoring, processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Counted:
        def __init__(self, processes: int, warm: object) -> None:
            started.append(processes)

        def close(self) -> None: ...

    monkeypatch.setattr(scorer_module, "ScoringPool", Counted)
    monkeypatch.setattr(scorer_module.os, "cpu_count", lambda: 3)
    stage = StageConfig.model_validate({"name": "s", "steps": 1, "rewards": rewards})
    with Scorer(build_rewards(stage, LengthConfig()), ScoringConfig.model_validate(scoring)):
        assert started == [processes] * (processes > 0)
