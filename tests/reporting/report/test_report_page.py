"""The page says what the files say, as text, and nothing in it reaches out."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.reporting.report.gathering import Given, Wanted, gather
from mlx_sumrl.reporting.report.run_report import leave_report
from mlx_sumrl.reporting.report.writing import DRAWN, write_report

from .conftest import Made

BAIT = "<script>alert('x')</script> & \"quoted\" </p><img src=x onerror=alert(1)> $a_b$ {{ 7 * 7 }}"
VOID = {"meta", "link", "input", "img", "br", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, table cells by metric and subject, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: dict[tuple[str, str], str] = {}
        self.texts: list[str] = []
        self._open: list[str] = []
        self._cell: tuple[str, str] | None = None
        self.feed(html)
        assert self._open == []  # every tag was closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append((tag, own))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "td" and own.get("data-metric"):
            self._cell = (str(own["data-metric"]), str(own["data-subject"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "td":
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._cell and data.strip():
            self.cells.setdefault(self._cell, data.strip())


def report(folder: Path, *paths: Path, beside: bool = False) -> str:
    material = gather([Given((path,)) for path in paths], Wanted(), ComparisonConfig(resamples=200))
    write_report(material, folder, beside=beside)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_numbers_are_those_of_the_files(
    tmp_path: Path, written: Made, before: dict[str, Any], after: dict[str, Any]
) -> None:
    html = report(tmp_path / "out", written("old", before), written("new", after), beside=True)
    page = Page(html)
    said = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for name, content in (("old", before), ("new", after)):
        for metric in ("within", "exact", "rougeL"):
            mean = fmean(row["metrics"][metric] for row in content["rows"])
            assert page.cells[metric, name] == f"{100 * mean:.1f}"
            assert said["means"][name][metric] == pytest.approx(mean)
        lengths = fmean(row["length"] for row in content["rows"])
        assert float(page.cells["length", name]) == pytest.approx(lengths, abs=0.051)
    assert ("meteor", "old") not in page.cells  # nobody has it
    differences = {one["metric"]: one for one in said["comparisons"]}
    assert differences["within"]["difference"] == pytest.approx(0.8)
    text = " ".join(page.texts)
    low, high = (100 * differences["rougeL"][end] for end in ("low", "high"))
    assert f"{low:.1f} to {high:.1f}" in text
    assert "new is shown to be better in Within (10.0 → 90.0) and ROUGE-L" in text
    assert said["sentences"][0].startswith("new against old: Within: better (+0.80")


def test_data_is_text(tmp_path: Path, written: Made, before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = copy.deepcopy(after)
    plain = Page(report(tmp_path / "plain", written("old", before), written("new", after)))
    for content in (before, changed):
        content["rows"][0].update(text=BAIT, document=BAIT, reference=BAIT)
        for row in content["rows"]:
            row["id"] += BAIT
    options = {"model": BAIT, BAIT: 1}
    paths = [written("old", before, options=options), written("new", changed, options=options, command=BAIT)]
    material = gather(
        [Given((paths[0],), BAIT), Given((paths[1],), f"second {BAIT}")],
        Wanted(),
        ComparisonConfig(resamples=200),
    )
    write_report(material, tmp_path / "out", beside=False)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object")]
    assert not [name for _, own in page.tags for name in own if name.startswith("on")]
    assert BAIT in [text.strip() for text in page.texts]
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags} | {"pre", "tr"}
    assert "49" not in re.findall(r"onerror=alert\(1\)> \$a_b\$ (\S+)", " ".join(page.texts))


def test_nothing_reaches_out(
    tmp_path: Path, written: Made, before: dict[str, Any], after: dict[str, Any]
) -> None:
    html = report(tmp_path / "out", written("old", before), written("new", after))
    page = Page(html)
    for _, own in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (own.get(name) or "#").startswith(("#", "data:,"))
    assert "://" not in html
    assert "@import" not in html
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", html)
    policies = [
        own["content"] for tag, own in page.tags if own.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    ids = [own["id"] for _, own in page.tags if own.get("id")]
    assert len(set(ids)) == len(ids)
    assert "@media print" in html
    assert "light-dark(" in html
    assert html.count("<figure ") == html.count("<figcaption>") == html.count("<title id=")
    assert "Not drawn, since there are no numbers for it: validity of JSON, fields of JSON" in html


def test_the_same_files_give_the_same_page(
    tmp_path: Path, run_folder: Made, before: dict[str, Any], after: dict[str, Any]
) -> None:
    run = run_folder("staged", {"before": before, "length": after})
    for name in ("one", "two"):
        report(tmp_path / name, run, beside=True)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) > 12
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_options_that_differ_come_first(tmp_path: Path, run_folder: Made, before: dict[str, Any]) -> None:
    one = run_folder("one", {"before": before, "length": before}, seed=3, rate=0.5)
    two = run_folder("two", {"before": before, "length": before}, seed=4, rate=0.5)
    texts = [text.strip() for text in Page(report(tmp_path / "out", one, two)).texts if text.strip()]
    start = texts.index("Option")
    assert texts[start : start + 9] == ["Option", "one", "two", "≠ name", "one", "two", "≠ seed", "3", "4"]
    assert texts.index("rate") > texts.index("≠ seed")
    assert "python -m recipes.grpo_staged --name one --seed 3" in texts


def test_a_supervised_run(tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    (run / "evaluation").mkdir(parents=True)
    (run / "config.json").write_text(
        json.dumps({"options": {"name": "tuned"}, "command": "python -m recipes.sft"})
    )
    losses = {0: 3.0, 2: 1.5, 4: 1.75}
    rows = [{"step": step, "stage": "sft", "evaluation/loss": loss} for step, loss in losses.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {"id": "a", "prompt": "long text", "reference": "short", "answer": "<b>shorter</b>", "length": 3}
    (run / "evaluation" / "step-000004.json").write_text(json.dumps({"step": 4, "samples": [sample]}))
    texts = [text.strip() for text in Page(report(run, run)).texts]
    assert "tuned: 4 steps, lowest held-out loss 1.50 nats per token at step 2." in texts
    assert "<b>shorter</b>" in texts
    assert "Loss on held-out rows: sft 3.00 → 1.75." in " ".join(texts)


def test_a_report_never_ends_a_run(run_folder: Made, before: dict[str, Any]) -> None:
    run = run_folder("staged", {"before": before})
    notes: list[str] = []
    assert leave_report(run, False, notes.append) is None
    assert not (run / "report.html").exists()
    assert leave_report(run, True, notes.append) == run / "report.html"
    assert notes == []
    (run / "report.html").unlink()
    (run / "evaluation" / "before.json").write_text("{torn")
    assert leave_report(run, True, notes.append) is None
    (note,) = notes
    assert "the run is whole without it" in note
    assert "before.json cannot be read as JSON" in note


def test_every_figure_is_drawn_by_somebody_once() -> None:
    assert len({title for title, _ in DRAWN}) == len({draw for _, draw in DRAWN}) == len(DRAWN) == 13
