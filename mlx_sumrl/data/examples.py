"""Rows -> examples: what every step, sampler and reward works on.

Invariant: each row either becomes exactly one example or is counted in the report under a reason; examples
keep the rows' order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from mlx_sumrl.config import DataConfig
from mlx_sumrl.data.declared_sources import declared
from mlx_sumrl.data.encoding import cut, encode
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.grammar import make_posts
from mlx_sumrl.data.prompts import PromptTemplate, UnusableRowError
from mlx_sumrl.data.row_report import RowCounter, RowReport
from mlx_sumrl.data.sources import Row, Rows, read_rows, rows_from
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Which = Literal["train", "evaluation"]

TEMPLATE_TOO_LONG = "the template alone is longer than max_prompt_tokens"


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """The examples of one source and what became of its rows."""

    examples: list[Example]
    report: RowReport

    @classmethod
    def counted(cls, examples: list[Example], counter: RowCounter, config: DataConfig, option: str) -> Self:
        """All that came of the rows that were counted.

        Raises:
            UserError: more unusable rows than `config.max_unusable_share`, or no usable row at all.
        """
        report = counter.report()
        if not examples or report.unusable_share > config.max_unusable_share:
            raise UserError(too_many_unusable(report, config, option))
        return cls(examples, report)


def config_rows(config: DataConfig, which: Which, seed: int) -> Rows | None:
    """The rows that the options name: of a file, a dataset or the grammar; None where none are named.

    Raises:
        UserError: see `read_rows`.
    """
    limit = config.train_rows if which == "train" else config.evaluation_rows
    if config.grammar is not None:
        posts = make_posts(config.grammar.train_posts, config.grammar.evaluation_posts, seed)
        made = posts[which == "evaluation"]
        return rows_from(f"the grammar ({which})", made[limit:] if limit and limit < 0 else made[:limit])
    if which == "train":
        return None if config.train is None else _named_rows(config.train, config.train_split, limit)
    return (
        None if config.evaluation is None else _named_rows(config.evaluation, config.evaluation_split, limit)
    )


def _named_rows(name: str, split: str, limit: int | None) -> Rows:
    """`read_rows`, and of a declared source (`xsum`) from the place on the hub that its declaration names."""
    source = None if Path(name).expanduser().exists() else declared(name)
    if source is None or source.hub is None:
        return read_rows(name, split, limit)
    hub = source.hub
    place = {"config_name": hub.config_name, "revision": hub.revision, "folder": hub.folder}
    return read_rows(hub.name, split, limit, **place)


def load_examples(
    rows: Rows,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    target_length: int,
    which: Which = "train",
    targets: Sequence[int] | None = None,
) -> LoadedExamples:
    """Every usable row as an example, its prompt asking for `target_length` tokens.

    Args:
        targets: the length that each row [N] is asked for in its place, which its example then knows.

    Raises:
        UserError: a column that does not exist, a chat template that cannot be used, more unusable rows than
            `config.max_unusable_share`, or no usable row at all.
    """
    option = f"data.{which}"
    if not rows.rows:
        raise UserError(f"{option}: {rows.name} has no rows; name a source that has some")
    columns = rows.columns
    counter = RowCounter(rows.name)
    examples: list[Example] = []
    template: PromptTemplate | None = None
    if columns:  # else every row is broken, and is reported as such
        check_columns(config, columns, rows.name, option)
        template = PromptTemplate(config, tokenizer, columns, rows.name)
    each: Sequence[int | None] = [None] * len(rows.rows) if targets is None else targets
    for row, target in zip(rows.rows, each, strict=True):
        try:
            if row.broken is not None or template is None:
                raise UnusableRowError(row.broken or "no columns")
            document = usable_text(row, config.document_column, "document")
            references = usable_references(row, config)
            example, tokens_cut = fitted_example(
                template,
                config,
                tokenizer,
                target_length if target is None else target,
                row_id(row, config),
                document,
                references[0],
                row.fields,
                config.max_prompt_tokens,
            )
            example = replace(example, references=references if len(references) > 1 else (), target=target)
        except UnusableRowError as error:
            counter.refuse(row.id, str(error))
            continue
        examples.append(example)
        counter.use(len(example.prompt_ids), tokens_cut)
    return LoadedExamples.counted(examples, counter, config, option)


def make_example(
    document: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    target_length: int,
    fields: Mapping[str, Any] | None = None,
) -> Example:
    """One text, outside of any file, as an example with an empty reference; see `fitted_text`."""
    return fitted_text(document, config, tokenizer, target_length, fields)[0]


def fitted_text(
    document: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    target_length: int,
    fields: Mapping[str, Any] | None = None,
) -> tuple[Example, int]:
    """One text, outside of any file, as an example, and how many tokens of it the prompt had no room for.

    `fields` are the columns, besides the document, that the instruction names.

    Raises:
        UserError: the text has nothing to summarise in it, or a prompt cannot be made of it.
    """
    columns = {config.document_column: document, **(fields or {})}
    row = Row("text", columns)
    template = PromptTemplate(config, tokenizer, list(columns), "the given text")
    try:
        document = usable_text(row, config.document_column, "document")
        return fitted_example(
            template,
            config,
            tokenizer,
            target_length,
            row.id,
            document,
            "",
            columns,
            config.max_prompt_tokens,
        )
    except UnusableRowError as error:
        way_out = (
            f"raise data.max_prompt_tokens ({config.max_prompt_tokens})"
            if str(error) == TEMPLATE_TOO_LONG
            else ""
        )
        raise UserError(
            f"the given text cannot be used: {error}; {way_out or 'give one that can be summarised'}"
        ) from error


def fitted_example(
    template: PromptTemplate,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    target_length: int,
    name: str,
    document: str,
    reference: str,
    fields: Mapping[str, Any],
    longest: int,
) -> tuple[Example, int]:
    """The example, its prompt at most `longest` tokens long, and how many tokens its document lost.

    Raises:
        UnusableRowError: no prompt can be made of it, or its template alone is longer.
    """
    prompt = template.fill(fields, document, target_length)
    check_unicode(prompt.text, "prompt")  # other columns are in it too
    # A chat template writes its own beginning-of-sequence token; plain text needs the tokenizer's.
    plain = config.chat_template == "none"
    whole = encode(tokenizer, prompt.text, prompt.data, add_special_tokens=plain)
    kept = cut(whole, prompt.document, longest)
    if kept is None:
        raise UnusableRowError(TEMPLATE_TOO_LONG)
    example = Example(name, kept.ids, prompt.text, document, reference, dict(fields))
    return example, len(whole.ids) - len(kept.ids)


def usable_text(row: Row, column: str, role: str) -> str:
    """A column's text. Raises `UnusableRowError` where it is missing, no text, no Unicode, or blank."""
    return _usable(row.fields.get(column), role)


def _usable(value: Any, role: str) -> str:
    if value is None:
        raise UnusableRowError(f"no {role}")
    if not isinstance(value, str):
        raise UnusableRowError(f"the {role} is not text")
    check_unicode(value, role)
    if is_blank(value):
        raise UnusableRowError(f"empty {role}")
    return value


def usable_references(row: Row, config: DataConfig) -> tuple[str, ...]:
    """All of a row's references, the one to learn from first: of its column, which may hold a list, and of the columns
    for more, which may be empty. Raises `UnusableRowError` where one is no text or there is none.
    """
    held = row.fields.get(config.reference_column)
    own = held if isinstance(held, list) else [held]
    more = [row.fields.get(name) for name in config.more_reference_columns]
    given = own + [one for one in more if one is not None and one != ""]
    return tuple(_usable(one, "reference").strip() for one in given or [None])


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in it."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def check_unicode(text: str, role: str) -> None:
    """Raises `UnusableRowError` for text that cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, or a byte that was not UTF-8
        raise UnusableRowError(f"the {role} is not valid Unicode") from error


def row_id(row: Row, config: DataConfig) -> str:
    """The row's own id, or where it stands in its source."""
    own = row.fields.get(config.id_column) if config.id_column else None
    return row.id if own is None else str(own)


def check_columns(
    config: DataConfig,
    columns: list[str],
    source: str,
    option: str,
    names: Sequence[str] = ("document_column", "reference_column", "id_column"),
) -> None:
    """Raises `UserError` where a column that the options `names` of `config` name does not exist."""
    named = [(name, getattr(config, name)) for name in names]
    if option == "data.evaluation" and "reference_column" in names:
        named += [("more_reference_columns", column) for column in config.more_reference_columns]
    for name, column in named:
        if column is not None and column not in columns:
            close = get_close_matches(column, columns, n=1)
            raise UserError(
                f"{option}: {source} has no column {column!r} (data.{name}); its columns are "
                f"{', '.join(columns)}" + (f"; did you mean {close[0]!r}?" if close else "")
            )


def too_many_unusable(report: RowReport, config: DataConfig, option: str) -> str:
    """What to tell who has too many rows that cannot be used, or none that can."""
    unusable = report.total - report.used
    text = f"{option}: {unusable} of {report.total} rows of {report.source} cannot be used"
    way_out = "mend or remove these rows"
    if report.used:
        text += (
            f" ({report.unusable_share:.1%}; data.max_unusable_share allows {config.max_unusable_share:.1%})"
        )
        way_out += ", or raise data.max_unusable_share"
    if TEMPLATE_TOO_LONG in report.unusable:
        way_out += f", or raise data.max_prompt_tokens ({config.max_prompt_tokens})"
    return f"{text}: {report.describe_unusable()}; {way_out}"
