"""Predictions that others made, as files, held against references: no model is needed. Never imports mlx.

Invariant: every record of either file is scored, or counted under a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_sumrl.config.predictions import PredictionsConfig
from mlx_sumrl.data.answer_schema import NotJsonError, read_json
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.predictions_account import Account, reasons, refuse
from mlx_sumrl.evaluation.predictions_file import (
    UnreadableError,
    column,
    columns_as_values,
    is_text_only,
    of_kind,
    read_file,
    require,
    truth,
    value_of,
)
from mlx_sumrl.evaluation.structured_fields import FieldKind, field_kind

Key = tuple[str, str | None]
"""(id, sample)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer beside what it should have been."""

    id: str
    sample: str | None
    valid: bool
    answer: dict[str, Any] | None
    """Field -> value; a field that is missing is not there. None for an answer that is not valid."""
    reference: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers beside references."""

    rows: tuple[Prediction, ...]
    fields: tuple[str, ...]
    """Those that are scored, in the references' order."""
    kinds: dict[str, FieldKind]
    several: bool
    """Whether several answers to one id are meant."""
    account: Account


def load_predictions(config: PredictionsConfig) -> Predictions:
    """Both files, put together by id.

    Raises:
        UserError: a file that cannot be read, a missing column, an id that is there twice, or more rows without a
            partner than `config.max_unmatched_share`.
    """
    account = Account()
    given = read_file(config.predictions, "predictions")
    references = _references(config, account)
    fields = _fields_asked(config, references)
    kinds = {name: field_kind(row.get(name) for row in references.values()) for name in fields}
    several = config.samples or config.sample_column in given.columns
    _check_columns(config, given, fields)
    answers = _answers(config, given, kinds, several, account)
    account.columns_left_out = _columns_left_out(config, given, fields)
    rows = _joined(config, answers, references, fields, account)
    if not rows:
        raise UserError(
            f"no id of {config.predictions} is among those of {config.references} ({account.describe()}); name the "
            "columns that hold the ids with --id_column and --reference_id_column"
        )
    account.check(config.max_unmatched_share)
    return Predictions(tuple(rows), fields, kinds, several, account)


def _id(row: Row, name: str) -> str | None:
    value = column(row.fields, name)
    return None if value is None or value == "" or isinstance(value, dict | list) else str(value)


def _references(config: PredictionsConfig, account: Account) -> dict[str, dict[str, Any]]:
    """Id -> fields, of every reference that can be used."""
    rows = read_file(config.references, "references")
    account.references = len(rows.rows)
    id_column = config.reference_id_column or config.id_column
    require(
        rows,
        [id_column],
        "references",
        "name the one that holds the ids with --reference_id_column, with dots where it is inside of one (metadata.id)",
    )
    conversations = config.messages_column in rows.columns
    if is_text_only(config.references):
        readable = [row for row in rows.rows if row.broken is None]
        values = columns_as_values(
            [{n: v for n, v in row.fields.items() if n != id_column} for row in readable]
        )
        kept = {row.id: value for row, value in zip(readable, values, strict=True)}
    found: dict[str, dict[str, Any]] = {}
    for row in rows.rows:
        name = _id(row, id_column)
        try:
            if row.broken is not None or name is None:
                raise UnreadableError(row.broken or "no id")
            if conversations:
                fields = _last_answer(row.fields.get(config.messages_column))
            elif is_text_only(config.references):
                fields = {key: value for key, value in kept[row.id].items() if value is not None}
            else:
                fields = {key: value for key, value in row.fields.items() if value is not None}
        except UnreadableError as error:
            refuse(account.unused_references, str(error), name or row.id)
            continue
        if name in found:
            raise UserError(
                f"references: {config.references} has the id {name!r} twice; leave one of them out"
            )
        found[name] = fields
    if not found:
        raise UserError(
            f"references: no row of {config.references} can be used ({reasons(account.unused_references)}); mend them"
        )
    return found


def _last_answer(messages: Any) -> dict[str, Any]:
    """The JSON object that a conversation ends with."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise UnreadableError("the conversation does not end with an answer")
    try:
        answer = read_json(str(last.get("content")))
    except NotJsonError as error:
        raise UnreadableError("the answer is not JSON") from error
    if not isinstance(answer, dict):
        raise UnreadableError("the answer is no JSON object")
    return answer


def _fields_asked(config: PredictionsConfig, references: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    id_column = config.reference_id_column or config.id_column
    own = (id_column, id_column.partition(".")[0], config.valid_column, config.sample_column)
    there = dict.fromkeys(name for row in references.values() for name in row)
    for option, names in (("fields", config.fields), ("rename", config.rename)):
        for name in names:
            if name not in there:
                raise UserError(
                    f"{option} has {name!r}, which {config.references} does not; it has {', '.join(there)}"
                )
    fields = config.fields or tuple(name for name in there if name not in own)
    if not fields:
        raise UserError(f"references: {config.references} has nothing but ids; name a file with answers")
    return fields


def _check_columns(config: PredictionsConfig, given: Rows, fields: Sequence[str]) -> None:
    require(given, [config.id_column], "predictions", "name the one that holds the ids with --id_column")
    if config.answer_column is not None:
        require(given, [config.answer_column], "predictions", "name the right one with --answer_column")
        return
    for name in fields:
        require(
            given,
            [config.rename.get(name, name)],
            "predictions",
            f"give it its name there (--rename '{{{name}: NAME}}'), or score others only (--fields A,B)",
        )


def _answers(
    config: PredictionsConfig, given: Rows, kinds: dict[str, FieldKind], several: bool, account: Account
) -> dict[Key, tuple[bool, dict[str, Any] | None]]:
    """(id, sample) -> valid, answer."""
    account.predictions = len(given.rows)
    found: dict[Key, tuple[bool, dict[str, Any] | None]] = {}
    counted: Counter[str] = Counter()
    for row in given.rows:
        name = _id(row, config.id_column)
        try:
            if row.broken is not None or name is None:
                raise UnreadableError(row.broken or "no id")
            valid, values = _stated(config, row)
        except UnreadableError as error:
            refuse(account.unused_predictions, str(error), name or row.id)
            continue
        sample = column(row.fields, config.sample_column)
        if several and sample is None:
            sample = counted[name]
        counted[name] += 1
        key = (name, None if sample is None else str(sample))
        if key in found:
            which = f" with {config.sample_column} {key[1]!r}" if several else ""
            way_out = (
                f"number them in {config.sample_column}"
                if several
                else "--samples true if several answers are meant"
            )
            raise UserError(
                f"predictions: {config.predictions} has the id {name!r}{which} twice; leave one of them out, or "
                f"{way_out}"
            )
        found[key] = (valid, _typed(config, values, kinds, account) if valid else None)
    return found


def _stated(config: PredictionsConfig, row: Row) -> tuple[bool, dict[str, Any]]:
    """Whether the row says that it is valid, and its values by their names there."""
    stated = column(row.fields, config.valid_column)
    valid = True
    if stated is not None and stated != "":
        try:
            valid = truth(stated)
        except UnreadableError as error:
            raise UnreadableError(f"{config.valid_column} is neither true nor false") from error
    if config.answer_column is None:
        return valid, row.fields
    answer = column(row.fields, config.answer_column)
    if isinstance(answer, str):
        try:
            answer = read_json(answer)
        except NotJsonError:
            return False, {}
    return (valid, answer) if isinstance(answer, dict) else (False, {})


def _typed(
    config: PredictionsConfig, values: dict[str, Any], kinds: dict[str, FieldKind], account: Account
) -> dict[str, Any]:
    """The fields of a valid answer, those aside that are not of the references' kind."""
    cells = is_text_only(config.predictions) and config.answer_column is None
    answer = {}
    for name, kind in kinds.items():
        value = column(values, config.rename.get(name, name))
        try:
            if cells and isinstance(value, str):
                value = value_of(value, kind)
            if value is not None:
                answer[name] = of_kind(value, kind)
        except UnreadableError:
            account.wrong_kind[name] += 1
    return answer


def _columns_left_out(config: PredictionsConfig, given: Rows, fields: Sequence[str]) -> list[str]:
    used = {config.id_column, config.valid_column, config.sample_column, config.answer_column}
    used |= {config.rename.get(name, name) for name in fields}
    used |= {name.partition(".")[0] for name in used if name is not None}
    return [name for name in given.columns if name not in used]


def _joined(
    config: PredictionsConfig,
    answers: dict[Key, tuple[bool, dict[str, Any] | None]],
    references: dict[str, dict[str, Any]],
    fields: Sequence[str],
    account: Account,
) -> list[Prediction]:
    """A row for each answer that has a reference, in the order of the references."""
    wanted = {name: {one: row[one] for one in fields if one in row} for name, row in references.items()}
    by_id: dict[str, list[Prediction]] = {name: [] for name in wanted}
    for (name, sample), (valid, answer) in answers.items():
        if name in wanted:
            by_id[name].append(Prediction(name, sample, valid, answer, wanted[name]))
        else:
            refuse(account.unused_predictions, "no such reference", name)
    for name, rows in by_id.items():
        if not rows and config.missing == "invalid":
            rows.append(Prediction(name, None, False, None, wanted[name]))
        elif not rows:
            refuse(account.unused_references, "no prediction", name)
    return [row for rows in by_id.values() for row in rows]
