"""One summary of one text.

python -m recipes.summarize --model runs/quickstart/export/model "My boss Jane hid my phone ..."
python -m recipes.summarize --model M --length.target 64 < article.txt
"""

from __future__ import annotations

import sys

from pydantic import Field

from mlx_sumrl.config import DEFAULT_DTYPE, DataConfig, Dtype, LengthConfig, PolicyConfig, Room
from mlx_sumrl.data.examples import make_example
from mlx_sumrl.data.prompting import as_trained
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.rollouts import LocalSampler, Sampling

DESCRIPTION = "Summarise one text: the last argument, or standard input. Its length goes to standard error."


class SummarizeConfig(Room):
    """Which model, and how."""

    model: str
    """A model folder or a Hugging Face id."""
    adapter: str | None = None
    """An mlx_lm adapter folder on top of it."""
    dtype: Dtype = DEFAULT_DTYPE
    """Type of the weights."""
    data: DataConfig = DataConfig()
    """How the text is put to the model; as in training where its folder says how."""
    length: LengthConfig = LengthConfig()
    """What the instruction asks for."""
    max_tokens: int = Field(default=128, gt=1)
    """Most tokens of the summary, the stop token counted."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    seed: int = 0
    """Matters above temperature 0."""


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
    config = parse(SummarizeConfig, arguments, prog="python -m recipes.summarize", description=DESCRIPTION)
    if text is None:
        if sys.stdin.isatty():
            raise UserError("there is no text: give it as the last argument, or on standard input")
        text = sys.stdin.read()
    if not text.strip():
        raise UserError("the given text cannot be used: empty document; give one that can be summarised")
    policy = load_policy(PolicyConfig(model=config.model, dtype=config.dtype), adapter=config.adapter)
    data, length = as_trained(config.model, config.data, config.length)
    room = policy.room_for_prompt(data.max_prompt_tokens, config.max_tokens)
    data = data.model_copy(update={"max_prompt_tokens": room})
    example = make_example(text, data, policy.tokenizer, length.target)
    sampling = Sampling(config.temperature, max_tokens=config.max_tokens)
    completion = LocalSampler(policy).sample([example], 1, sampling, config.seed)[0].completions[0]
    print(completion.text.strip())
    ending = "" if completion.finish_reason == "stop" else ", cut there"
    print(f"{completion.length} tokens{ending}", file=sys.stderr)


def _is_bare_option(argument: str) -> bool:
    """``--name`` whose value comes next, unlike ``--name=value``."""
    return argument.startswith("--") and "=" not in argument


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
