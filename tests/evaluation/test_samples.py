"""Several samples of a prompt: what is scored, how much they vary, and what is refused."""

from __future__ import annotations

import json
from statistics import fmean, stdev

import pytest

from mlx_sumrl.config import DataConfig, LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation import Evaluation, evaluate, score, score_samples
from mlx_sumrl.evaluation.asked_prompts import prompts_sha256
from mlx_sumrl.evaluation.consistency import consistency_of
from mlx_sumrl.rollouts.types import Completion, Group, Sampling

ASKED = LengthConfig(target=4, tolerance=1)
DRAWN = Sampling(temperature=0.7, max_tokens=8)


def completion(text: str, length: int) -> Completion:
    return Completion((*range(1, length + 1), 0), (0.0,) * (length + 1), "stop", 0, text)


def group(id: str, *texts: str) -> Group:
    example = Example(id, (1,), "p", "the red fox ran home", "red fox")
    return Group(example, tuple(completion(text, 3 + at) for at, text in enumerate(texts)))


def test_rows_are_the_first_samples_and_the_others_stand_beside_them():
    found = score_samples([group("a", "red fox", "red", "blue"), group("b", "fox", "fox", "fox")], ASKED)
    alone = score([group("a", "red fox"), group("b", "fox")], ASKED)
    assert [(row.id, row.text, row.metrics) for row in found.rows] == [
        (row.id, row.text, row.metrics) for row in alone.rows
    ]
    assert [sample.text for sample in found.rows[0].samples] == ["red", "blue"]
    assert found.rows[0].samples[0].metrics["rouge1"] == pytest.approx(2 / 3)
    assert {name: found.summary[name] for name in alone.summary} == alone.summary
    # ROUGE-1 of 1, 2/3 and 0; lengths 3, 4 and 5 in both rows.
    rouge = stdev([1, 2 / 3, 0]) / fmean([1, 2 / 3, 0])
    assert found.rows[0].consistency["rouge1"] == pytest.approx(rouge)
    assert found.rows[1].consistency["rouge1"] == 0.0
    assert found.summary["consistency_rouge1"] == pytest.approx(rouge / 2)
    assert found.summary["consistency_length"] == pytest.approx(1 / 4)
    # Of what is yes or no, or may be below 0, no share of the mean says anything.
    unvaried = ("within", "exact", "length_error", "ends_sentence", "whole_sentences")
    assert not {f"consistency_{name}" for name in unvaried} & set(found.summary)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Evaluation.from_json(content) == found
    assert not [
        name for name in alone.to_json()["rows"][0] if name in ("samples", "consistency", "references")
    ]


def test_coefficient_of_variation_by_hand():
    assert consistency_of([2.0, 4.0]) == pytest.approx(2**0.5 / 3)
    assert consistency_of([0.5, 0.5, 0.5]) == 0.0
    assert consistency_of([0.0, 0.0]) is consistency_of([1.0]) is consistency_of([1.0, None]) is None


def test_groups_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="groups of 1 to 2 completions"):
        score_samples([group("a", "red"), group("b", "red", "fox")], ASKED)


class Numbered:
    """Writes the number of the sample, and remembers how many were asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def sample(self, examples, group_size, sampling, seed):
        self.sizes.append(group_size)
        return [Group(one, tuple(completion(f"fox {at}", 4) for at in range(group_size))) for one in examples]


def test_evaluate_draws_them_and_says_how():
    examples = [Example(f"r{at}", (at,), "p", f"document {at}", "fox 0") for at in range(3)]
    sampler = Numbered()
    found = evaluate(sampler, examples, ASKED, DRAWN, 2, 5, data=DataConfig(), samples=3)
    assert sampler.sizes == [3, 3]
    assert [row.text for row in found.rows] == ["fox 0"] * 3
    assert [len(row.samples) for row in found.rows] == [2, 2, 2]
    decoding = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 8, "min_tokens": 0, "samples": 3}
    assert found.options == {"decoding": decoding, "seed": 5, "batch_size": 2}
    assert found.prompts_sha256 == prompts_sha256(examples, DataConfig(), ASKED)
    assert evaluate(sampler, examples, ASKED, DRAWN, 2).prompts_sha256 is None
    with pytest.raises(ValueError, match="cannot draw 0 samples"):
        evaluate(sampler, examples, ASKED, DRAWN, 2, samples=0)


def test_the_hash_is_of_what_was_asked_and_not_of_how_it_is_encoded():
    def example(document: str = "d", prompt: str = "p", **fields: str) -> Example:
        return Example("r", (1,), prompt, document, "s", fields)

    data, asked = DataConfig(), LengthConfig()
    base = prompts_sha256([example()], data, asked)
    assert base == prompts_sha256([example(prompt="<|user|>p", title="x")], data, asked)
    assert base == prompts_sha256([example()], data.asking_in(asked.unit), asked)
    titled = DataConfig(instruction="{title}: {document}")
    different = [
        prompts_sha256([example("e")], data, asked),
        prompts_sha256([example()] * 2, data, asked),
        prompts_sha256([example()], DataConfig(system="Be brief."), asked),
        prompts_sha256([example()], DataConfig(instruction="Sum up: {document}"), asked),
        prompts_sha256([example()], data, LengthConfig(target=32)),
        prompts_sha256([example()], data, LengthConfig(unit="words")),
        *(prompts_sha256([example(title=one)], titled, asked) for one in "xy"),
    ]
    assert len({base, *different}) == len(different) + 1
