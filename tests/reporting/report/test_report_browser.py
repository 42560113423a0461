"""The report of a real run in a real browser: nothing fails, all of it can be read, light and dark, wide and narrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.reporting.report.gathering import Given, Wanted, gather
from mlx_sumrl.reporting.report.writing import write_report

from .browser import LABELS, TEXTS, chromium, contrast, label_contrasts, rgb

pytestmark = pytest.mark.slow  # a real run, and a browser

ENOUGH = 4.5
"""WCAG 2 AA for text."""
SCHEMES = ("light", "dark")
WIDTHS = (1400, 400)


def real_options(shared: Path, folder: Path) -> dict[str, Any]:
    """A staged run of the real summariser on real dialogues, a few steps long."""
    return {
        "name": "real",
        "runs_dir": str(folder / "runs"),
        "policy": {"model": str(shared / "models/summarizer-5m"), "tuning": "full", "dtype": "float32"},
        "data": {
            "train": str(shared / "data/dialogsum.train.jsonl"),
            "train_rows": 20,
            "evaluation": str(shared / "data/dialogsum.validation.jsonl"),
            "evaluation_rows": 8,
            "id_column": "id",
            "document_column": "dialogue",
            "instruction": "Summarize the conversation.\n\n{document}",
            "max_prompt_tokens": 160,
        },
        "length": {"target": 24, "tolerance": 4},
        "sampling": {"max_tokens": 32},
        "optimizer": {"learning_rate": 3e-4},
        "grpo": {"prompts_per_step": 1, "group_size": 4, "beta": 0.05},
        "evaluation": {"length_matched_baseline": True, "batch_size": 8},
        "export": {"fused": False, "adapter": False},
        "stages": [
            {"name": "length", "steps": 2, "rewards": [{"kind": "length"}, {"kind": "repetition"}]},
            {
                "name": "quality",
                "steps": 2,
                "rewards": [
                    {"kind": "length"},
                    {"kind": "within", "weight": 0},
                    {"kind": "rougeL", "weight": 2, "gate": {"reward": "within"}},
                ],
            },
        ],
    }


@pytest.fixture(scope="module")
def reports(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page that a real run left, and one with everything else that can be drawn."""
    import mlx_sumrl  # noqa: F401  (before mlx: it loads a fast BLAS)
    from recipes import grpo

    folder = tmp_path_factory.mktemp("real")
    options = folder / "real.yaml"
    options.write_text(yaml.safe_dump(real_options(shared, folder)), encoding="utf-8")
    grpo.main("grpo_staged", "", ["--config", str(options)])
    run = folder / "runs" / "real"
    return {"run": run / "report.html", "everything": everything(run, folder)}


def everything(run: Path, folder: Path) -> Path:
    """The run's own evaluations, judged, and JSON answers beside them."""
    paths = []
    for name in ("before", "quality"):
        content = json.loads((run / "evaluation" / f"{name}.json").read_text(encoding="utf-8"))
        for place, row in enumerate(content["rows"]):
            score = (place * 5 % 8) / 8
            row["metrics"] |= {
                "judge_coverage": score,
                "judge_conciseness": 1 - score,
                "judge_clarity": 0.5 + score / 3,
            }
            row["metrics"] |= {"bertscore_f1": 0.8 + score / 10, "length_error": row["length"] - 24.0}
        content["rows"][0]["text"] += " <script>document.title = 'hacked'</script>" + "unbroken" * 60
        content["summary"] |= {"consistency_rougeL": 0.3, "consistency_length": 0.1}
        content["asked"] = {"target": 24, "tolerance": 4, "unit": "tokens"}
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(content), encoding="utf-8")
    part = {"precision": 0.5, "recall": 0.75, "f1": 0.6}
    tags = {
        "summary": {"rows": 8, "valid": 0.75},
        "fields": {"tags": part, "score": {**part, "errors": [-1, 0, 2]}},
    }
    paths.append(folder / "tags.json")
    paths[-1].write_text(json.dumps(tags), encoding="utf-8")
    named = [
        Given((path,), name)
        for path, name in zip(paths, ("before", "a rather long name of a policy", "tags"), strict=True)
    ]
    material = gather(named, Wanted(), ComparisonConfig(resamples=200))
    return write_report(material, folder / "everything", beside=False)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("which", ["run", "everything"])
def test_in_a_browser(which: str, reports: dict[str, Path], browser: Any, tmp_path: Path) -> None:
    file = reports[which]
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    troubles: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(request.url))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(file.as_uri())
    assert "hacked" not in page.title()
    grounds = set()
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        low = [(text, ratio) for text, ratio in label_contrasts(page) if ratio < ENOUGH]
        assert low == []
        texts = page.evaluate(TEXTS)
        assert len(texts) > 60
        assert [one for one in texts if contrast(rgb(one[1]), rgb(one[2])) < ENOUGH] == []
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            wide, seen = page.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert wide <= seen == width
            page.screenshot(path=tmp_path / f"{which}-{scheme}-{width}.png", full_page=True)
    assert len(grounds) == 2
    assert troubles == []
    assert set(requested) <= {file.as_uri(), "data:,"}
    page.close()


@pytest.mark.parametrize("which", ["run", "everything"])
def test_every_figure_says_what_it_is(which: str, reports: dict[str, Path], browser: Any) -> None:
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.goto(reports[which].as_uri())
    figures = page.evaluate(
        """() => [...document.querySelectorAll('figure')].map(one => ({
          name: one.id,
          caption: one.querySelector('figcaption').textContent.trim(),
          title: one.querySelector('svg > title').textContent.trim(),
          described: one.querySelector('svg > desc').textContent.trim(),
        }))"""
    )
    expected = {"lengths", "tradeoff", "effects", "significance", "overlap", "spread", "correlation"}
    expected |= (
        {"rewards", "training"} if which == "run" else {"validity", "fields", "numeric-errors", "consistency"}
    )
    assert {figure["name"] for figure in figures} == expected
    for figure in figures:
        assert len(figure["caption"]) > 30, figure
        assert figure["title"], figure
        assert len(figure["described"]) > 15, figure
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(set(ids)) == len(ids)
    for width, smallest in zip(WIDTHS, (9, 5), strict=True):
        page.set_viewport_size({"width": width, "height": 900})
        labels = page.evaluate(LABELS)
        assert [(one["figure"], one["text"]) for one in labels if one["outside"] > 1] == []  # none is cut
        assert min(one["size"] for one in labels) >= smallest
    page.close()


def test_colours_are_chosen_without_a_script(reports: dict[str, Path], browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(color_scheme="light", java_script_enabled=False)
    page.goto(reports["run"].as_uri())
    shots = {}
    for scheme in ("system", "dark", "light"):
        page.check(f"#scheme-{scheme}")
        page.mouse.move(0, 700)
        page.locator("h2#figures").click()  # away from the button, which is drawn with a ring
        shots[scheme] = page.locator("figure#lengths").screenshot()
    assert shots["light"] == shots["system"]
    assert shots["dark"] != shots["light"]
    assert "is shown to be" in page.inner_text("main") or "no difference shown" in page.inner_text("main")
    page.close()


def test_printed(reports: dict[str, Path], browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(reports["run"].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator(".scheme").is_visible()
    assert (
        contrast(rgb(page.evaluate("getComputedStyle(document.body).color")), rgb("rgb(255, 255, 255)"))
        > ENOUGH
    )
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.close()
