"""One summary of one text.

python -m recipes.summarize --model runs/quickstart/export/model "My boss Jane hid my phone ..."
python -m recipes.summarize --model M --length.target 64 < article.txt
"""

from __future__ import annotations

import sys

from mlx_sumrl.data.examples import make_example
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.rollouts import Group, LocalSampler, Sampling
from recipes.given_model import GivenModel

DESCRIPTION = "Summarise one text: the last argument, or standard input. Its length goes to standard error."


def main() -> None:
    """Read the text, write the summary."""
    arguments = sys.argv[1:]
    text = None
    # The text is the one argument that is neither an option nor an option's value.
    if (
        arguments
        and not arguments[-1].startswith("--")
        and (len(arguments) == 1 or not _is_bare_option(arguments[-2]))
    ):
        text = arguments.pop()
    config = parse(GivenModel, arguments, prog="python -m recipes.summarize", description=DESCRIPTION)
    if text is None:
        if sys.stdin.isatty():
            raise UserError("there is no text: give it as the last argument, or on standard input")
        text = sys.stdin.read()
    if not text.strip():
        raise UserError("the given text cannot be used: empty document; give one that can be summarised")
    policy, data, length = config.loaded(config.max_tokens)
    example = make_example(text, data, policy.tokenizer, length.target)
    sampling = Sampling(config.temperature, max_tokens=config.max_tokens)
    groups = LocalSampler(policy).sample([example], 1, sampling, config.seed)
    answers = config.answers(policy)
    [written], [answer] = groups[0].completions, answers.shown(groups)[0].completions
    ending = "" if written.finish_reason == "stop" else ", cut there"
    if answers.metrics(groups, [Group(example, (answer,))]).get("reasoning/unfinished"):
        raise UserError(
            f"there is no answer: {answers.options.after!r} never came in {written.length} tokens{ending}; give more "
            "--max_tokens, or --answer.after null to see all that was written"
        )
    print(answer.text.strip())
    before = len(written.content_ids) - len(answer.content_ids)
    thought = f", after {before} of reasoning" if before else ""
    print(f"{answer.length} tokens{thought}{ending}", file=sys.stderr)


def _is_bare_option(argument: str) -> bool:
    """``--name`` whose value comes next, unlike ``--name=value``."""
    return argument.startswith("--") and "=" not in argument


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
