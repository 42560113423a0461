"""The evaluation as a whole: a sampler that says what it was asked, and results computed by hand."""

from __future__ import annotations

import json
import math

import pytest

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation import Evaluation, evaluate, score
from mlx_sumrl.rollouts.types import Completion, Group, Sampling

ASKED = LengthConfig(target=4, tolerance=1)
GREEDY = Sampling(temperature=0.0, max_tokens=8)


class Echo:
    """Answers with the reference, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int, Sampling, int]] = []

    def sample(self, examples, group_size, sampling, seed):
        self.calls.append(([example.id for example in examples], group_size, sampling, seed))
        return [
            Group(
                example, (Completion((1, 2, 3, 4, 0), (0.0,) * 5, "stop", 0, example.reference),) * group_size
            )
            for example in examples
        ]


def examples(count: int) -> list[Example]:
    return [Example(f"r{i}", (i,), f"prompt {i}", f"document {i}", f"reference {i}") for i in range(count)]


def test_summary_and_rows_by_hand(answer, wordnet):
    groups = [
        answer("red fox", 4, reference="red fox", id="a"),
        answer("red", 5, reference="red fox", id="b"),
        answer("blue", 8, "length", reference="red fox", id="c"),
    ]
    found = score(groups, ASKED)
    summary = found.summary
    assert summary["rows"] == 3
    assert summary["within"] == pytest.approx(2 / 3)
    assert summary["exact"] == summary["unfinished"] == pytest.approx(1 / 3)
    assert summary["length_mean"] == pytest.approx(17 / 3)
    assert summary["length_std"] == pytest.approx(math.sqrt((16 + 25 + 64) / 3 - (17 / 3) ** 2))
    assert summary["rouge1"] == summary["rougeL"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert summary["rouge2"] == summary["rouge2_recall"] == pytest.approx(1 / 3)
    assert summary["rouge1_recall"] == summary["rougeL_recall"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    # METEOR: two of two in one chunk; one of one and of two (F = .5 / (.9 + .05)), penalty one half; none.
    assert summary["meteor"] == pytest.approx(((1 - 0.5 / 8) + 0.5 / 0.95 * 0.5 + 0) / 3)
    assert found.meteor_missing is None
    assert [(row.id, row.text, row.length, row.finish_reason) for row in found.rows] == [
        ("a", "red fox", 4, "stop"),
        ("b", "red", 5, "stop"),
        ("c", "blue", 8, "length"),
    ]
    assert [row.metrics["within"] for row in found.rows] == [1, 1, 0]
    assert [row.metrics["exact"] for row in found.rows] == [1, 0, 0]


def test_json_is_plain_and_has_no_prompt(answer):
    found = score([answer("red", 4, reference="red fox", id="a")], ASKED)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["summary"] == found.summary
    assert set(read["rows"][0]) == {
        "id",
        "document",
        "reference",
        "text",
        "length",
        "finish_reason",
        "metrics",
    }
    assert read["rows"][0]["metrics"]["rouge1_recall"] == 0.5


def test_what_was_asked_is_kept_and_older_files_are_read(answer):
    found = score([answer("red", 6, reference="red fox", id="a"), answer("a b", 3, reference="b")], ASKED)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["asked"] == {"target": 4, "tolerance": 1, "unit": "tokens"}
    assert Evaluation.from_json(content) == found
    assert [row.metrics["length_error"] for row in found.rows] == [2.0, -1.0]
    assert (found.summary["length_error"], found.summary["length_error_abs"]) == (0.5, 1.5)
    assert found.summary["length_error_p50"] == 0.5
    assert found.summary["distinct_1_all"] == 1.0
    old = {
        "summary": {"rows": 1, "within": 1.0, "meteor": None},
        "meteor_missing": "no WordNet here",
        "rows": [{**content["rows"][0], "metrics": {"within": 1.0, "meteor": None}}],
    }
    read = Evaluation.from_json(old)
    assert read.meteor_missing == "no WordNet here"
    assert read.missing == {"meteor": "no WordNet here"}
    assert (read.unit, read.asked, read.options, read.prompts_sha256) == ("tokens", None, {}, None)
    assert read.rows[0].text == "red"
    assert Evaluation.from_json({**old, "meteor_missing": None}).missing == {}


def test_every_completion_of_a_group_is_a_row(answer):
    one = answer("red", 4, reference="red").completions[0]
    two = answer("blue", 9, reference="red").completions[0]
    group = Group(Example("r", (1,), "p", "d", "red"), (one, two))
    assert score([group], ASKED).summary["rouge1"] == 0.5


def test_batches_seeds_and_progress():
    sampler, seen = Echo(), []
    found = evaluate(
        sampler, examples(5), ASKED, GREEDY, batch_size=2, seed=7, progress=lambda *at: seen.append(at)
    )
    assert sampler.calls == [
        (["r0", "r1"], 1, GREEDY, 7),
        (["r2", "r3"], 1, GREEDY, 9),
        (["r4"], 1, GREEDY, 11),
    ]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert [row.id for row in found.rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert found.summary["rougeL"] == found.summary["exact"] == 1.0


def test_a_sampler_that_answers_something_else_is_refused():
    class Reversed(Echo):
        def sample(self, examples, group_size, sampling, seed):
            return super().sample(examples, group_size, sampling, seed)[::-1]

    class Twice(Echo):
        def sample(self, examples, group_size, sampling, seed):
            return super().sample(examples, 2, sampling, seed)

    class Short(Echo):
        def sample(self, examples, group_size, sampling, seed):
            return super().sample(examples[:-1], group_size, sampling, seed)

    with pytest.raises(ValueError, match="asked for 1 completion of 'r0', the sampler gave 1 of 'r1'"):
        evaluate(Reversed(), examples(2), ASKED, GREEDY, 2)
    with pytest.raises(ValueError, match="the sampler gave 2 of 'r0'"):
        evaluate(Twice(), examples(2), ASKED, GREEDY, 2)
    with pytest.raises(ValueError, match="shorter"):
        evaluate(Short(), examples(2), ASKED, GREEDY, 2)


@pytest.mark.parametrize(("count", "batch_size"), [(0, 2), (2, 0)])
def test_nothing_to_evaluate(count, batch_size):
    with pytest.raises(ValueError, match=f"cannot evaluate {count} examples in batches of {batch_size}"):
        evaluate(Echo(), examples(count), ASKED, GREEDY, batch_size)
    with pytest.raises(ValueError, match="no completion"):
        score([], ASKED)


def test_a_trivial_summariser_on_real_rows(dialogues, wordnet):
    """The lead of the dialogue says something of the summary, the summary itself says all of it."""
    rows = [Example(row["id"], (1,), "p", row["dialogue"], row["summary"]) for row in dialogues]

    def answers(texts):
        return [
            Group(example, (Completion((1, 0), (0.0, 0.0), "stop", 0, text),))
            for example, text in zip(rows, texts, strict=True)
        ]

    lead = score(answers([row["dialogue"][:150] for row in dialogues]), ASKED).summary
    perfect = score(answers([row["summary"] for row in dialogues]), ASKED).summary
    for name in ("rouge1", "rouge2", "rougeL", "rougeL_recall"):
        assert perfect[name] == pytest.approx(1.0)
        assert 0.0 < lead[name] < 0.6
    assert perfect["meteor"] > 0.99
    assert 0.05 < lead["meteor"] < 0.5
