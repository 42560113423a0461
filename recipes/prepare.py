"""From sources to train, validation and test rows, with a card that says what they are.

    python -m recipes.prepare --source dialogsum --out data/dialogsum
    python -m recipes.prepare --source posts.jsonl --document_column post --summary_column tl_dr --out data/posts
    python -m recipes.prepare --source dialogsum --from dialogsum.train.jsonl --source xsum --out data/both
    python -m recipes.prepare --config prepare.yaml

What comes out is read by every other recipe: ``--data.train data/posts/train.jsonl``.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_sumrl.config.prepare import PrepareConfig
from mlx_sumrl.data.data_card import make_card
from mlx_sumrl.data.declared_sources import described
from mlx_sumrl.data.prepared import Prepared, prepare
from mlx_sumrl.data.prepared_folder import check_free, write_prepared
from mlx_sumrl.data.row_filters import CountTokens
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse_command
from mlx_sumrl.reporting.progress import Progress, make_progress

DESCRIPTION = (
    "Prepare a dataset, as with --source posts.jsonl --document_column post --summary_column tl_dr --out data/posts: "
    "read sources, leave out what cannot be used, look for duplicates, split without leakage, and write train.jsonl, "
    "validation.jsonl, test.jsonl and a card into a new folder. Declared sources: "
    f"{described()}. Any .jsonl, .csv or .parquet file, folder of these, or Hugging Face dataset (owner/name) is a "
    "source too."
)
SOURCE_HELP = (
    "A declared source, a file or folder, or a Hugging Face dataset; may be given several times. Options for each "
    "of several sources go into a YAML file, under `sources`."
)
FROM_HELP = (
    "Right after a --source: read this file or folder in its place, in the layout that the source has."
)
BATCH = 1000
"""Texts tokenised at once."""
PACKAGES = ("mlx_sumrl", "numpy", "datasketch", "py3langid", "datasets", "pyarrow", "tokenizers")


def main(argv: Sequence[str] | None = None) -> None:
    """Read, filter, split, write, say what was done."""
    given = list(sys.argv[1:] if argv is None else argv)
    config = _options(given)
    check_free(config.out, config.replace)
    console = Console()
    with make_progress() as progress:
        count_tokens = _token_counter(config.tokenizer, progress) if config.tokenizer else None
        prepared = prepare(config, count_tokens, progress)
        card = make_card(prepared, config, count_tokens, _made_with(given))
    write_prepared(prepared, card, config.out, config.replace)
    console.print(_said(prepared, card, config.out), highlight=False, markup=False, soft_wrap=True)


def _options(argv: list[str]) -> PrepareConfig:
    command = parse_command(
        PrepareConfig,
        _with_sources(argv),
        prog="python -m recipes.prepare",
        description=DESCRIPTION,
        extra={"source": SOURCE_HELP, "from": FROM_HELP},
        resumable=False,
    )
    assert isinstance(command.run, PrepareConfig)
    return command.run


def _with_sources(argv: list[str]) -> list[str]:
    """Every ``--source`` with its ``--from`` as one entry of ``--sources``."""
    sources: list[dict[str, Any]] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--source", "--from"):
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value or value.startswith("--"):
            raise UserError(f"{name} needs a value; see --help")
        if name == "--source":
            sources.append({"source": value})
        elif not sources:
            raise UserError(
                f"--from {value} stands before any --source: put it after the source it belongs to"
            )
        else:
            sources[-1].setdefault("files", []).append(value)
    if not sources:
        return rest
    if any(word.partition("=")[0] == "--sources" for word in rest):
        raise UserError("--source and --sources say the same thing: give one of them")
    # In front, so that --sources.0.rows finds an entry to change.
    return ["--sources", json.dumps(sources), *rest]


def _token_counter(folder: str, progress: Progress) -> CountTokens:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"--tokenizer {folder} is no folder: name one that holds a tokenizer.json")
    from mlx_sumrl.policy.loading import load_tokenizer  # with it comes mlx, which preparing does without

    tokenizer = load_tokenizer(path)

    def count(texts: Sequence[str]) -> list[int]:
        # The text alone: the stop token and a template's tokens are no part of its length.
        counts: list[int] = []
        progress.start("tokens", len(texts))
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            encoded = tokenizer(batch, add_special_tokens=False, verbose=False)  # some are long, and may be
            counts += [len(ids) for ids in encoded["input_ids"]]
            progress.update(len(counts), {})
        return counts

    return count


def _made_with(argv: Sequence[str]) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"command": shlex.join(["python", "-m", "recipes.prepare", *argv]), "versions": versions}


def _said(prepared: Prepared, card: dict[str, Any], out: Path) -> str:
    rows = card["rows"]
    splits = ", ".join(f"{len(members)} {name}" for name, members in prepared.splits.items())
    duplicates, leakage = card["duplicates"], card["leakage"]
    lines = [
        f"{rows['read']} rows read, {rows['written']} written ({splits}), {rows['left_out']} left out",
        *(
            f"  {own['rows']} x {reason} ({', '.join(own['ids'][:3])}{', ...' if own['rows'] > 3 else ''})"
            for reason, own in card["left_out"].items()
        ),
        f"duplicates: {duplicates['exact_rows']} exact (rows), {duplicates['near_pairs']} near (pairs); "
        f"leakage: {leakage['rows']} rows"
        + (", left out" if leakage["left_out"] and leakage["rows"] else ""),
        *_mix(card),
        f"wrote {out}; the card for people is {out / 'README.md'}",
    ]
    return "\n".join(lines)


def _mix(card: dict[str, Any]) -> list[str]:
    """Where sources were drawn from: what there was and what is here."""
    sources = card["sources"]
    if all(one["weight"] is None and one["limit"] is None for one in sources):
        return []
    told = [
        f"{one['name']} {one['offered']} ({one['offered_share']:.1%}) -> {one['written']} ({one['written_share']:.1%})"
        for one in sources
    ]
    return ["drawn from sources: " + ", ".join(told)]


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
