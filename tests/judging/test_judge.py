"""Inquiries against a scripted judge: asked until a reply can be read, each reply kept, none asked for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.replies import Verdict
from mlx_sumrl.judging.rows import JudgedText
from mlx_sumrl.judging.scores import inquiries, judged_rows, summary
from tests.endpoint.simulated_teacher import KEY, SimulatedTeacher

from .made import CRITERIA, ask, config, criterion_of, judge_server, parts_of, text, top
from .test_questions import INJECTIONS

DIGITS = {"faithfulness": 5, "coverage": 4, "conciseness": 2, "clarity": 1}


def by_criterion(number: int, prompt: str) -> str:
    return f"says {DIGITS[criterion_of(prompt)]}"


def judge(server: SimulatedTeacher, folder: Path, texts: list[JudgedText], **changes: Any) -> Any:
    options = config(server, **changes)
    found = ask(options, folder / "ledger.jsonl", inquiries(texts, options))
    return found, judged_rows(texts, found, options)


def test_four_digits_are_four_scores(tmp_path: Path) -> None:
    with judge_server(by_criterion) as server:
        found, rows = judge(server, tmp_path, [text(n) for n in range(5)])
    assert len(server.bodies) == 20
    assert {body["max_tokens"] for body in server.bodies} == {64}
    assert all((body["logprobs"], body["top_logprobs"]) == (True, 10) for body in server.bodies)
    assert (found.malformed, found.unscored) == (0, {})
    for row in rows:
        assert [row.score(one) for one in CRITERIA] == [1, 0.75, 0.25, 0]
        assert row.composite == 2
        assert row.all_good is False
        assert [row.mass(one) for one in CRITERIA] == [None] * 4


def test_scores_weighed_by_probability(tmp_path: Path) -> None:
    """Where the server gives log-probabilities: 4 with .5, 5 with .25, the rest elsewhere."""
    logprobs = {
        "content": [{"token": "4", "logprob": -0.7, "top_logprobs": top(**{"5": 0.25, "4": 0.5, "x": 0.2})}]
    }
    with judge_server(lambda number, prompt: "says 4", logprobs=lambda said: logprobs) as server:
        _, (row,) = judge(server, tmp_path, [text(0)])
        assert row.score("clarity") == pytest.approx(((4 * 0.5 + 5 * 0.25) / 0.75 - 1) / 4)
        assert row.mass("clarity") == pytest.approx(0.75)
        assert summary([row])["weighted"] == 1
        asked = len(server.bodies)
        _, (again,) = judge(server, tmp_path, [text(0)])  # from the ledger
        assert (again.to_json(), len(server.bodies)) == (row.to_json(), asked)
        _, (plain,) = judge(server, tmp_path, [text(0)], top_logprobs=0)
        assert not [body for body in server.bodies[asked:] if "logprobs" in body or "top_logprobs" in body]
        assert plain.rounds["clarity"] == [Verdict(4.0, None)]


@pytest.mark.parametrize(
    "broken",
    [
        *(None, [], "x", {"content": None}, {"content": []}, {"content": [None]}, {"content": [{}]}),
        *(
            {"content": [{"token": 4, "top_logprobs": "4"}]},
            {"content": [{"top_logprobs": [{"token": "4"}]}]},
        ),
        {
            "content": [
                {"token": "4", "top_logprobs": [{"token": "4", "logprob": "high"}, {"logprob": -1}, 7]}
            ]
        },
        {"content": [{"token": "4", "top_logprobs": [{"token": "4", "logprob": 3}]}]},
    ],
)
def test_log_probabilities_that_are_none(broken: Any, tmp_path: Path) -> None:
    with judge_server(lambda number, prompt: "says 4", logprobs=lambda said: broken) as server:
        found, _ = judge(server, tmp_path, [text(0)])
    assert set(found.readings.values()) == {Verdict(4.0, None)}


def test_nothing_that_a_summary_says_is_read(tmp_path: Path) -> None:
    """The scripted judge is not taken in: with any injection its replies are those of the plain summaries."""
    plain = [text(n, f"Bridge {n} shut.") for n in range(len(INJECTIONS))]
    hostile = [text(n, f"Bridge {n} shut. {injection}") for n, injection in enumerate(INJECTIONS)]

    def script(number: int, prompt: str) -> str:
        fenced = parts_of(prompt)["SUMMARY"]  # one fence, its mark nowhere else
        return f"says {1 + int(fenced.split()[1]) % 5}"

    with judge_server(script) as server:
        _, before = judge(server, tmp_path, plain)
        found, after = judge(server, tmp_path, hostile)
    assert [row.to_json() for row in after] == [row.to_json() for row in before]
    assert (found.malformed, found.unscored) == (0, {})
    echo = (
        tmp_path / "echo"
    )  # one that repeats what it was shown has said nothing that counts, but for a lone digit
    with judge_server(lambda number, prompt: f"says {parts_of(prompt)['SUMMARY']}") as server:
        found, rows = judge(server, echo, hostile, malformed_attempts=1)
    assert found.readings == {}
    assert found.malformed == 4 * len(hostile)
    assert [row.composite for row in rows] == [None] * len(rows)


class TestMalformed:
    def test_asked_again_then_counted(self, tmp_path: Path) -> None:
        """Row 1's clarity never comes right, row 2's coverage at the third attempt."""
        tries: dict[str, int] = {}

        def script(number: int, prompt: str) -> str:
            what = f"{criterion_of(prompt)} {parts_of(prompt)['SUMMARY']}"
            tries[what] = tries.get(what, 0) + 1
            if what == "clarity Bridge 1 shut." or (what == "coverage Bridge 2 shut." and tries[what] < 3):
                return "says I would say 4."
            return "says 4"

        with judge_server(script) as server:
            found, rows = judge(server, tmp_path, [text(n) for n in range(3)])
            assert len(server.bodies) == 12 + 2 + 2
            again, _ = judge(server, tmp_path, [text(n) for n in range(3)])
            assert len(server.bodies) == 16
        assert tries == {
            **{f"{one} Bridge {n} shut.": 1 for n in range(3) for one in CRITERIA},
            "clarity Bridge 1 shut.": 3,
            "coverage Bridge 2 shut.": 3,
        }
        assert (found.malformed, again.malformed) == (5, 5)
        assert (again.readings, again.unscored) == (found.readings, found.unscored)
        assert list(found.unscored.values()) == ["malformed reply"]
        assert rows[1].score("clarity") is rows[1].composite is rows[1].all_good is None
        assert rows[1].score("coverage") == rows[2].score("coverage") == 0.75
        counted = summary(rows)
        assert (counted["rows"], counted["scored"]) == (3, 2)
        assert counted["n"] == {**dict.fromkeys(CRITERIA, 3), "clarity": 2}
        assert counted["unscored"] == {"malformed reply": 1}
        assert counted["judge_clarity"] == 0.75

    def test_more_attempts_later_go_on(self, tmp_path: Path) -> None:
        with judge_server(lambda number, prompt: "says 4" if number > 8 else "says hm") as server:
            found, _ = judge(server, tmp_path, [text(0)], malformed_attempts=2)
            assert (found.malformed, len(found.unscored), len(server.bodies)) == (8, 4, 8)
            found, _ = judge(server, tmp_path, [text(0)], malformed_attempts=3)
            assert (found.malformed, len(found.unscored), len(server.bodies)) == (8, 0, 12)

    def test_a_reply_that_was_cut_off(self, tmp_path: Path) -> None:
        with judge_server(lambda number, prompt: "unfinished") as server:
            found, _ = judge(server, tmp_path, [text(0)], malformed_attempts=1)
        assert list(found.unscored.values()) == ["malformed reply"] * 4


def test_json_asks_once_for_all(tmp_path: Path) -> None:
    said = str(DIGITS).replace("'", '"')
    with judge_server(lambda number, prompt: f"says {said}" if number > 1 else "says no") as server:
        found, rows = judge(server, tmp_path, [text(0), text(1)], form="json")
    assert len(server.bodies) == 3
    assert "logprobs" not in server.bodies[0]
    assert found.malformed == 1
    assert [row.composite for row in rows] == [2, 2]


def test_rounds_mean_and_spread(tmp_path: Path) -> None:
    """2, 4 and a malformed one for each: mean .5, spread of 1/4 and 3/4 by hand."""
    rounds: dict[str, int] = {}

    def script(number: int, prompt: str) -> str:
        rounds[criterion_of(prompt)] = rounds.get(criterion_of(prompt), 0) + 1
        return f"says {[2, 4, 'x'][rounds[criterion_of(prompt)] - 1]}"

    with judge_server(script) as server:
        options = {"rounds": 3, "temperature": 1, "malformed_attempts": 1, "concurrency": 1}
        _, (row,) = judge(server, tmp_path, [text(0)], **options)
        assert len(server.bodies) == 12
    for one in CRITERIA:
        assert row.score(one) == 0.5
        assert row.spread(one) == pytest.approx(0.125**0.5)
    assert row.unscored == {"malformed reply": 4}
    assert row.composite == 2


def test_what_is_there_twice_is_asked_once(tmp_path: Path) -> None:
    with judge_server(by_criterion) as server:
        _, rows = judge(server, tmp_path, [text(0), JudgedText("copy", text(0).document, text(0).summary)])
    assert len(server.bodies) == 4
    assert rows[0].composite == rows[1].composite == 2


def test_rows_that_are_refused_or_have_nothing(tmp_path: Path) -> None:
    def script(number: int, prompt: str) -> str:
        return "status 400" if "Bridge 1 " in prompt else by_criterion(number, prompt)

    texts = [text(0), text(1), JudgedText("r2", "", "", "no summary")]
    with judge_server(script) as server:
        found, rows = judge(server, tmp_path, texts)
    assert len(server.bodies) == 8
    assert [dict(row.unscored) for row in rows] == [{}, {"status 400": 4}, {"no summary": 1}]
    assert summary(rows)["scored"] == 1
    assert len(found.unscored) == 4


def test_the_cap_holds(tmp_path: Path) -> None:
    """Whatever the order of replies; what is left is open, and a higher cap goes on with it."""
    texts = [text(n) for n in range(30)]
    price = {"prompt": 2, "completion": 6}
    with judge_server(by_criterion) as server:
        found, rows = judge(server, tmp_path, texts, price=price, max_cost=0.05)
        assert found.stopped is not None
        assert found.stopped.startswith("max_cost 0.05 is reached")
        assert 0 < server.cost(2, 6) <= 0.05
        asked = len(server.bodies)
        assert asked < 120
        assert len(found.readings) == asked
        assert sum(sum(row.unscored.values()) for row in rows) == 120 - asked
        assert {why.partition(":")[0] for why in found.unscored.values()} == {"not asked"}
        found, rows = judge(server, tmp_path, texts, price=price, max_cost=5)
        assert len(server.bodies) == 120
        assert (found.stopped, summary(rows)["scored"]) == (None, 30)


def test_a_server_that_refuses_log_probabilities(tmp_path: Path) -> None:
    with judge_server(lambda number, prompt: "status 400") as server:
        with pytest.raises(UserError, match=r"status 400.*refuses, set --top_logprobs to 0$"):
            judge(server, tmp_path, [text(0)])
        with pytest.raises(UserError, match="status 400") as error:
            judge(server, tmp_path, [text(0)], top_logprobs=0)
        assert "top_logprobs" not in str(error.value)


def test_a_wrong_key_is_one_request(tmp_path: Path) -> None:
    with judge_server(by_criterion, key=KEY) as server:
        with pytest.raises(UserError, match=r"refuses the key.*--key_variable"):
            judge(server, tmp_path, [text(0)])
        assert len(server.bodies) == 1
