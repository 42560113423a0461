"""Replies made right by hand pass; each single thing wrong with one is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.replies import complaint_about, complaint_about_score
from cluster.wire import (
    CompletionReply,
    Draw,
    GenerateReply,
    GenerateRequest,
    GroupReply,
    ScoreReply,
    prompt_fingerprint,
)

PROMPTS = ((10, 11), (12,))


def request(**changes: Any) -> GenerateRequest:
    given: dict[str, Any] = {
        "request_id": "r",
        "prompts": PROMPTS,
        "group_size": 2,
        "draw": Draw(max_tokens=3),
        "seed": 1,
        "stop_ids": (2,),
        "policy_version": 5,
    }
    return GenerateRequest(**{**given, **changes})


def completion(*ids: int, reason: Any = "stop", logprobs: tuple[float, ...] | None = None) -> CompletionReply:
    return CompletionReply(token_ids=ids, logprobs=logprobs or (-0.5,) * len(ids), finish_reason=reason)


GOOD = (completion(7, 2), completion(7, 8, 9, reason="length"))


def reply(first: tuple[CompletionReply, ...] = GOOD, **changes: Any) -> GenerateReply:
    groups = tuple(
        GroupReply(prompt=prompt_fingerprint(prompt), completions=completions)
        for prompt, completions in zip(PROMPTS, (first, GOOD), strict=True)
    )
    return GenerateReply(**{"request_id": "r", "policy_version": 5, "groups": groups, **changes})


def test_a_right_reply_passes() -> None:
    assert complaint_about(reply(), request(), 100) is None
    assert complaint_about(reply(policy_version=9), request(policy_version=None), 100) is None
    assert complaint_about(reply((completion(2), completion(9, 9, 2))), request(), 100) is None
    # Rounding of a float32 softmax: log of what is 1 may come out as a little more than 0.
    tiny = completion(7, 2, logprobs=(3e-7, -0.1))
    assert complaint_about(reply((tiny, tiny)), request(), 100) is None


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (completion(100, 2), "token 100 of a vocabulary of 100"),
        (completion(7, 8, 9, 2), "4 tokens where 3 is the most"),
        (completion(2, 7, 2), "went on after a stop token"),
        (completion(7, 8, reason="length"), "cut a completion at 2 of 3"),
        (completion(7, 8), "'stop' of a completion that ends with token 8"),
        (completion(7, 8, 2, reason="length"), "'length' of a completion that ends with token 2"),
        (completion(7, 2, logprobs=(-0.1,)), "1 log-probabilities of 2 tokens"),
        (completion(7, 2, logprobs=(-0.1, 0.2)), "which is above 0"),
    ],
)
def test_one_bad_completion_among_good_ones(bad: CompletionReply, said: str) -> None:
    wrong = complaint_about(reply((GOOD[0], bad)), request(), 100)
    assert wrong is not None
    assert said in wrong


def test_the_frame() -> None:
    groups = reply().groups
    for changed, said in (
        ({"request_id": "s"}, "answers request s, not r"),
        ({"policy_version": 4}, "sampled version 4, not 5"),
        ({"groups": groups[:1]}, "1 groups for 2 prompts"),
        ({"groups": groups[::-1]}, "answered another prompt in place 0"),
        ({"groups": (groups[0], groups[0])}, "answered another prompt in place 1"),
    ):
        wrong = complaint_about(reply(**changed), request(), 100)  # type: ignore[arg-type]
        assert wrong is not None
        assert said in wrong
    assert "3 completions of a prompt, not 2" in str(complaint_about(reply((*GOOD, GOOD[0])), request(), 100))


def test_min_tokens() -> None:
    """The stop token may not be among the first min_tokens, so it is the one after them at the earliest."""
    draw = Draw(max_tokens=3, min_tokens=1)
    assert complaint_about(reply(), request(draw=draw), 100) is None
    early = reply((completion(2), GOOD[1]))
    assert "before min_tokens 1" in str(complaint_about(early, request(draw=draw), 100))


def test_scores() -> None:
    right = ScoreReply(policy_version=1, logprobs=(-1.0, -2.0))
    assert complaint_about_score(right, 3, 1) is None
    assert "2 log-probabilities of 3 tokens" in str(complaint_about_score(right, 4, 1))
    assert "version 1, not 2" in str(complaint_about_score(right, 3, 2))
    assert "above 0" in str(complaint_about_score(ScoreReply(policy_version=1, logprobs=(0.5,)), 2, 1))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.sampled_from(["stop", "length"]))
def test_a_reason_is_right_in_exactly_one_way(ids: list[int], reason: str) -> None:
    """All short sequences: valid means that the last id stops and none before, or that it is full without any."""
    one = completion(*ids, reason=reason)
    stops = [token == 2 for token in ids]
    valid = (reason == "stop" and stops == [False] * (len(ids) - 1) + [True]) or (
        reason == "length" and not any(stops) and len(ids) == 3
    )
    assert (complaint_about(reply((one, one)), request(), 100) is None) == valid
