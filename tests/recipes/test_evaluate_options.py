"""`recipes.evaluate` as a user types it: all metrics, several samples, several references, an encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_sumrl.evaluation import Evaluation
from mlx_sumrl.metrics.catalogue import CATALOGUE

from ..metrics.conftest import make_encoder
from .programs import Program


@pytest.fixture
def asked(tiny_model: Path, posts_file: Path) -> list[str]:
    options = [
        "--model",
        str(tiny_model),
        "--dtype",
        "float32",
        "--max_tokens",
        "20",
        "--length.target",
        "12",
    ]
    options += ["--data.evaluation", str(posts_file), "--data.instruction", "Summarize.\n\n{document}"]
    return [*options, "--out", "found.json"]


def test_samples_and_an_encoder(
    program: Program, asked: list[str], posts: list[dict[str, str]], tmp_path: Path
):
    encoder = make_encoder(tmp_path / "encoder", "bert", [post["document"] for post in posts])
    more = ["--samples", "3", "--temperature", "1", "--bertscore", "encoder", "--bertscore_layer", "2"]
    ended = program("evaluate", *asked, *more)
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    content = json.loads((tmp_path / "found.json").read_text())
    found = Evaluation.from_json(content)
    assert len(found.rows) == 12
    assert all(len(row.samples) == 2 and row.metrics["bertscore_f1"] is not None for row in found.rows)
    assert found.summary["consistency_bertscore_f1"] > 0
    assert set(found.rows[0].metrics) <= set(CATALOGUE)
    assert content["asked"]["target"] == 12
    assert content["options"]["command"].startswith("python -m recipes.evaluate --model ")
    assert content["options"]["bertscore"] == encoder.name
    assert content["options"]["decoding"]["temperature"] == 1.0
    for title in ("BERTScore F1", "chrF", "Varies", "Density"):
        assert title in ended.out
    # The same prompts, whatever is done with the answers.
    assert program("evaluate", *asked).code == 0
    assert json.loads((tmp_path / "found.json").read_text())["prompts_sha256"] == found.prompts_sha256
    assert program("evaluate", *asked, "--length.target", "13").code == 0
    again = json.loads((tmp_path / "found.json").read_text())
    assert again["prompts_sha256"] != found.prompts_sha256
    assert "consistency_rouge1" not in again["summary"]


def test_several_references(program: Program, asked: list[str], posts_file: Path, tmp_path: Path):
    rows = [json.loads(line) for line in posts_file.read_text().splitlines()]
    lists = [{**row, "summary": [row["summary"], rows[at - 1]["summary"]]} for at, row in enumerate(rows)]
    posts_file.write_text("".join(json.dumps(row) + "\n" for row in lists))

    def mean_chrf(*more: str) -> float:
        assert program("evaluate", *asked, "--temperature", "1", *more).code == 0
        content = json.loads((tmp_path / "found.json").read_text())
        assert [row["references"] for row in content["rows"]] == [row["summary"] for row in lists]
        return content["summary"]["chrf"]

    assert mean_chrf() > mean_chrf("--several_references", "mean") > 0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--samples", "2"],
            "samples 2 at temperature 0 are the same summary 2 times: give a temperature above 0",
        ),
        (["--bertscore_idf", "true"], "say how bertscore is computed: name its folder"),
        (
            ["--bertscore", "nowhere"],
            "nowhere holds no config.json: name the folder of a BERT or RoBERTa encoder",
        ),
        (["--several_references", "worst"], "several_references"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    program: Program, asked: list[str], more: list[str], sentence: str
):
    ended = program("evaluate", *asked, *more)
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
