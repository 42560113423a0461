"""Numbers over seeds, and the tables they stand in: computed again with numpy, and read back from the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mlx_sumrl.study.budgets import Budget
from mlx_sumrl.study.numbers import MEDIAN, Line, line_of
from mlx_sumrl.study.tables import Trained, budget_notes, gap_notes, markdown, results_table, to_json

SUMMARIES = {
    "a-seed0": {
        "within": 0.5,
        "rougeL": 0.25,
        "meteor": None,
        "length_mean": 60.0,
        "repetition": 0.0,
        "distinct_2_all": 0.25,
    },
    "a-seed1": {
        "within": 0.9,
        "rougeL": 0.35,
        "meteor": None,
        "length_mean": 66.5,
        "repetition": 0.1,
        "distinct_2_all": 0.13,
    },
    "noise": {"within": 1.0, "rougeL": 0.01, "meteor": None, "length_mean": 64.0, "repetition": 0.9},
}
PERPLEXITIES: dict[str, list[float | None]] = {
    "a-seed0": [3.0, 5.0, None, 1e9],
    "a-seed1": [2.0, 4.0, 9.0, 11.0],
    "noise": [None],
}


@pytest.fixture
def lines(tmp_path: Path) -> list[Line]:
    for name, summary in SUMMARIES.items():
        rows: list[dict[str, Any]] = [{"metrics": {"perplexity": one}} for one in PERPLEXITIES[name]]
        (tmp_path / f"{name}.json").write_text(json.dumps({"summary": summary, "rows": rows}))
    return [line_of("a", ["a-seed0", "a-seed1", "a-seed2"], tmp_path), line_of("noise", ["noise"], tmp_path)]


def test_means_and_spreads_over_the_seeds_that_are_there(lines: list[Line]) -> None:
    a, noise = lines
    assert list(a.files) == ["a-seed0", "a-seed1"]
    assert a.mean("rougeL") == pytest.approx(np.mean([0.25, 0.35]))
    assert a.spread("rougeL") == pytest.approx(np.std([0.25, 0.35], ddof=1))
    medians = [np.median([3, 5, 1e9]), np.median([2, 4, 9, 11])]
    assert a.mean(MEDIAN) == pytest.approx(np.mean(medians)), "one noisy row moves no median"
    assert (a.mean("meteor"), a.spread("meteor"), noise.spread("within"), noise.mean(MEDIAN)) == (None,) * 4


def test_a_mean_of_some_seeds_only_is_told() -> None:
    """As where a study goes on that was begun before its metric was there; not where no seed has it."""
    old, new = {"within": 1.0, "meteor": None}, {"within": 0.9, "meteor": None, "whole_sentences": 0.5}
    lines = [Line("a", {"a-seed0": old, "a-seed1": new}), Line("b", {"b-seed0": new}), Line("c", {"c": old})]
    (note,) = gap_notes({"held": lines})
    assert note.startswith("Whole sentences of a on held is a mean without a-seed0,")
    assert gap_notes({"held": lines[1:]}) == []


def test_the_tables_say_the_numbers(lines: list[Line]) -> None:
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as said:
        console.print(results_table("the study", lines))
    text = said.get()
    assert max(map(len, text.splitlines())) <= 80
    shown = [line.split() for line in text.splitlines()]
    assert ["a", "(2)", "70.0", "63.2", "30.0", "-", "5.0", "-", "19.0", "-", "5.8"] in shown
    assert ["±28.3", "±4.6", "±7.1", "±7.1", "±8.5", "±1.1"] in shown
    trained = [Trained("a", Budget(10, 80), {"a-seed0": Budget(10, 80, 500), "a-seed1": Budget(7, 56, 400)})]
    notes = budget_notes(trained)
    assert notes == ["a-seed1 made 7 of the 10 steps it was allowed (56 of 80 rollouts)"]
    page = markdown("the study", {"held": lines}, trained, notes)
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]
    heads = [row for row in cells if row[0] == "Policy"]
    assert len(heads) == 1
    a = dict(zip(heads[0], next(row for row in cells if row[0] == "a"), strict=True))
    assert (a["Within"], a["METEOR"], a["Seeds"]) == ("70.0 ± 28.3", "-", "2")
    assert ["a", "2", "8", "10", "68", "80", "450"] in cells
    assert f"- {notes[0]}" in page
    found = to_json("the study", {"held": lines}, trained, notes)
    assert json.loads(json.dumps(found))["sets"]["held"]["a"]["runs"]["a-seed1"]["within"] == 0.9
    assert found["trained"]["a"]["made"]["a-seed1"]["tokens"] == 400


def test_noise_of_the_right_length_looks_bad(shared: Path, tmp_path: Path) -> None:
    """A real model's summaries, and as many tokens drawn at random and at a loop, scored as `recipes.evaluate` does."""
    from mlx_sumrl.config import LengthConfig, PolicyConfig
    from mlx_sumrl.data.example import Example
    from mlx_sumrl.evaluation.perplexity import perplexities
    from mlx_sumrl.evaluation.score import score
    from mlx_sumrl.policy.loading import load_policy
    from mlx_sumrl.rollouts import LocalSampler, Sampling
    from mlx_sumrl.rollouts.types import Completion, Group

    policy = load_policy(PolicyConfig(model=str(shared / "models" / "summarizer-5m"), dtype="float32"))
    with (shared / "data" / "dialogsum.validation.jsonl").open() as file:
        rows = [json.loads(line) for line, _ in zip(file, range(2), strict=False)]
    examples = [
        Example(row["id"], policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Summarize the conversation.\n\n{row['dialogue'][:600]}"}],
            add_generation_prompt=True, return_dict=False,
        ), "", row["dialogue"], row["summary"])
        for row in rows
    ]  # fmt: skip
    real = LocalSampler(policy).sample(examples, 1, Sampling(temperature=0, max_tokens=96), seed=0)
    draw = np.random.default_rng(0)

    def written(example: Example, ids: list[int]) -> Group:
        made = Completion((*ids, policy.stop_id), (0.0,) * (len(ids) + 1), "stop", 0, policy.decode(ids))
        return Group(example, (made,))

    random = [written(one, [int(n) for n in draw.integers(100, 4000, 64)]) for one in examples]
    words = policy.tokenizer.encode(" the dog", add_special_tokens=False)
    loops = [written(one, (words * 64)[:64]) for one in examples]
    for name, groups in (("real", real), ("random", random), ("loops", loops)):
        scored = score(groups, LengthConfig())
        content = scored.to_json()
        for row, value in zip(content["rows"], perplexities(policy, groups), strict=True):
            row["metrics"]["perplexity"] = value
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    summaries, drawn, looped = (line_of(name, [name], tmp_path) for name in ("real", "random", "loops"))

    def value(line: Line, metric: str) -> float:
        found = line.mean(metric)
        assert found is not None
        return found

    assert value(drawn, "within") == value(looped, "within") == 1, (
        "the length alone says that they are perfect"
    )
    assert value(drawn, MEDIAN) > 100 * value(summaries, MEDIAN)
    assert value(looped, "repetition") > 0.9 > 0.3 > value(summaries, "repetition")
    assert value(looped, "distinct_2") < 0.1 < 0.5 < value(summaries, "distinct_2")
    for noise in (drawn, looped):
        assert value(noise, "rouge1") < 0.3 * value(summaries, "rouge1")
        for metric in ("ends_sentence", "whole_sentences"):
            assert value(noise, metric) < value(summaries, metric)


def test_one_text_for_every_document_looks_bad() -> None:
    """By hand: each text has no pair of words twice, all four together have one in four."""
    from mlx_sumrl.config import LengthConfig
    from mlx_sumrl.data.example import Example
    from mlx_sumrl.evaluation.score import score
    from mlx_sumrl.rollouts.types import Completion, Group

    def summary(*texts: str) -> dict[str, float | None]:
        groups = [
            Group(
                Example(str(i), (1,), "p", "document", "reference"),
                (Completion((1, 0), (0.0, 0.0), "stop", 0, text),),
            )
            for i, text in enumerate(texts)
        ]
        return score(groups, LengthConfig()).summary

    same = summary(*["We propose a method."] * 4)
    own = summary("Ben is very late.", "Anna asks for tea.", "They went home early.", "Nobody saw the car.")
    assert (same["distinct_2"], own["distinct_2"]) == (1, 1)
    assert (same["distinct_2_all"], own["distinct_2_all"]) == (1 / 4, 1)
