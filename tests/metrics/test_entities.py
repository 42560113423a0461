"""Names, numbers and titles, case by case; and that the coverage tells real summaries from others'."""

from __future__ import annotations

from statistics import fmean

import pytest

from mlx_sumrl.metrics.entities import entities, entity_coverage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Bank of England raised rates on Tuesday.", {"bank of england", "tuesday"}),
        ("But Obama's aide left.", {"obama"}),
        ("Barack Obama left. Tomorrow we follow.", {"barack obama"}),
        ("NATO agreed. Yesterday nothing happened.", {"nato"}),
        ("It sold 2,500 of them, 3.5% more, by 14:30.", {"2500", "3.5", "14 30"}),
        ('She read "The Great Gatsby" and said, "Go home!"', {"the great gatsby"}),
        ("How's Mary? I'm fine, Mr. Green.", {"mary", "green"}),
        ("他今年25岁，读了《红楼梦》。", {"25", "红 楼 梦"}),  # noqa: RUF001
        ("nothing of note happened here", set()),
        ("", set()),
    ],
)
def test_what_is_one(text, expected):
    assert {" ".join(one) for one in entities(text)} == expected


def test_coverage_by_hand():
    source = "In 2019 Ann Lee moved to Paris with 1,200 books."
    assert len(entities(source)) == 4
    assert entity_coverage("ann lee took 1200 books along", source) == 2 / 4
    assert entity_coverage("Ann went to Paris.", source) == 1 / 4  # Ann alone is not Ann Lee
    assert entity_coverage("", source) == 0.0
    assert entity_coverage("Ann Lee", "somebody left") is None
    # Part of a word is no mention.
    assert entity_coverage("Parisian", "They met in Paris.") == 0.0


def test_a_rows_own_dialogue_has_more_of_its_names_than_another_rows(dialogues):
    def mean(shift: int) -> float:
        found = [
            entity_coverage(dialogues[at - shift]["dialogue"], row["summary"])
            for at, row in enumerate(dialogues)
        ]
        return fmean(one for one in found if one is not None)

    assert mean(0) > mean(1) + 0.2
