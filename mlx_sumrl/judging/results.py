"""What judging leaves: judged.json or against.json, copies of evaluations, tables. Never imports mlx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mlx_sumrl.config import JudgeConfig
from mlx_sumrl.endpoint.ledger import Ledger, now
from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.agreement import Agreement
from mlx_sumrl.judging.criteria import CRITERIA
from mlx_sumrl.judging.judge import Found
from mlx_sumrl.judging.pairwise import PairedRow, pairwise_summary
from mlx_sumrl.judging.rows import Judged
from mlx_sumrl.judging.scores import METRIC, JudgedRow, summary, with_metrics
from mlx_sumrl.reporting.json_files import write_json

LEDGER, JUDGED, AGAINST = "ledger.jsonl", "judged.json", "against.json"
_CAPTION = (
    "criteria 0 to 1, composite 0 to 4; good: share of rows with all four above 0.5; mean over scored rows"
)


def judged_json(
    config: JudgeConfig,
    ledger: Ledger,
    found: Found,
    judged: Mapping[str, tuple[Judged, Sequence[JudgedRow]]],
    agreements: Mapping[str, Agreement],
) -> dict[str, Any]:
    """The scores of each evaluation, with who judged and what it took."""
    return {
        **_account(config, ledger, found),
        "evaluations": {
            name: {
                "path": one.path,
                "summary": summary(rows),
                "rows": [row.to_json() for row in rows],
            }
            for name, (one, rows) in judged.items()
        },
        "agreement": {name: asdict(one) for name, one in agreements.items()} or None,
    }


def against_json(
    config: JudgeConfig, ledger: Ledger, found: Found, ours: Judged, theirs: Judged, rows: Sequence[PairedRow]
) -> dict[str, Any]:
    """The outcome of each pair; a reply names the place, ours is A in the first of two and B in the second."""
    return {
        **_account(config, ledger, found),
        "ours": ours.path,
        "theirs": theirs.path,
        "summary": pairwise_summary(rows),
        "rows": [
            {"id": row.id, "outcome": row.outcome, "replies": row.replies, "unscored": dict(row.unscored)}
            for row in rows
        ],
    }


def copies(config: JudgeConfig, judged: Sequence[Judged]) -> dict[str, Path]:
    """Evaluation's name -> where `--into` wants its copy.

    Raises `UserError` when that cannot be.
    """
    into = config.into
    if into is None:
        return {}
    for one in judged:
        if one.content is None:
            raise UserError(
                f"--into {into} copies evaluations, and {one.path} is a file of rows: leave out --into"
            )
    if into.suffix.lower() == ".json":
        if len(judged) > 1:
            raise UserError(
                f"--into {into} is one file, and {len(judged)} evaluations are judged: name a folder"
            )
        targets = {judged[0].name: into}
    else:
        targets = {one.name: into / f"{one.name}.json" for one in judged}
    for one in judged:
        if targets[one.name].resolve() == one.path.resolve():
            raise UserError(f"--into {into} would write over {one.path}: name another place")
    return targets


def write_copies(
    targets: Mapping[str, Path], judged: Mapping[str, tuple[Judged, Sequence[JudgedRow]]]
) -> None:
    """Write what `copies` planned. Raises `UserError` when it cannot be written."""
    for name, target in targets.items():
        one, rows = judged[name]
        assert one.content is not None  # `copies` has checked it
        write_result(target, with_metrics(one.content, rows))


def write_result(target: Path, content: Mapping[str, Any]) -> None:
    """Raises `UserError` when it cannot be written."""
    try:
        write_json(target, content)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror}): mend that, then run the same command again; every reply "
            "is kept"
        ) from None


def scores_table(judged: Mapping[str, tuple[Judged, Sequence[JudgedRow]]]) -> Table:
    """One line for each evaluation."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=_CAPTION, caption_justify="left")
    heads = ("", "rows", "scored", "faith.", "cover.", "concise", "clarity", "composite", "good")
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for name, (_, rows) in judged.items():
        found = summary(rows)
        values = [found[METRIC.format(key)] for key in (*CRITERIA, "composite", "all")]
        cells = ["-" if value is None else f"{value:.3f}" for value in values[:-1]]
        good = "-" if values[-1] is None else f"{values[-1]:.0%}"
        table.add_row(escape(name), str(found["rows"]), str(found["scored"]), *cells, good)
    return table


def agreement_lines(agreements: Mapping[str, Agreement]) -> list[str]:
    """One for each comparison with labels."""
    lines = []
    for name, one in agreements.items():
        interval = "" if one.low is None else f" (95 % {one.low:.2f} to {one.high:.2f})"
        kappa = _number(one.kappa) if one.kappa_missing is None else f"none, {one.kappa_missing}"
        lines.append(
            f"agreement, {name}, {one.n} rows: Spearman {_number(one.spearman)}{interval}, Kendall "
            f"{_number(one.kendall)}, weighted kappa {kappa}"
        )
    return lines


def pairwise_lines(ours: Judged, theirs: Judged, rows: Sequence[PairedRow]) -> list[str]:
    """The outcome in words."""
    found = pairwise_summary(rows)
    lines = [
        f"{ours.name} against {theirs.name}: {found['win']} wins, {found['tie']} ties, {found['loss']} losses of "
        f"{found['scored']} pairs"
    ]
    if found["p_value"] is not None:
        lines[0] += f" (sign test p = {found['p_value']:.2g})"
    if found["order_decided"] is not None:
        text = f"the order alone decided {found['order_decided']:.0%} of the pairs, which count as ties"
        if found["first_preferred"] is not None:
            text += f"; {found['first_preferred']:.0%} of the preferences went to the summary shown first"
        lines.append(text)
    return lines


def weighing_line(judged: Mapping[str, tuple[Judged, Sequence[JudgedRow]]]) -> str | None:
    """How many scores the judge's log-probabilities weighed; None where there is no score."""
    verdicts = [
        one for _, rows in judged.values() for row in rows for rounds in row.rounds.values() for one in rounds
    ]
    masses = [one.mass for one in verdicts if one.mass is not None]
    if not verdicts:
        return None
    if not masses:
        return "scores are the digits as written: the judge gave no log-probabilities"
    return (
        f"{len(masses) / len(verdicts):.0%} of the scores are weighed by the probabilities of the digits, which had "
        f"{fmean(masses):.0%} of all probability"
    )


def unscored_line(reasons: Mapping[str, int], malformed: int, example: str | None) -> str | None:
    """Questions without an answer that counts; None where there is nothing to say."""
    parts = []
    if reasons:
        total = sum(reasons.values())
        each = ", ".join(f"{count} x {why}" for why, count in Counter(reasons).most_common())
        parts.append(f"{total:,} {'question' if total == 1 else 'questions'} without a score: {each}")
    if malformed:
        text = f"{malformed:,} {'reply' if malformed == 1 else 'replies'} not of the form asked for"
        parts.append(f"{text}, as {_shown(example)}" if example is not None else text)
    return "; ".join(parts) or None


def _account(config: JudgeConfig, ledger: Ledger, found: Found) -> dict[str, Any]:
    options = (
        "form",
        "rounds",
        "temperature",
        "top_p",
        "max_tokens",
        "top_logprobs",
        "malformed_attempts",
        "seed",
    )
    return {
        "made": now(),
        "complete": found.stopped is None,
        "stopped": found.stopped,
        "judge": {
            "model": config.model,
            "served_as": Counter(one["model"] for one in ledger.answers.values()),
            **{name: getattr(config, name) for name in options},
        },
        "malformed_replies": found.malformed,
        "tokens": {"prompt": ledger.spent.prompt_tokens, "completion": ledger.spent.completion_tokens},
        "cost": {"replies": ledger.spent.cost, "at_most": ledger.spent.cost + ledger.uncertain.cost},
    }


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
