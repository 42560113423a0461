"""Posts from a small grammar, with their summaries: a quickstart that needs no data and no download.

A post tells who did what, when, where and why, what it cost, who saw it, how the writer feels, and asks a
question. Its summary tells the same facts, as many as make it about 40 words long; its brief tells fewer, most
of the time, so that a model fine-tuned on briefs has yet to learn how much to say. All are built from the same
phrases in a vocabulary of a few hundred words, so that a tiny model has to learn little but to find and copy them.

Invariant: `make_posts` is a function of its arguments, and no two posts, training or evaluation, have the
same document.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mlx_sumrl.data import grammar_words as words

POST_WORDS = (60, 110)
"""Fewest and most words of a post."""
SUMMARY_WORDS = (37, 43)
"""Fewest and most words of a summary."""
BRIEF_WORDS = (12, 43)
"""Fewest and most words of a brief one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one post is about, as the phrases that post and summary share."""

    who: str
    """``my brother Tom``"""
    he: str
    him: str
    did: str
    """``sold my old guitar``"""
    thing: str
    """``guitar``"""
    when: str
    """``on Monday evening``"""
    where: str
    """``at the lake``"""
    why: str
    """``he needed money for a trip``"""
    cost: str
    """``forty dollars``"""
    witness: str
    """``my aunt Rosa``"""
    reaction: str
    """``he only laughed``"""
    feeling: str
    """``very angry``"""
    question: str
    """``ask him for the money``: what the writer may do."""


def make_posts(train: int, evaluation: int, seed: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """`train` and `evaluation` posts with the columns id, document, summary and brief.

    The training posts do not depend on how many evaluation posts are asked for.
    """
    seen: set[str] = set()
    made: list[list[dict[str, str]]] = []
    for name, count, sequence in zip(
        ("train", "evaluation"), (train, evaluation), np.random.SeedSequence(seed).spawn(2), strict=True
    ):
        rng = np.random.default_rng(sequence)
        posts: list[dict[str, str]] = []
        while len(posts) < count:
            facts = draw_facts(rng)
            document = tell(facts, rng)
            summary = summarise(facts, rng, SUMMARY_WORDS, words.ALWAYS_IN_A_SUMMARY)
            brief = summarise(facts, rng, BRIEF_WORDS)
            if document not in seen:
                seen.add(document)
                row = {"id": f"{name}-{len(posts) + 1}", "document": document}
                posts.append(row | {"summary": summary, "brief": brief})
        made.append(posts)
    return made[0], made[1]


def draw_facts(rng: np.random.Generator) -> Facts:
    """The facts of one post."""
    male = bool(rng.random() < 0.5)
    other_male = not male  # so that "he" and "she" are never the witness
    name, other_name = rng.permutation(len(words.MEN))[:2]
    he, him, his = ("he", "him", "his") if male else ("she", "her", "hers")
    deed, reasons = words.DEEDS[rng.integers(len(words.DEEDS))]
    thing = _one(rng, words.THINGS)

    def fit(phrase: str) -> str:
        return phrase.format(he=he, him=him, his=his)

    return Facts(
        who=f"my {_one(rng, words.MALE_ROLES if male else words.FEMALE_ROLES)} "
        f"{(words.MEN if male else words.WOMEN)[name]}",
        he=he,
        him=him,
        did=f"{deed} my {_one(rng, words.QUALITIES)} {thing}",
        thing=thing,
        when=_one(rng, words.TIMES),
        where=_one(rng, words.PLACES),
        why=fit(_one(rng, reasons)),
        cost=f"{_one(rng, words.NUMBERS)} dollars",
        witness=f"my {_one(rng, words.MALE_ROLES if other_male else words.FEMALE_ROLES)} "
        f"{(words.MEN if other_male else words.WOMEN)[other_name]}",
        reaction=fit(_one(rng, words.REACTIONS)),
        feeling=f"{_one(rng, words.DEGREES)} {_one(rng, words.FEELINGS)}",
        question=fit(_one(rng, words.QUESTIONS)),
    )


def tell(facts: Facts, rng: np.random.Generator) -> str:
    """The post: every fact, in one of several forms and orders, and filler up to a length drawn at random."""
    event = _one(rng, words.EVENT_FORMS)
    # The reason follows the event, so that "he" is who it should be; the rest may be told in any order.
    middle = [_one(rng, forms) for forms in (words.COST_FORMS, words.WITNESS_FORMS, words.REACTION_FORMS)]
    middle = [middle[i] for i in rng.permutation(len(middle))]
    feeling, question = _one(rng, words.FEELING_FORMS), _one(rng, words.QUESTION_FORMS)
    sentences = [event, _one(rng, words.WHY_FORMS), *middle]
    sentences.insert(int(rng.choice([2, len(sentences)])), feeling)
    texts = [_capital(form.format(**_phrases(facts))) for form in (*sentences, question)]
    openings, asides, closings = (
        [list(kind)[i] for i in rng.permutation(len(kind))] for kind in words.FILLERS
    )
    goal = int(rng.integers(POST_WORDS[0], POST_WORDS[1] + 1))
    # At most one opening, three asides before the question, and two closings.
    slots = [
        ("first", openings[0]),
        *(("aside", a) for a in asides[:3]),
        *(("last", c) for c in closings[:2]),
    ]
    before: list[str] = []
    inside: list[str] = []
    after: list[str] = []
    for i in rng.permutation(len(slots)):
        kind, filler = slots[i]
        length = sum(len(text.split()) for text in (*before, *texts, *inside, *after))
        if length + len(filler.split()) > goal and length >= POST_WORDS[0]:
            continue
        {"first": before, "aside": inside, "last": after}[kind].append(filler)
    return " ".join([*before, *texts[:-1], *inside, texts[-1], *after])


def summarise(
    facts: Facts, rng: np.random.Generator, within: tuple[int, int], always: tuple[int, ...] = ()
) -> str:
    """The event, and those other facts that bring the text closest to a number of words drawn evenly ``within``.

    ``always`` are places in `words.SUMMARY_CLAUSES` of facts that are not left out.
    """
    goal = int(rng.integers(within[0], within[1] + 1))
    optional = [i for i, (_, may_go) in enumerate(words.SUMMARY_CLAUSES) if may_go and i not in always]
    subsets = [left_out for size in range(len(optional) + 1) for left_out in combinations(optional, size)]
    candidates = [_summary(facts, subsets[i]) for i in rng.permutation(len(subsets))]

    def distance(text: str) -> tuple[bool, int]:
        length = len(text.split())
        return not within[0] <= length <= within[1], abs(length - goal)

    return min(candidates, key=distance)


def _summary(facts: Facts, left_out: tuple[int, ...]) -> str:
    kept = [clause for i, (clause, _) in enumerate(words.SUMMARY_CLAUSES) if i not in left_out]
    sentences = "".join(kept).format(**_phrases(facts)).split(". ")
    return ". ".join(_capital(sentence) for sentence in sentences)


def _phrases(facts: Facts) -> dict[str, str]:
    return {name: getattr(facts, name) for name in Facts.__slots__}


def _one(rng: np.random.Generator, phrases: tuple[str, ...]) -> str:
    return phrases[rng.integers(len(phrases))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
