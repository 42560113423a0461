"""Sources -> train, validation and test rows, and the account of them. Never imports mlx.

Invariant: every record that was read is in exactly one split, or in the account under a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from mlx_sumrl.config.prepare import PrepareConfig
from mlx_sumrl.data.declared_sources import SPLITS, SplitName
from mlx_sumrl.data.duplicates import Duplicates, clusters, find_duplicates
from mlx_sumrl.data.leakage import Leak, find_leaks, refuse
from mlx_sumrl.data.prepared_row import PreparedRow
from mlx_sumrl.data.row_filters import CountTokens, reasons, row_language
from mlx_sumrl.data.source_mix import OVER_LIMIT, OVER_WEIGHT, by_weight, stratified_split, within_limits
from mlx_sumrl.data.source_rows import SourceRows, read_source
from mlx_sumrl.data.splits import Sizes, random_split, time_split
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.progress import Progress, SilentProgress

INSTRUCTION, DOCUMENT = "instruction", "{document}"
"""The column in which rows say what they are asked for, and what stands for the text in an instruction."""
TICKS = 100
"""Rows between two words of progress."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What preparing made."""

    splits: dict[SplitName, list[PreparedRow]]
    """Rows of each split that has any, in the order they are written."""
    sources: list[SourceRows]
    """What each source gave."""
    dropped: dict[str, list[str]]
    """Reason -> ids of the rows that were left out."""
    renamed: int
    """Rows whose id another row had already."""
    rows: list[PreparedRow]
    """The rows that `duplicates` and `leaks` count: all that passed the filters, and the limits and weights of their
    sources but for `split.by: source`, where weights act on each split by itself, after leaks were left out."""
    duplicates: Duplicates
    leaks: list[Leak]
    """Leaks between the splits; those of `leakage: drop` are left out of them."""
    assigned: list[SplitName]
    """The split of each of `rows`, before leaks were left out."""
    offered: list[int]
    """Rows of each of `sources` that could have been taken, before its limit and its weight."""


def prepare(
    config: PrepareConfig, count_tokens: CountTokens | None = None, progress: Progress | None = None
) -> Prepared:
    """Read, filter, find duplicates, mix, split, look for leaks.

    Raises:
        UserError: a source that cannot be had, a split that gets no row, or leaks that are not allowed.
    """
    progress = progress or SilentProgress()
    sources = []
    progress.start("reading", len(config.sources))
    for done, source in enumerate(config.sources, start=1):
        sources.append(read_source(source, config))
        progress.update(done, {})
    rows = [row for source in sources for row in source.rows]
    _check_kinds(rows)
    _tell_instructions(sources)
    renamed = _make_ids_unique(rows)
    dropped: dict[str, list[str]] = {}
    for row_id, reason in (refusal for source in sources for refusal in source.refused):
        dropped.setdefault(reason, []).append(row_id)
    rows = _dated(rows, config, dropped)
    _check_share(sources, dropped, config)
    _check_sizes(rows, config)
    _tell_languages(sources, progress)
    rows = _filtered(rows, config, count_tokens, dropped)

    progress.start("comparing", len(rows))
    compared = [row.compared for row in rows]
    duplicates = find_duplicates(
        compared,
        config.duplicates,
        lambda done: progress.update(done, {}) if done % TICKS == 0 and done < len(rows) else None,
    )
    progress.update(len(rows), {})
    rows, duplicates = _without_duplicates(rows, duplicates, config, dropped)

    places = {id(row): place for place, source in enumerate(sources) for row in source.rows}
    offered = np.bincount([places[id(row)] for row in rows], minlength=len(sources)).tolist()
    given_splits = config.split_by == "source"
    for draws, reason in ((within_limits, OVER_LIMIT), *([] if given_splits else [(by_weight, OVER_WEIGHT)])):
        kept = draws([places[id(row)] for row in rows], config.sources, config.seed)
        _count_others(rows, kept, reason, dropped)
        rows, duplicates = [rows[index] for index in kept], duplicates.among(kept)

    assigned = assign(rows, duplicates, config, [places[id(row)] for row in rows])
    leaks = find_leaks(assigned, duplicates, [row.group for row in rows])
    if config.leakage == "error":
        refuse(leaks, rows, assigned)
    leaking: dict[int, Leak] = {}
    if config.leakage == "drop":
        for leak in leaks:
            leaking.setdefault(leak.row, leak)
    for index, leak in leaking.items():
        dropped.setdefault(f"leaks from {assigned[index]} ({leak.kind})", []).append(rows[index].id)
    splits: dict[SplitName, list[PreparedRow]] = {}
    for name in SPLITS:
        members = [
            row
            for index, (row, split) in enumerate(zip(rows, assigned, strict=True))
            if split == name and index not in leaking
        ]
        if given_splits:
            kept = by_weight([places[id(row)] for row in members], config.sources, config.seed)
            _count_others(members, kept, OVER_WEIGHT, dropped)
            members = [members[index] for index in kept]
        if members:
            splits[name] = _ordered(members, config)
    _check_splits(splits, set(assigned), config)
    return Prepared(splits, sources, dropped, renamed, rows, duplicates, leaks, assigned, offered)


def assign(
    rows: Sequence[PreparedRow], duplicates: Duplicates, config: PrepareConfig, source_of: Sequence[int]
) -> list[SplitName]:
    """The split of each row; ``source_of`` says which source each is of. Sources with weights are split one by one.

    Raises:
        UserError: no row is left to train on, or dates cannot be cut.
    """
    by = config.split_by
    if by == "source":
        return [row.split for row in rows if row.split is not None]
    sizes = Sizes.of(len(rows), config.split)
    if by == "time":
        return time_split([_moment(row) for row in rows], sizes)
    links = duplicates.links()
    firsts: dict[str, int] = {}
    for index, row in enumerate(rows):
        if row.group is not None:
            links.append((firsts.setdefault(row.group, index), index))
    together = clusters(len(rows), links)
    if config.weighted:
        return stratified_split(together, source_of, sizes, config.seed)
    return random_split(together, sizes, config.seed)


def _count_others(
    rows: Sequence[PreparedRow], kept: Sequence[int], reason: str, dropped: dict[str, list[str]]
) -> None:
    """Count the rows that were not drawn."""
    taken = set(kept)
    others = [row.id for index, row in enumerate(rows) if index not in taken]
    if others:
        dropped.setdefault(reason, []).extend(others)


def _check_kinds(rows: Sequence[PreparedRow]) -> None:
    chats = sorted({row.source for row in rows if row.messages is not None})
    others = sorted({row.source for row in rows if row.messages is None})
    if chats and others:
        raise UserError(
            f"{', '.join(chats)} holds chats and {', '.join(others)} documents with summaries: prepare them into "
            "two folders, since training reads one kind at a time"
        )


def _tell_instructions(sources: Sequence[SourceRows]) -> None:
    """What each row is asked for, in its column `instruction`, where sources ask for different things before the text.

    Raises:
        UserError: a column of that name is kept already.
    """
    if not instructions_differ([source.instruction for source in sources]):
        return
    for source in sources:
        for row in source.rows:
            if INSTRUCTION in row.kept:
                raise UserError(
                    f"column {INSTRUCTION!r} of {source.name} cannot be kept: it is where rows of several sources say "
                    "what they are asked for; rename it"
                )
            if row.messages is None:
                row.kept[INSTRUCTION] = source.instruction.removesuffix(DOCUMENT).strip()


def instructions_differ(instructions: Sequence[str]) -> bool:
    """Whether these are different ones that a column can tell: each says something, and then comes the text."""
    told = [one.removesuffix(DOCUMENT) for one in instructions if one.endswith(DOCUMENT)]
    return len(set(told)) > 1 and len(told) == len(instructions) and all(one.strip() for one in told)


def _make_ids_unique(rows: Sequence[PreparedRow]) -> int:
    taken: set[str] = {row.id for row in rows}
    seen: set[str] = set()
    renamed = 0
    for row in rows:
        if row.id in seen:
            number = 2
            while f"{row.id}#{number}" in taken:
                number += 1
            row.id = f"{row.id}#{number}"
            taken.add(row.id)
            renamed += 1
        seen.add(row.id)
    return renamed


def _dated(
    rows: list[PreparedRow], config: PrepareConfig, dropped: dict[str, list[str]]
) -> list[PreparedRow]:
    undated = [row.id for row in rows if row.date is None] if config.split_by == "time" else []
    if not undated:
        return rows
    dropped["no readable date"] = undated
    return [row for row in rows if row.date is not None]


def _check_share(sources: Sequence[SourceRows], dropped: dict[str, list[str]], config: PrepareConfig) -> None:
    unusable = sum(len(ids) for ids in dropped.values())
    records = sum(source.records for source in sources)
    if unusable <= config.max_unusable_share * records:
        return
    said = ", ".join(f"{len(ids)} x {reason} ({', '.join(ids[:3])})" for reason, ids in dropped.items())
    raise UserError(
        f"{unusable} of {records} records cannot be used ({unusable / records:.1%}; max_unusable_share is "
        f"{config.max_unusable_share:.1%}): {said}; mend or remove them, or raise --max_unusable_share"
    )


def _check_sizes(rows: Sequence[PreparedRow], config: PrepareConfig) -> None:
    """What can be known before minutes of comparing: filters only make it worse."""
    if config.split_by == "source":
        unsaid = [row for row in rows if row.split is None]
        if unsaid:
            raise UserError(
                f"{len(unsaid)} of {len(rows)} rows have no split of their own (the first is {unsaid[0].id}): name "
                "files whose names say it (train.jsonl, validation.jsonl, test.jsonl), or leave split.by out"
            )
        return
    sizes = Sizes.of(len(rows), config.split)
    if config.split_by == "time":
        time_split([_moment(row) for row in rows], sizes)


def _tell_languages(sources: Sequence[SourceRows], progress: Progress) -> None:
    rows = [(row, source.language) for source in sources for row in source.rows]
    progress.start("languages", len(rows))
    for done, (row, language) in enumerate(rows, start=1):
        row.language = row_language(row, language)
        if done % TICKS == 0 or done == len(rows):
            progress.update(done, {})


def _filtered(
    rows: Sequence[PreparedRow],
    config: PrepareConfig,
    count_tokens: CountTokens | None,
    dropped: dict[str, list[str]],
) -> list[PreparedRow]:
    why = reasons(rows, config.filters, count_tokens)
    kept = []
    for row, reason in zip(rows, why, strict=True):
        if reason is None:
            kept.append(row)
        else:
            dropped.setdefault(reason, []).append(row.id)
    if not kept:
        said = ", ".join(f"{len(ids)} x {reason}" for reason, ids in dropped.items())
        raise UserError(f"no row is left: {said}; widen the filters, or mend the rows")
    return kept


def _without_duplicates(
    rows: list[PreparedRow], duplicates: Duplicates, config: PrepareConfig, dropped: dict[str, list[str]]
) -> tuple[list[PreparedRow], Duplicates]:
    drop = config.duplicates.drop
    if drop == "none":
        return rows, duplicates
    links = duplicates.links() if drop == "near" else Duplicates(duplicates.exact, []).links()
    copy_of = {index: same[0] for same in duplicates.exact for index in same}
    alike: dict[int, list[int]] = {}
    for index, cluster in enumerate(clusters(len(rows), links)):
        alike.setdefault(cluster, []).append(index)
    kept: list[int] = []
    for same in alike.values():
        # Of a source's own splits, the one that is held out keeps its rows.
        rank = {index: SPLITS.index(rows[index].split or "train") for index in same}
        first = max(same, key=lambda index: (rank[index] if config.split_by == "source" else 0, -index))
        kept.append(first)
        for index in same:
            if index != first:
                exact = copy_of.get(index, index) == copy_of.get(first, first)
                reason = "exact duplicate" if exact else "near duplicate"
                dropped.setdefault(reason, []).append(rows[index].id)
    kept.sort()
    return [rows[index] for index in kept], duplicates.among(kept)


def _ordered(rows: list[PreparedRow], config: PrepareConfig) -> list[PreparedRow]:
    """Randomly split, in random order, so that the first rows of a file stand for all sources; else by date or
    as they came."""
    if config.split_by == "time":
        return sorted(rows, key=_moment)
    if config.split_by == "random":
        order = np.random.default_rng(np.random.SeedSequence((config.seed, 1))).permutation(len(rows))
        return [rows[index] for index in order.tolist()]
    return rows


def _moment(row: PreparedRow) -> datetime:
    assert row.date is not None  # rows without one were left out
    return row.date


def _check_splits(
    splits: dict[SplitName, list[PreparedRow]], assigned: set[SplitName], config: PrepareConfig
) -> None:
    wanted: set[SplitName] = {"train"}
    if config.split_by != "source":
        wanted |= {name for name in ("validation", "test") if getattr(config.split, name) > 0}
    for name in SPLITS:
        if name in splits or name not in wanted | assigned:
            continue
        if name in assigned:
            cause = "all of its rows leak and were left out: mend the sources, or set --leakage allow"
        elif config.split_by == "source":
            cause = "no file or split is named so"
        else:
            cause = (
                "groups or duplicates that stay together are larger than it: make it larger, take more rows, or "
                f"set --split.{name} 0"
            )
        raise UserError(f"{name} has no row: {cause}")
