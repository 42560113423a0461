"""The account of a batch: what it counts, and what it refuses to close."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.delivery import Delivered, Delivery, Totals
from cluster.wire import CompletionReply, GroupReply, prompt_fingerprint

PROMPTS = [(1, 2), (3,), (4, 5, 6)]


def group(place: int, version: int = 0) -> Delivered:
    one = CompletionReply(token_ids=(7,), logprobs=(-1.0,), finish_reason="stop")
    return Delivered(GroupReply(prompt=prompt_fingerprint(PROMPTS[place]), completions=(one,)), version, "w")


def test_a_batch_closes_only_when_it_is_whole() -> None:
    totals = Totals()
    delivery = Delivery(PROMPTS, totals)
    assert totals.lost == 3
    assert delivery.take(1, group(1))
    assert delivery.take(0, group(0))
    assert not delivery.whole
    with pytest.raises(AssertionError, match="places open"):
        delivery.closed()
    assert delivery.take(2, group(2))
    assert not delivery.take(1, group(1, version=5))
    assert [one.group.prompt for one in delivery.closed()] == delivery.fingerprints
    assert delivery.done[1].version == 0  # the first one counts
    assert (totals.asked, totals.delivered, totals.duplicates, totals.lost) == (3, 3, 1, 0)


def test_another_prompt_s_group_is_never_taken() -> None:
    delivery = Delivery(PROMPTS, Totals())
    with pytest.raises(AssertionError, match="another's prompt"):
        delivery.take(0, group(1))


def test_what_is_too_old_is_open_again() -> None:
    totals = Totals()
    delivery = Delivery(PROMPTS, totals)
    for place, version in ((0, 3), (1, 4), (2, 2)):
        delivery.take(place, group(place, version))
    assert delivery.too_old(4) == [0, 2]
    assert not delivery.whole
    assert (totals.stale, totals.requeued, totals.failed) == (2, 2, 0)
    assert delivery.take(0, group(0, 4))
    assert delivery.too_old(4) == []


@given(st.lists(st.tuples(st.sampled_from(["take", "old", "fail"]), st.integers(0, 2), st.integers(0, 3))))
def test_the_account_is_even_whatever_happens(events: list[tuple[str, int, int]]) -> None:
    totals = Totals()
    delivery = Delivery(PROMPTS, totals)
    taken = 0
    for what, place, version in events:
        if what == "take":
            taken += 1
            delivery.take(place, group(place, version))
        elif what == "old":
            delivery.too_old(version)
        else:
            delivery.failed(1)
    # Everything that came is here, was too old, or was a duplicate.
    assert taken == len(delivery.done) + totals.stale + totals.duplicates
    assert totals.requeued == totals.stale + totals.failed
    if not delivery.whole:
        delivery.discarded()
    else:
        delivery.closed()
    assert totals.lost == 0
