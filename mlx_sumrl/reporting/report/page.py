"""The page: a short answer, the numbers, the figures, summaries, options. Never imports mlx.

Invariant: whatever comes from data or options is escaped by the template; only figures, which are made here, are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mlx_sumrl.evaluation.statistics.comparison import Comparison
from mlx_sumrl.metrics.catalogue import CATALOGUE
from mlx_sumrl.reporting.report.comparison_figures import NOT_SHOWN, SIGNS
from mlx_sumrl.reporting.report.material import Material, Sample
from mlx_sumrl.reporting.report.palette import css_light_variables, css_variables
from mlx_sumrl.reporting.report.picture import Picture
from mlx_sumrl.reporting.report.verdicts import in_short
from mlx_sumrl.reporting.report.wording import number, plain, title_of

KINDS = {"better": "good", "worse": "bad"}
LONGEST_VALUE = 300
"""Characters of an option's value."""


def page(material: Material, pictures: Sequence[Picture], left_out: Sequence[str]) -> str:
    """The whole of report.html; ``left_out`` are titles of figures for which there are no numbers."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    here = files(__package__)
    template = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    fields = list(dict.fromkeys(name for one in material.json_answers.values() for name in one.fields))
    return template.render(
        material=material,
        colours=Markup(css_variables()),
        light_colours=Markup(css_light_variables()),
        style=Markup(here.joinpath("style.css").read_text(encoding="utf-8")),
        subtitle=_subtitle(material),
        answer=in_short(material),
        alpha=plain(1 - material.comparisons[0].confidence) if material.comparisons else "0.05",
        means=_means(material),
        json_fields=fields,
        json_rows=_json_rows(material, fields),
        comparisons=[_comparison(one) for one in material.comparisons],
        power_differs=any(one.power != 0.8 for one in material.comparisons),
        pictures=[
            {
                "name": one.name,
                "title": one.title,
                "caption": one.caption,
                "wide": one.wide,
                "svg": Markup(one.svg()),
            }
            for one in pictures
        ],
        samples=[_sample(one, material) for one in material.samples],
        commands=dict(material.commands),
        options=_options(material.options),
        left_out=", ".join(left_out),
    )


def _subtitle(material: Material) -> str:
    """On what, and against what."""
    parts = []
    if material.subjects:
        parts.append(f"{len({row.id for row in material.subjects[0].rows()})} rows")
    if material.asked:
        parts.append(f"asked for {material.asked}")
    if len(material.subjects) > 1:
        parts.append(f"compared with {material.baseline!r}")
    return ", ".join(parts)


def _means(material: Material) -> list[dict[str, Any]]:
    """A line for each metric that somebody has, those of the catalogue first."""
    verdicts = {
        (one.metric, one.other): one.verdict
        for one in material.comparisons
        if one.baseline == material.baseline
    }
    names = dict.fromkeys(name for subject in material.subjects for name in subject.metrics)
    order = {name: place for place, name in enumerate(CATALOGUE)}
    rows = []
    for name in sorted(names, key=lambda metric: order.get(metric, len(order))):
        cells = []
        for subject in material.subjects:
            verdict = verdicts.get((name, subject.name), NOT_SHOWN)
            cells.append(
                {
                    "subject": subject.name,
                    "text": number(subject.mean(name), name),
                    "sign": SIGNS.get(verdict, ""),
                    "verdict": verdict,
                    "kind": KINDS.get(verdict, ""),
                }
            )
        known = CATALOGUE.get(name)
        unit = f" ({material.unit})" if known and known.unit == "length" else ""
        rows.append(
            {
                "metric": name,
                "title": title_of(name) + unit,
                "says": known.says if known else "",
                "cells": cells,
            }
        )
    return rows


def _comparison(one: Comparison) -> dict[str, Any]:
    ends = (
        []
        if one.low is None or one.high is None
        else [number(one.low, one.metric), number(one.high, one.metric)]
    )
    return {
        "title": title_of(one.metric),
        "pair": f"{one.other} against {one.baseline}",
        "difference": signed(one),
        "interval": " to ".join(ends) or "–",
        "p": "< .001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}",
        "d": "–" if one.cohens_d is None else f"{one.cohens_d:.2f}".replace("-", "−"),
        "detectable": "–" if one.detectable is None else number(one.detectable, one.metric),
        "rows": one.rows,
        "verdict": one.verdict,
        "kind": KINDS.get(one.verdict, ""),
    }


def signed(one: Comparison) -> str:
    """The difference with its sign."""
    text = number(one.difference, one.metric)
    return text if text.startswith("−") or one.difference == 0 else f"+{text}"


def _json_rows(material: Material, fields: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "rows": one.rows,
            "valid": f"{100 * one.validity['valid']:.1f}" if "valid" in one.validity else "–",
            "fields": [f"{100 * one.fields[part].f1:.1f}" if part in one.fields else "–" for part in fields],
        }
        for name, one in material.json_answers.items()
    ]


def _sample(sample: Sample, material: Material) -> dict[str, Any]:
    unit = material.unit or "tokens"
    answers = []
    for name, (text, scores) in sample.answers.items():
        said = [
            f"{plain(value)} {unit}"
            if metric == "length"
            else f"{title_of(metric)} {number(value, metric, 0)}"
            for metric, value in scores.items()
        ]
        answers.append({"name": name, "text": text, "scores": " · ".join(said)})
    return {
        "id": sample.id,
        "why": sample.why,
        "document": sample.document,
        "reference": sample.reference,
        "answers": answers,
    }


def _options(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A line for each option, those in which several differ first."""
    if not options:
        return {}
    names = list(options)
    rows = []
    for option in dict.fromkeys(name for one in options.values() for name in one):
        values = [_value(one[option]) if option in one else "" for one in options.values()]
        rows.append({"option": option, "values": values, "differs": len(set(values)) > 1})
    rows.sort(key=lambda row: not row["differs"])
    return {"names": names, "rows": rows}


def _value(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
