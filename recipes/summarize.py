"""One summary of one text.

    python -m recipes.summarize --model runs/quickstart/export/model "My boss Jane hid my phone ..."
    python -m recipes.summarize --model M --length.target 64 < article.txt
    python -m recipes.summarize --model M --file report.txt --long

The last reads all of a text that is longer than a prompt: in overlapping chunks, whose summaries are summarised again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Self

from pydantic import model_validator

from mlx_sumrl.config import LongDocumentsConfig
from mlx_sumrl.data.examples import fitted_text, is_blank
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.reporting.progress import make_progress
from mlx_sumrl.rewards.length import length_in
from mlx_sumrl.rollouts import LocalSampler, Sampling
from mlx_sumrl.rollouts.answer_part import AnswersOnly
from mlx_sumrl.rollouts.long_summary import LongSummarizer, LongSummary, round_told
from recipes.given_model import GivenModel

DESCRIPTION = (
    "Summarise one text: the last argument, a file, or standard input. Its length goes to standard error."
)
SWITCHES = ("--long", "--show_parts")
"""Options that usually stand without a value."""


class SummarizeConfig(GivenModel):
    """Which model, how, and what of."""

    file: Path | None = None
    """Read the text from this file (UTF-8)."""
    long: LongDocumentsConfig | None = None
    """`--long` reads all of a text that is longer than a prompt; without it such a text loses its end.
    Partial summaries that together are no longer than asked are the summary, which may then have more than
    `max_tokens`."""
    show_parts: bool = False
    """With `--long`: write the partial summaries to standard error."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.show_parts and self.long is None:
            raise ValueError("show_parts shows what --long makes: give --long too, or leave it out")
        return self


def main() -> None:
    """Read the text, write the summary."""
    arguments = sys.argv[1:]
    text = arguments.pop() if _is_text(arguments) else None
    config = parse(SummarizeConfig, arguments, prog="python -m recipes.summarize", description=DESCRIPTION)
    text = _given_text(text, config.file)
    policy, data, length = config.loaded(config.max_tokens)
    sampler, tokenizer = LocalSampler(policy), policy.tokenizer
    sampling = Sampling(config.temperature, max_tokens=config.max_tokens)
    answers, thought = config.answers(policy), ""
    if config.long:
        shortened = AnswersOnly(sampler, answers)
        summarizer = LongSummarizer(shortened, tokenizer, data, length, sampling, config.long)
        summary = _long_summary(summarizer, text, config)
        written, measured, finished = summary.text, summary.length, summary.finished
    else:
        example, lost = fitted_text(text, data, tokenizer, length.target)
        if lost:
            print(
                f"the text is longer than a prompt of {data.max_prompt_tokens} tokens: its last {lost} tokens were not "
                "read; --long reads all of it",
                file=sys.stderr,
            )
        groups = sampler.sample([example], 1, sampling, config.seed)
        shown = answers.shown(groups)
        [whole], [answer] = groups[0].completions, shown[0].completions
        finished = whole.finish_reason == "stop"
        reasoning = answers.metrics(groups, shown)
        if reasoning.get("reasoning/unfinished"):
            raise UserError(
                f"there is no answer: {answers.options.after!r} never came in {whole.length} tokens"
                f"{'' if finished else ', cut there'}; give more --max_tokens, or --answer.after null to see all that "
                "was written"
            )
        written, measured = answer.text.strip(), length_in(answer, length.unit)
        if before := reasoning.get("reasoning/length"):
            thought = f", after {before:.0f} tokens of reasoning"
    print(written)
    print(f"{measured} {length.unit}{thought}{'' if finished else ', cut there'}", file=sys.stderr)


def _long_summary(summarizer: LongSummarizer, text: str, config: SummarizeConfig) -> LongSummary:
    """Round by round; progress and, where wished, partial summaries go to standard error."""
    with make_progress(sys.stderr) as progress:
        summary = summarizer.summarize(text, config.seed, round_told(progress))
    for number, parts in enumerate(summary.rounds if config.show_parts else (), start=1):
        for place, part in enumerate(parts, start=1):
            print(f"[round {number}, chunk {place} of {len(parts)}] {part.summary}", file=sys.stderr)
    return summary


def _is_text(arguments: list[str]) -> bool:
    """Whether the last argument is neither an option nor an option's value."""
    if not arguments or arguments[-1].startswith("--"):
        return False
    if len(arguments) == 1 or not _is_bare_option(arguments[-2]):
        return True
    last = arguments[-1]
    return arguments[-2] in SWITCHES and last not in ("true", "false", "null") and not last.startswith("{")


def _is_bare_option(argument: str) -> bool:
    """``--name`` whose value comes next, unlike ``--name=value``."""
    return argument.startswith("--") and "=" not in argument


def _given_text(text: str | None, file: Path | None) -> str:
    """The text from wherever it is. Raises `UserError` for none, two, one that cannot be read or is empty."""
    if text is not None and file is not None:
        raise UserError(f"there are two texts, the last argument and --file {file}; give one")
    if text is None:
        source = "standard input" if file is None else str(file)
        try:
            if file is not None:
                text = file.read_text(encoding="utf-8-sig")
            elif sys.stdin.isatty():
                raise UserError("there is no text: give it as the last argument, or on standard input")
            else:
                text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UserError(f"{source} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
        except OSError as error:
            raise UserError(f"{source} cannot be read ({error.strerror}); correct --file") from error
    if is_blank(text):
        raise UserError("the given text cannot be used: empty document; give one that can be summarised")
    return text


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
