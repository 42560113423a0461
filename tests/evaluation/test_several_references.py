"""Several references of a row: how they are loaded, and that best and mean are what they say, metric by metric."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.config import DataConfig, LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import load_examples
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation import Evaluation, Scoring, score
from mlx_sumrl.evaluation.row_metrics import BERTSCORE_NAMES, REFERENCE_METRICS
from mlx_sumrl.rollouts.types import Completion, Group

ASKED = LengthConfig(target=4, tolerance=1)
REFERENCES = ("Ann met Bob in Paris.", "Two old friends met.", "Bob was in Paris in 1999")


class Overlap:
    """Stands for an encoder: shares of letters in common."""

    def score(self, texts, references):
        pairs = [(set(text), set(one)) for text, one in zip(texts, references, strict=True)]
        return np.array(
            [[len(t & r) / len(t), len(t & r) / len(r), len(t & r) / len(t | r)] for t, r in pairs]
        )


def group(text: str, references: tuple[str, ...]) -> Group:
    several = references if len(references) > 1 else ()
    example = Example("r", (1,), "p", "Ann met Bob, her friend, in Paris.", references[0], {}, several)
    return Group(example, (Completion((1, 2, 0), (0.0,) * 3, "stop", 0, text),))


@pytest.mark.usefixtures("wordnet")
def test_best_and_mean_of_each_metric_by_itself():
    text = "Two old friends and Bob were in Paris in 1998"
    alone = [
        score([group(text, (one,))], ASKED, Scoring(bertscore=Overlap())).rows[0].metrics
        for one in REFERENCES
    ]
    best = score([group(text, REFERENCES)], ASKED, Scoring("best", Overlap())).rows[0]
    mean = score([group(text, REFERENCES)], ASKED, Scoring("mean", Overlap())).rows[0]
    assert best.reference == REFERENCES[0]
    assert best.references == REFERENCES
    winners = set()
    for name in (*REFERENCE_METRICS, *BERTSCORE_NAMES):
        values = [one[name] for one in alone if one[name] is not None]
        assert best.metrics[name] == pytest.approx(max(values))
        assert mean.metrics[name] == pytest.approx(fmean(values))
        winners.add(values.index(max(values)))
    assert len(winners) > 1  # no one reference is best at all
    assert [one["entity_coverage"] for one in alone] == [1.0, None, 0.5]
    for name in set(best.metrics) - {*REFERENCE_METRICS, *BERTSCORE_NAMES}:
        assert best.metrics[name] == mean.metrics[name] == alone[0][name]


def test_the_file_keeps_them():
    found = score([group("Ann", REFERENCES), group("Ann", REFERENCES[:1])], ASKED)
    content = json.loads(json.dumps(found.to_json()))
    assert [row.get("references") for row in content["rows"]] == [list(REFERENCES), None]
    assert Evaluation.from_json(content) == found


def loaded(*records: dict[str, Any], which: str = "evaluation", **options: Any) -> list[Example]:
    from transformers import AutoTokenizer

    folder = Path(__file__).parents[3] / "shared" / "models" / "summarizer-5m"
    rows = Rows("posts", [Row(f"posts:{n}", record) for n, record in enumerate(records, start=1)])
    config = DataConfig(max_unusable_share=0.5, **options)
    return load_examples(rows, config, AutoTokenizer.from_pretrained(folder), 8, which).examples


@pytest.mark.usefixtures("shared")
def test_a_list_in_the_column_and_columns_for_more():
    listed = {"document": "a post", "summary": [" one ", "two"], "other": "three", "third": None}
    plain = {"document": "a post", "summary": "one", "other": "", "third": "four"}
    broken = [{**listed, "summary": wrong} for wrong in ([], ["one", 2], ["one", " "])]
    more = {"more_reference_columns": ("other", "third")}
    assert [one.references for one in loaded(listed, plain, **more)] == [
        ("one", "two", "three"),
        ("one", "four"),
    ]
    first, second = loaded(listed, plain)
    assert (first.reference, first.references) == ("one", ("one", "two"))
    assert (second.reference, second.references) == ("one", ())
    assert [one.id for one in loaded(listed, plain, listed, *broken)] == ["posts:1", "posts:2", "posts:3"]
    with pytest.raises(
        UserError, match=r"no column 'otter' \(data.more_reference_columns\).*did you mean 'other'"
    ):
        loaded(listed, more_reference_columns=("otter",))
    # Rows to train on need not have them.
    assert loaded({"document": "a", "summary": "b"}, which="train", **more)[0].reference == "b"
