"""Pairs in both orders: outcomes and position bias by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.pairwise import PairedRow, pair_inquiries, paired_row, pairs_of, pairwise_summary
from mlx_sumrl.judging.rows import Judged, JudgedText

from .made import ask, config, judge_server, parts_of, text


def judged(name: str, *texts: JudgedText) -> Judged:
    return Judged(name, Path(f"{name}.json"), texts, None)


def test_outcomes_of_both_orders() -> None:
    """Ours is A in the first order and B in the second."""
    outcomes = {
        ("A", "B"): "win",
        ("B", "A"): "loss",
        **dict.fromkeys(
            [("A", "A"), ("B", "B"), ("tie", "tie"), ("A", "tie"), ("tie", "B"), ("tie", "A")], "tie"
        ),
    }
    for both, outcome in outcomes.items():
        assert PairedRow("r", [both]).outcome == outcome  # type: ignore[list-item]


def test_rounds_vote() -> None:
    win, loss, tie = ("A", "B"), ("B", "A"), ("A", "A")
    for rounds, outcome in (
        ([win, win, loss], "win"),
        ([win, tie, loss], "tie"),
        ([loss, tie], "loss"),
        ([], None),
    ):
        assert PairedRow("r", list(rounds)).outcome == outcome  # type: ignore[arg-type]


def test_summary_by_hand() -> None:
    """Three wins, one loss, a tie by place (A, A), one by agreement."""
    replies = [("A", "B")] * 3 + [("B", "A"), ("A", "A"), ("tie", "tie")]
    rows = [PairedRow(f"r{n}", [both]) for n, both in enumerate(replies)]  # type: ignore[list-item]
    rows.append(PairedRow("r6", [], Counter({"malformed reply": 1})))
    found = pairwise_summary(rows)
    assert (found["win"], found["tie"], found["loss"], found["scored"], found["rows"]) == (3, 2, 1, 6, 7)
    assert found["win_rate"] == pytest.approx(4 / 6)
    assert found["p_value"] == pytest.approx(2 * (1 + 4) / 16)  # 3 or 4 of 4 fair coins, either way
    assert found["first_preferred"] == pytest.approx((3 + 1 + 2) / 10)  # ten preferences, two ties
    assert found["order_decided"] == pytest.approx(1 / 6)
    assert found["unscored"] == {"malformed reply": 1}
    nothing = pairwise_summary([])
    assert (
        nothing["win_rate"]
        is nothing["p_value"]
        is nothing["first_preferred"]
        is nothing["order_decided"]
        is None
    )


def test_both_orders_are_asked(tmp_path: Path) -> None:
    """A judge that likes the word *shut*, and one that likes the first place."""
    ours = [text(n, f"Bridge {n} shut.") for n in range(4)]
    theirs = [text(n, f"Bridge {n} is not open.") for n in range(4)]

    def likes_a_word(number: int, prompt: str) -> str:
        return "says A" if "shut" in parts_of(prompt)["SUMMARY A"] else "says B"

    for script, outcome, first, decided in (
        (likes_a_word, "win", 0.5, 0),
        (lambda number, prompt: "says A", "tie", 1, 1),
        (lambda number, prompt: "says TIE", "tie", None, 0),
    ):
        with judge_server(script) as server:
            options = config(server)
            pairs = list(zip(ours, theirs, strict=True))
            wanted = [one for pair in pairs for both in pair_inquiries(*pair, options) for one in both]
            found = ask(options, tmp_path / f"{outcome}{first}.jsonl", wanted)
            assert len(server.bodies) == 8
            firsts = [parts_of(body["messages"][0]["content"])["SUMMARY A"] for body in server.bodies]
            assert Counter(firsts) == Counter(one.summary for one in ours + theirs)
        rows = [paired_row(*pair, found, options) for pair in pairs]
        assert [row.outcome for row in rows] == [outcome] * 4
        assert (pairwise_summary(rows)["first_preferred"], pairwise_summary(rows)["order_decided"]) == (
            first,
            decided,
        )


def test_a_reply_that_is_no_preference(tmp_path: Path) -> None:
    with judge_server(lambda number, prompt: "says A" if number == 1 else "says Neither.") as server:
        options = config(server, malformed_attempts=2, concurrency=1)
        wanted = [one for both in pair_inquiries(text(0), text(0, "x"), options) for one in both]
        row = paired_row(text(0), text(0, "x"), ask(options, tmp_path / "l.jsonl", wanted), options)
    assert len(server.bodies) == 3
    assert (row.outcome, row.unscored) == (None, {"malformed reply": 1})


def test_rows_of_other_documents() -> None:
    with pytest.raises(UserError, match=r"a.json has 2 rows and b.json has 1"):
        pairs_of(judged("a", text(0), text(1)), judged("b", text(0)))
    with pytest.raises(UserError, match=r"row 'r0' of a.json stands beside row 'r1' of b.json"):
        pairs_of(judged("a", text(0)), judged("b", text(1)))
    with pytest.raises(UserError, match="another document"):
        pairs_of(judged("a", text(0)), judged("b", JudgedText("r0", "Another text.", "x")))
    empty = JudgedText("r0", "", "", "no summary")
    assert pairs_of(judged("a", text(0)), judged("b", empty)) == [(text(0), empty)]
