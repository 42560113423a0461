"""Posts of the grammar: what a person, and a tiny model, has to find in them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.data.grammar import SUMMARY_WORDS, draw_facts, make_posts, summarise, tell
from mlx_sumrl.data.grammar_words import ALWAYS_IN_A_SUMMARY


@pytest.fixture(scope="module")
def posts() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    return make_posts(1200, 150, seed=0)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def test_counts_columns_and_ids(posts: Any) -> None:
    train, evaluation = posts
    assert (len(train), len(evaluation)) == (1200, 150)
    assert all(set(post) == {"id", "document", "summary", "brief"} for post in train + evaluation)
    assert len({post["id"] for post in train + evaluation}) == 1350


def test_no_document_twice(posts: Any) -> None:
    assert len({post["document"] for post in posts[0] + posts[1]}) == 1350


def test_evaluation_events_are_new(posts: Any) -> None:
    # Not only other words around the same story: the summaries' first sentences differ too.
    event = {post["summary"].split(".")[0] for post in posts[0]}
    assert not event & {post["summary"].split(".")[0] for post in posts[1]}


def test_deterministic_in_seed() -> None:
    assert make_posts(20, 5, 1) == make_posts(20, 5, 1)
    assert make_posts(20, 5, 1)[0] == make_posts(20, 9, 1)[0]
    assert make_posts(20, 5, 1)[0] != make_posts(20, 5, 2)[0]


def test_lengths(posts: Any) -> None:
    lengths = np.array([len(post["summary"].split()) for post in posts[0]])
    assert lengths.min() >= 37
    assert lengths.max() <= 43
    assert abs(lengths.mean() - 40) < 1
    # Briefs are spread over their whole range: each quarter of it has between a tenth and a half of them.
    briefs = np.array([len(post["brief"].split()) for post in posts[0]])
    assert briefs.min() >= 12
    assert briefs.max() <= 43
    share = np.histogram(briefs, bins=[12, 20, 28, 36, 44])[0] / len(briefs)
    assert share.min() > 0.1
    assert share.max() < 0.5
    documents = [len(post["document"].split()) for post in posts[0]]
    assert min(documents) >= 60
    assert max(documents) <= 110


def test_vocabulary_is_small(posts: Any) -> None:
    assert (
        250
        <= len({word for post in posts[0] for word in words(post["document"] + " " + post["summary"])})
        <= 400
    )


def test_summary_says_nothing_but_the_post(posts: Any) -> None:
    glue = {"if", "i", "want", "to", "know", "am", "and", "paid", "for", "it", "because"}
    for post in posts[0]:
        for column in ("summary", "brief"):
            assert set(words(post[column])) - set(words(post["document"])) <= glue


def test_every_fact_is_told() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        facts = draw_facts(rng)
        post = tell(facts, rng).lower()
        summary = summarise(facts, rng, SUMMARY_WORDS, ALWAYS_IN_A_SUMMARY).lower()
        always = (facts.who, facts.did, facts.where, facts.when, facts.feeling, facts.question)
        sometimes = (facts.why, facts.cost, facts.witness, facts.reaction)
        for phrase in always + sometimes:
            assert phrase.lower() in post
        for phrase in always:
            assert phrase.lower() in summary
        assert not {facts.who.split()[-1]} & {facts.witness.split()[-1]}


def test_plain_sentences(posts: Any) -> None:
    for post in posts[0]:
        for text in (post["document"], post["summary"], post["brief"]):
            assert not re.search(r"[{}_]|  | [.,?:]|\.\.", text)
            assert re.fullmatch(r"(?:[A-Z][^.?]*[.?] )*[A-Z][^.?]*[.?]", text), text
