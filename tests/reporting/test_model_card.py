"""Model cards: read back by the hub's own classes, and by eye for what they must not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mlx_sumrl.config import DataConfig, PolicyConfig, RunConfig, SftRunConfig
from mlx_sumrl.reporting.model_card import KINDS, card_text, facts_of, write_card
from mlx_sumrl.reporting.provenance import FILE, provenance_of, read_provenance

SUMMARY = {
    "rows": 6,
    "within": 0.5,
    "exact": 0.25,
    "length_mean": 12.0,
    "length_std": 3.0,
    "unfinished": 0.0,
    "rouge1": 0.414,
    "rouge2": 0.1,
    "rougeL": 0.3333,
    "rouge1_recall": 0.5,
    "rouge2_recall": 0.2,
    "rougeL_recall": 0.4,
    "meteor": None,
    "repetition": 0.0,
}


def supervised(**changes: Any) -> SftRunConfig:
    options = {"policy": {"model": "models/mine"}, "sft": {"steps": 8}, "name": "brief"}
    return SftRunConfig.model_validate(options | changes)


def card_of(config: RunConfig | SftRunConfig, run: Path, kind: str = "model", step: int = 4) -> ModelCard:
    return ModelCard(card_text(kind, facts_of(config, run, step), "FOLDER"))  # type: ignore[arg-type]


def measured(run: Path, name: str, content: dict[str, Any]) -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("kind", KINDS)
def test_a_licence_is_never_made_up(kind: str, tmp_path: Path) -> None:
    card = card_of(supervised(), tmp_path, kind)
    assert card.data.license == "unknown"
    assert "## Licence\n\nUnknown: ask whoever trained it." in card.text
    assert card_of(supervised(export={"license": "apache-2.0"}), tmp_path, kind).data.license == "apache-2.0"
    other = card_of(supervised(export={"license": "CC BY-NC-SA 4.0"}), tmp_path, kind)
    assert (other.data.license, other.data.license_name) == ("other", "CC BY-NC-SA 4.0")
    assert "## Licence\n\nCC BY-NC-SA 4.0" in other.text


def test_names_and_no_paths_of_the_machine(tmp_path: Path) -> None:
    base, rows = tmp_path / "secret" / "base-1b", tmp_path / "secret" / "posts.jsonl"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    rows.write_text("{}\n")
    config = supervised(
        policy={"model": str(base)}, data={"train": str(rows), "evaluation": str(rows)}, runs_dir=tmp_path
    )
    provenance = provenance_of(config.policy, config.data, {"train": 1200, "evaluation": 6})
    (tmp_path / FILE).write_text(json.dumps(provenance.to_json()))
    assert read_provenance(tmp_path) == provenance
    for kind in KINDS:
        page = write_card(tmp_path, kind, facts_of(config, tmp_path, 8)).read_text()
        assert "secret" not in page
        assert str(tmp_path) not in page
        assert "| training | posts.jsonl | 1,200 | none stated |" in page
        assert "made from base-1b by supervised fine-tuning of LoRA adapters" in page
        assert "Base model: mit." in page
        assert ModelCard(page).data.base_model is None, "the hub takes only its own names there"


def test_what_is_known_of_the_data(tmp_path: Path) -> None:
    def licence(data: dict[str, Any]) -> tuple[str | None, str]:
        train = provenance_of(PolicyConfig(model="o/m"), DataConfig(**data)).train
        assert train is not None
        return train.hub, train.licence

    assert licence({"train": "xsum"}) == ("EdinburghNLP/xsum", "unknown; the articles belong to the BBC")
    assert licence({"train": "knkarthick/dialogsum"}) == ("knkarthick/dialogsum", "CC BY-NC-SA 4.0")
    assert licence({"train": "owner/other"}) == ("owner/other", "as on its page; not looked up")
    prepared = tmp_path / "train.jsonl"
    prepared.write_text("{}\n")
    (tmp_path / "card.json").write_text(json.dumps({"sources": [{"name": "posts", "licence": "CC0"}]}))
    assert licence({"train": str(prepared)}) == (None, "posts: CC0")
    assert "no one's text" in licence({"grammar": {}})[1]


def test_held_out_numbers_of_a_supervised_run(tmp_path: Path) -> None:
    for step, loss in ((0, 2.5), (4, 1.25), (8, 1.5)):
        measured(tmp_path, f"step-{step:06d}", {"step": step, "evaluation/loss": loss})
    card = card_of(supervised(policy={"model": "Qwen/Qwen2.5-0.5B-Instruct"}), tmp_path)
    for line in ("| 0 | 2.5000 |", "| 4 | 1.2500 |", "| 8 | 1.5000 |", "the policy after step 4"):
        assert line in card.text
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert card.data.eval_results is None


def test_held_out_numbers_of_a_staged_run(tmp_path: Path) -> None:
    stages = [{"name": name, "steps": 3, "rewards": [{"kind": "length"}]} for name in ("length", "quality")]
    options = {"policy": {"model": "o/m", "tuning": "full"}, "stages": stages, "name": "staged"}
    data = {"train": "xsum", "evaluation": "xsum", "instruction": "In {target_length}: {document}"}
    config = RunConfig.model_validate(options | {"data": data, "export": {"language": "en"}})
    measured(tmp_path, "before", {"summary": SUMMARY | {"rougeL": 0.2}})
    measured(tmp_path, "length", {"summary": SUMMARY | {"rougeL": 0.25}})
    measured(tmp_path, "quality", {"summary": SUMMARY})
    card = card_of(config, tmp_path)
    rows = [
        line for line in card.text.splitlines() if line.startswith(("| before", "| length |", "| quality"))
    ]
    assert [row.split("|")[7].strip() for row in rows] == ["20.0", "25.0", "33.3"]
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found == {"rouge1": 41.4, "rouge2": 10.0, "rougeL": 33.33}, "of the last stage; there is no METEOR"
    assert {one.dataset_type for one in card.data.eval_results} == {"EdinburghNLP/xsum"}
    assert (card.data.datasets, card.data.language) == (["EdinburghNLP/xsum"], "en")
    assert "GRPO (stages: length and quality)" in card.text
    assert "Asked length: 64 ± 5" in card.text
    assert "| stage quality | at most 3 steps; length x 1 |" in card.text


def test_when_to_stop_after_the_stages_is_what_was_measured_last(tmp_path: Path) -> None:
    stages = [{"name": "length", "steps": 3, "rewards": [{"kind": "length"}]}]
    options = {"policy": {"model": "o/m"}, "stages": stages, "stopping": {"steps": 5, "when": "after"}}
    config = RunConfig.model_validate(options | {"data": {"train": "xsum", "evaluation": "xsum"}})
    measured(tmp_path, "length", {"summary": SUMMARY | {"rougeL": 0.25}})
    measured(tmp_path, "stopping", {"summary": SUMMARY})
    card = card_of(config, tmp_path)
    assert "| stopping | 5 supervised steps of when to stop |" in card.text
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert found["rougeL"] == 33.33, "not that of the last stage"


def test_without_numbers_it_says_so(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"base_model": "half a fi')
    assert "None were measured." in card_of(supervised(), tmp_path).text


def test_a_difference_is_told_with_its_interval(tmp_path: Path) -> None:
    one = {"before": 0.2, "after": 0.25, "difference": 0.05, "low": 0.01, "high": 0.09}
    measured(
        tmp_path, "difference", {"rougeL": one, "length": {**one, "difference": -3.2, "low": -4, "high": -2}}
    )
    text = card_of(supervised(), tmp_path).text
    assert "| rougeL | +5.0 | +1.0 to +9.0 |" in text
    assert "| length | -3.2 | -4.0 to -2.0 |" in text
