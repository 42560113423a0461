"""The words and sentence forms of the grammar's posts. Few words, many combinations."""

from __future__ import annotations

from typing import Final

MEN: Final = ("Tom", "Ben", "Paul", "Mark", "Adam", "Sam", "Jack", "Peter", "Leo", "David")
WOMEN: Final = ("Anna", "Rosa", "Lucy", "Emma", "Kate", "Mary", "Jane", "Nina", "Ruth", "Clara")
MALE_ROLES: Final = ("brother", "uncle", "cousin", "neighbor", "boss", "friend", "roommate", "teacher")
FEMALE_ROLES: Final = ("sister", "aunt", "cousin", "neighbor", "boss", "friend", "roommate", "teacher")

QUALITIES: Final = ("old", "new", "red", "blue", "green", "small", "big", "favorite")
THINGS: Final = (
    *("bike", "guitar", "camera", "lamp", "clock", "chair", "kite", "radio", "phone", "tent", "drum"),
    *("coat", "hat", "bag", "book", "watch"),
)
_ACCIDENTS: Final = (
    "{he} was late for work",
    "{he} was very tired",
    "{he} was in a hurry",
    "{he} was on the phone",
    "{he} was thinking of something else",
    "{he} did not have enough light",
    "{he} did not listen to me",
)
_PLANS: Final = (
    "{he} needed money for a trip",
    "{he} wanted to make room at home",
    "{he} wanted to teach me a lesson",
    "{he} wanted to play a joke on me",
    "{he} thought that I did not need it",
    "{he} thought that it was {his}",
    "{he} was still mad at me",
)
DEEDS: Final = (
    ("lost", _ACCIDENTS),
    ("ruined", _ACCIDENTS),
    ("dropped", _ACCIDENTS),
    ("forgot", _ACCIDENTS),
    ("sold", _PLANS),
    ("hid", _PLANS),
    ("took", _PLANS),
    ("gave away", _PLANS),
)
"""What was done, with the reasons that make sense of it."""

_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES: Final = (
    *(f"on {day} {part}" for day in _DAYS for part in ("morning", "afternoon", "evening")),
    *(f"last {day}" for day in _DAYS),
    *(
        f"{number} {unit} ago"
        for number in ("two", "three", "four", "five")
        for unit in ("days", "weeks", "months")
    ),
)
PLACES: Final = (
    *("at the lake", "at the beach", "at the park", "at the market", "at the bus stop", "at the school"),
    *("at the train station", "at the office", "in the garden", "in the kitchen", "in the library"),
    *("in the parking lot", "near the river", "near the bridge", "behind the house", "behind the church"),
)
NUMBERS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
REACTIONS: Final = (
    "{he} only laughed",
    "{he} said sorry",
    "{he} just walked away",
    "{he} said that it was my fault",
    "{he} did not talk to me",
    "{he} did not answer my calls",
    "{he} promised to make it right",
    "{he} acted like nothing happened",
)
DEGREES: Final = ("very", "really", "so", "a bit")
FEELINGS: Final = (
    "angry",
    "sad",
    "upset",
    "hurt",
    "confused",
    "worried",
    "disappointed",
    "shocked",
    "annoyed",
    "unhappy",
)
QUESTIONS: Final = (
    "ask {him} for the money",
    "talk to {him} again",
    "write {him} a letter",
    "stop talking to {him}",
    "take something of {his}",
    "tell everyone about it",
    "wait a few more days",
    "just forget about it",
    "get help from a friend",
    "buy a new one and let it go",
)
"""What follows "should I"."""

EVENT_FORMS: Final = (
    "{when} {who} {did} {where}.",
    "{who} {did} {where} {when}.",
    "{when}, {where}, {who} {did}.",
    "it happened {where} {when}: {who} {did}.",
    "I was {where} {when}, and {who} {did}.",
    "so {who} {did}. It happened {when} {where}.",
)
WHY_FORMS: Final = (
    "{he} did it because {why}.",
    "it turns out that {why}.",
    "the reason is that {why}.",
    "{he} told me that {why}.",
)
COST_FORMS: Final = (
    "the {thing} cost me {cost}.",
    "I paid {cost} for the {thing}.",
    "the {thing} was not cheap: I paid {cost} for it.",
    "I had paid {cost} for the {thing}.",
)
WITNESS_FORMS: Final = (
    "{witness} saw it all.",
    "{witness} was there too and saw it all.",
    "{witness} saw it all and told me.",
)
REACTION_FORMS: Final = (
    "I asked {him} about it, and {reaction}.",
    "after that, {reaction}.",
    "and in the end, {reaction}.",
)
FEELING_FORMS: Final = (
    "I am {feeling}.",
    "now I am {feeling}.",
    "I feel {feeling} about it.",
    "all of this makes me feel {feeling}.",
)
QUESTION_FORMS: Final = (
    "should I {question}?",
    "what do you think, should I {question}?",
    "my question is this: should I {question}?",
    "I do not know what to do. Should I {question}?",
)
FILLERS: Final = (
    (
        "Sorry for the long post.",
        "I have never posted here before.",
        "I need some help with this.",
        "This may be a small thing to you.",
    ),
    (
        "I still think about it every day.",
        "We used to get along well before this.",
        "I know that there are bigger problems, but I can not let it go.",
        "I did not sleep well after that day.",
        "I do not want to make it worse.",
        "Maybe I am wrong here.",
        "It was a long day for all of us.",
    ),
    (
        "Thanks for reading.",
        "Please be kind.",
        "Tell me what you would do.",
        "I will read every answer.",
    ),
)
"""Sentences without facts: for the start, the middle and the end of a post."""

SUMMARY_CLAUSES: Final = (
    ("{who} {did}", False),
    (" {where}", True),
    (" {when}", True),
    (" because {why}", True),
    (".", False),
    (" I paid {cost} for it.", True),
    (" {witness} saw it all.", True),
    (" {reaction}.", True),
    (" I am {feeling} and want to know if I should {question}.", True),
)
"""What a summary is made of, in order, and whether it may be left out."""
ALWAYS_IN_A_SUMMARY: Final = (1, 2, 8)
"""Of the clauses that may be left out, those that only a brief one leaves out."""
