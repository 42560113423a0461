"""The card of a prepared dataset: all that is known of it as JSON, and as a page for people. Never imports mlx.

Invariant: rows read = rows of all splits + rows left out, and the card holds each of these numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlx_sumrl.config.prepare import PrepareConfig, Unit
from mlx_sumrl.data.leakage import Leak
from mlx_sumrl.data.prepared import Prepared, instructions_differ
from mlx_sumrl.data.prepared_row import PreparedRow
from mlx_sumrl.data.row_filters import CountTokens, lengths

MOST_LISTED = 1000
"""Pairs that the card lists; their number is given in any case."""
SHOWN = 3
"""Ids shown to people for each reason."""


def make_card(
    prepared: Prepared, config: PrepareConfig, count_tokens: CountTokens | None, made_with: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that is known of a prepared dataset, as plain JSON values.

    `made_with` is what the caller knows beside: the command and the versions.
    """
    units: list[Unit] = ["words", "characters"]
    if count_tokens is not None:
        units.append("tokens")
    everyone = [row for rows in prepared.splits.values() for row in rows]
    measured = {
        role: {unit: lengths([getattr(row, role) for row in everyone], unit, count_tokens) for unit in units}
        for role in ("document", "summary")
    }
    splits, start = {}, 0
    for name, rows in prepared.splits.items():
        splits[name] = _split_account(rows)
        for role, by_unit in measured.items():
            splits[name][role] = {
                unit: _spread(values[start : start + len(rows)]) for unit, values in by_unit.items()
            }
        start += len(rows)
    return {
        "rows": {
            "read": sum(source.records for source in prepared.sources),
            "written": sum(len(rows) for rows in prepared.splits.values()),
            "left_out": sum(len(ids) for ids in prepared.dropped.values()),
            "renamed": prepared.renamed,
        },
        "splits": splits,
        "split_by": config.split_by,
        "seed": config.seed,
        "sources": _sources_account(prepared, config),
        "left_out": {
            reason: {"rows": len(ids), "ids": ids}
            for reason, ids in sorted(prepared.dropped.items(), key=lambda item: (-len(item[1]), item[0]))
        },
        "duplicates": _duplicates_account(prepared, config),
        "leakage": _leakage_account(prepared, config),
        "options": config.model_dump(mode="json"),
        **made_with,
    }


def _sources_account(prepared: Prepared, config: PrepareConfig) -> list[dict[str, Any]]:
    """What each source gave: rows read, rows that could be taken, rows that were, and what was asked of it."""
    places = {id(row): place for place, source in enumerate(prepared.sources) for row in source.rows}
    written = {
        name: Counter(places[id(row)] for row in rows if id(row) in places)
        for name, rows in prepared.splits.items()
    }
    weights = [source.weight or 0.0 for source in config.sources]
    accounts = []
    for place, (source, asked) in enumerate(zip(prepared.sources, config.sources, strict=True)):
        here = {name: count[place] for name, count in written.items()}
        accounts.append(
            {
                "name": source.name,
                "read_from": source.read_from,
                "records": source.records,
                "offered": prepared.offered[place],
                "offered_share": _share(prepared.offered[place], sum(prepared.offered)),
                "limit": asked.limit,
                "weight": asked.weight,
                "asked_share": weights[place] / sum(weights) if config.weighted else None,
                "written": sum(here.values()),
                "written_share": _share(sum(here.values()), sum(map(Counter.total, written.values()))),
                "shares": {name: _share(count, written[name].total()) for name, count in here.items()},
                "licence": source.licence,
                "instruction": source.instruction,
                "language": source.language,
            }
        )
    return accounts


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _split_account(rows: Sequence[PreparedRow]) -> dict[str, Any]:
    dates = sorted(row.date for row in rows if row.date is not None)
    account: dict[str, Any] = {
        "rows": len(rows),
        "sources": _counts(row.source for row in rows),
        "languages": {
            code: {"rows": count, "share": count / len(rows)}
            for code, count in _counts(row.language for row in rows).items()
        },
    }
    if dates:
        account["dates"] = {"first": dates[0].isoformat(), "last": dates[-1].isoformat()}
    return account


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _spread(values: Sequence[int]) -> dict[str, float]:
    low, median, high = np.percentile(values, (5, 50, 95)).round(1).tolist()
    return {
        "min": min(values),
        "p5": low,
        "median": median,
        "mean": round(float(np.mean(values)), 2),
        "p95": high,
        "max": max(values),
    }


def _duplicates_account(prepared: Prepared, config: PrepareConfig) -> dict[str, Any]:
    rows, found = prepared.rows, prepared.duplicates
    return {
        "looked_for": "exact" if config.duplicates.near is None else "exact and near",
        "drop": config.duplicates.drop,
        "threshold": config.duplicates.near,
        "exact_sets": len(found.exact),
        "exact_rows": sum(len(same) - 1 for same in found.exact),
        "near_pairs": len(found.near),
        "near_rows": len({end for pair in found.near for end in (pair.first, pair.second)}),
        "exact": [[rows[index].id for index in same] for same in found.exact[:MOST_LISTED]],
        "near": [
            {
                "first": rows[pair.first].id,
                "second": rows[pair.second].id,
                "similarity": round(pair.similarity, 4),
            }
            for pair in found.near[:MOST_LISTED]
        ],
    }


def _leakage_account(prepared: Prepared, config: PrepareConfig) -> dict[str, Any]:
    def listed(leak: Leak) -> dict[str, Any]:
        return {
            "kind": leak.kind,
            "row": prepared.rows[leak.row].id,
            "of": prepared.assigned[leak.row],
            "held_out": prepared.rows[leak.held_out].id,
            "held_out_of": prepared.assigned[leak.held_out],
            "similarity": round(leak.similarity, 4),
        }

    def count(kind: str) -> int:
        return len({leak.row for leak in prepared.leaks if leak.kind == kind})

    return {
        "policy": config.leakage,
        "rows": len({leak.row for leak in prepared.leaks}),
        "rows_by_kind": {kind: count(kind) for kind in ("exact", "near", "group")},
        "left_out": config.leakage == "drop",
        "pairs": [listed(leak) for leak in prepared.leaks[:MOST_LISTED]],
    }


def card_page(card: Mapping[str, Any], name: str) -> str:
    """The card as a Markdown page."""
    parts = [
        f"# {name}",
        _first_words(card),
        "## Splits",
        _splits_table(card),
        "## Sources",
        _sources_table(card),
        *_instructions(card),
        "## Languages",
        _languages(card),
        "## Rows left out",
        _left_out(card),
        "## Duplicates",
        _duplicates(card),
        "## Leakage",
        _leakage(card),
        "## How it was made",
        f"    {card['command']}",
        f"Seed {card['seed']}. "
        + ", ".join(f"{package} {version}" for package, version in card["versions"].items())
        + ". Everything else, every id among it, is in card.json.",
    ]
    return "\n\n".join(parts) + "\n"


def _first_words(card: Mapping[str, Any]) -> str:
    rows = card["rows"]
    by = {"random": "randomly", "time": "by time", "source": "as the source has it"}[card["split_by"]]
    text = f"{rows['read']} rows were read, {rows['written']} are here, {rows['left_out']} were left out. "
    text += f"They are split {by}."
    if rows["renamed"]:
        text += f" {rows['renamed']} ids were there before and got a number."
    return text


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return (
            f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"
        )

    return "\n".join([line(head), line(["---"] * len(head)), *(line(cells) for cells in lines)])


def _splits_table(card: Mapping[str, Any]) -> str:
    splits = card["splits"]
    units = list(next(iter(splits.values()))["document"])
    unit = "tokens" if "tokens" in units else "words"
    head = ["split", "rows", *(f"{role}, {unit}: median (5 % to 95 %)" for role in ("document", "summary"))]
    dated = any("dates" in split for split in splits.values())
    lines = []
    for name, split in splits.items():
        spreads = [split[role][unit] for role in ("document", "summary")]
        cells = [name, split["rows"], *(f"{s['median']:g} ({s['p5']:g} to {s['p95']:g})" for s in spreads)]
        if dated:
            dates = split.get("dates", {})
            cells += [dates.get("first", ""), dates.get("last", "")]
        lines.append(cells)
    table = _table([*head, *(["first date", "last date"] if dated else [])], lines)
    if unit == "words" and any(
        code in split["languages"] for split in splits.values() for code in ("zh", "ja")
    ):
        table += "\n\nA Chinese or Japanese character counts as a word."
    return table


def _sources_table(card: Mapping[str, Any]) -> str:
    sources = card["sources"]
    table = _table(
        ["source", "read from", "rows", "here", "licence"],
        [[s["name"], ", ".join(s["read_from"]), s["records"], s["written"], s["licence"]] for s in sources],
    )
    if all(s["weight"] is None and s["limit"] is None for s in sources):
        return table
    splits = list(card["splits"])
    mix = _table(
        ["source", "weight", "asked for", "limit", "could be taken", "are here", *splits],
        [
            [
                s["name"],
                "" if s["weight"] is None else f"{s['weight']:g}",
                "" if s["asked_share"] is None else f"{s['asked_share']:.1%}",
                s["limit"] or "",
                f"{s['offered']} ({s['offered_share']:.1%})",
                f"{s['written']} ({s['written_share']:.1%})",
                *(f"{s['shares'][name]:.1%}" for name in splits),
            ]
            for s in sources
        ],
    )
    return f"{table}\n\nRows of sources were drawn, without replacement, as was asked:\n\n{mix}"


def _instructions(card: Mapping[str, Any]) -> list[str]:
    said = dict.fromkeys(source["instruction"] for source in card["sources"] if source["instruction"])
    if not said:
        return []
    blocks = "\n\n".join("\n".join(f"    {line}" for line in text.splitlines()) for text in said)
    column = (
        '\n\nEach row has its own in the column `instruction`, for `data.instruction: "{instruction}\\n\\n{document}"`.'
        if instructions_differ([source["instruction"] for source in card["sources"]])
        else ""
    )
    return [f"What a model is asked for (`data.instruction`):\n\n{blocks}{column}"]


def _languages(card: Mapping[str, Any]) -> str:
    lines = []
    for name, split in card["splits"].items():
        said = ", ".join(f"{code} {own['share']:.1%}" for code, own in split["languages"].items())
        lines.append(f"- {name}: {said}")
    return "\n".join(lines)


def _left_out(card: Mapping[str, Any]) -> str:
    if not card["left_out"]:
        return "None."
    return _table(
        ["reason", "rows", "the first of them"],
        [
            [reason, own["rows"], ", ".join(own["ids"][:SHOWN]) + (", ..." if own["rows"] > SHOWN else "")]
            for reason, own in card["left_out"].items()
        ],
    )


def _duplicates(card: Mapping[str, Any]) -> str:
    own = card["duplicates"]
    text = f"{own['exact_rows']} rows have the same document as another one, but for case and white space"
    text += f" ({own['exact_sets']} sets)."
    if own["threshold"] is not None:
        text += (
            f" {own['near_pairs']} pairs are near duplicates (Jaccard similarity of word shingles from "
            f"{own['threshold']:g} on)."
        )
    if own["drop"] != "none":
        text += " These are what is left after duplicates were left out."
    return text


def _leakage(card: Mapping[str, Any]) -> str:
    own = card["leakage"]
    if not own["rows"]:
        return "None was found: no document, near duplicate or group is in two splits."
    kinds = ", ".join(f"{count} {kind}" for kind, count in own["rows_by_kind"].items() if count)
    done = "they were left out" if own["left_out"] else "they are in it, as was allowed"
    pairs = "\n".join(
        f"- {pair['row']} of {pair['of']} and {pair['held_out']} of {pair['held_out_of']} ({pair['kind']}, "
        f"{pair['similarity']:.2f})"
        for kind in own["rows_by_kind"]
        for pair in [one for one in own["pairs"] if one["kind"] == kind][:SHOWN]
    )
    return f"{own['rows']} rows leak into a split that is held out more ({kinds}); {done}. The first pairs:\n\n{pairs}"
