"""Evaluations side by side, cell for cell."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from mlx_sumrl.evaluation import Evaluation, comparison_markdown, comparison_table, metrics_table


@pytest.fixture
def evaluations() -> dict[str, Evaluation]:
    base = {
        "rows": 48,
        "within": 1 / 48,
        "exact": 0.0,
        "length_mean": 30.04,
        "length_std": 11.96,
        "unfinished": 0.0,
        "rouge1": 0.3333,
        "rouge2": 0.1,
        "rougeL": 0.2714,
        "rouge1_recall": 0.4,
        "rouge2_recall": 0.2,
        "rougeL_recall": 0.35,
        "meteor": 0.198,
    }
    return {
        "untrained": Evaluation((), base),
        "grpo [red]": Evaluation((), {**base, "within": 1.0, "meteor": None}, {"meteor": "no WordNet"}),
    }


def test_markdown(evaluations):
    assert comparison_markdown(evaluations) == (
        "| Policy | Within | Exact | Length | ROUGE-1 | ROUGE-2 | ROUGE-L | ROUGE-L recall | METEOR |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| untrained | 2.1 | 0.0 | 30.0 ± 12.0 | 33.3 | 10.0 | 27.1 | 35.0 | 19.8 |\n"
        "| grpo [red] | 100.0 | 0.0 | 30.0 ± 12.0 | 33.3 | 10.0 | 27.1 | 35.0 | - |\n"
    )


def test_rich_table_shows_the_same_cells(evaluations):
    output = StringIO()
    Console(file=output, width=80).print(comparison_table(evaluations, title="Held-out rows"))
    lines = [line.strip() for line in output.getvalue().splitlines() if line.strip(" ─")]
    assert lines[0] == "Held-out rows"
    # Nothing is cut off in 80 columns: every cell is there whole.
    cells = [re.split(r"\s{2,}", line) for line in lines[1:4]]
    assert cells == [
        ["Policy", "Within", "Exact", "Length", "R-1", "R-2", "R-L", "recall", "METEOR"],
        ["untrained", "2.1", "0.0", "30.0 ± 12.0", "33.3", "10.0", "27.1", "35.0", "19.8"],
        ["grpo [red]", "100.0", "0.0", "30.0 ± 12.0", "33.3", "10.0", "27.1", "35.0", "-"],
    ]


def test_a_bar_in_a_name_does_not_end_the_markdown_cell(evaluations):
    last = comparison_markdown({"a|b": evaluations["untrained"]}).splitlines()[-1]
    assert last.startswith("| a\\|b | 2.1 |")


def lines_of(table) -> list[list[str]]:
    output = StringIO()
    Console(file=output, width=80).print(table)
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


def test_metrics_of_one_evaluation(evaluations):
    summary = {
        **evaluations["untrained"].summary,
        "bleu": 0.1234,
        "density": 1.26,
        "length_error": -2.04,
        "chrf": None,
    }
    lines = lines_of(metrics_table(Evaluation((), summary)))
    first = {line[0]: line[1] for line in lines if len(line) > 1}
    assert first["BLEU"] == "12.3"
    assert first["Density"] == "1.3"
    assert first["Length error"] == "-2.0"
    assert not {"chrF", "ROUGE-1", "Within", "ROUGE-1 recall", "Varies"} & set(first)
    varied = {**summary, "consistency_rouge1": 0.25, "consistency_length": 0.5}
    several = {
        line[0]: line[1:3] for line in lines_of(metrics_table(Evaluation((), varied))) if len(line) > 2
    }
    assert several["ROUGE-1"] == ["33.3", "25.0"]
    assert several["Length"] == ["30.0", "50.0"]
    assert several["BLEU"] == ["12.3", "-"]
