"""Does reading all of a long text tell more of it than reading its beginning? ``python -m benchmarks.long_documents``

Several documents are joined into one text of several contexts, and a model summarises it for an asked length: with
``--long``, in chunks whose summaries are summarised again; cut to one prompt; and cut, but made to write exactly as
many tokens as ``--long`` did, since recall rises with length. All are held against the references of all the documents
together, by ROUGE recall.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlx_sumrl.config import DataConfig, LengthConfig, LongDocumentsConfig, PolicyConfig
from mlx_sumrl.data.examples import fitted_text
from mlx_sumrl.data.sources import read_rows
from mlx_sumrl.metrics.rouge import rouge
from mlx_sumrl.options.command_line import exit_code_of
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts import LocalSampler, Sampling
from mlx_sumrl.rollouts.long_summary import LongSummarizer

RECALLS = ("rouge1_recall", "rouge2_recall", "rougeL_recall")
RESAMPLES = 2_000
"""Of the texts, for the interval of a difference."""
SEED = 0


@dataclass(frozen=True)
class Told:
    """What the summaries of one way tell; means over the texts."""

    way: str
    tokens: float
    recalls: dict[str, float]


@dataclass(frozen=True)
class Text:
    """Joined documents."""

    text: str
    references: str


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_documents", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", required=True, help="a model folder or a Hugging Face id")
    parser.add_argument("--data", required=True, help="rows with a document and a summary")
    parser.add_argument(
        "--instruction", default="Summarize the article.\n\n{document}", help="the user's turn"
    )
    parser.add_argument("--document-column", default="document", help="`document` otherwise")
    parser.add_argument("--joined", type=int, default=8, help="documents of a text, 8 otherwise")
    parser.add_argument("--texts", type=int, default=25, help="texts, 25 otherwise")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 400], help="asked, 64 400 otherwise")
    parser.add_argument("--max-tokens", type=int, default=128, help="most tokens of a summary, 128 otherwise")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)

    policy = load_policy(PolicyConfig(model=arguments.model, dtype="float32"))
    data = DataConfig(instruction=arguments.instruction, document_column=arguments.document_column)
    room = policy.room_for_prompt(data.max_prompt_tokens, arguments.max_tokens)
    data = data.model_copy(update={"max_prompt_tokens": room})
    texts = joined(arguments.data, data, arguments.joined, arguments.texts)
    compared = {
        asked: compare(policy, data, LengthConfig(target=asked), arguments.max_tokens, texts)
        for asked in arguments.lengths
    }
    tokens = float(np.mean([len(policy.tokenizer(one.text)["input_ids"]) for one in texts]))
    report = {
        "texts": len(texts),
        "joined": arguments.joined,
        "tokens": tokens,
        "prompt": room,
        "asked": {
            asked: {"told": [asdict(way) for way in told], "gain": {"mean": gain, "low": low, "high": high}}
            for asked, (told, (gain, low, high)) in compared.items()
        },
    }
    if arguments.json:
        print(json.dumps(report))
        return 0
    Console().print(table(compared))
    print(
        f"{len(texts)} texts of {arguments.joined} documents of {Path(arguments.data).name}, {tokens:.0f} tokens on "
        f"average; a prompt has {room}"
    )
    for asked, (_, (gain, low, high)) in compared.items():
        print(
            f"ROUGE-1 recall, long - as long, asked for {asked}: {100 * gain:+.1f} "
            f"(95 %: {100 * low:+.1f} to {100 * high:+.1f})"
        )
    return 0


def joined(source: str, data: DataConfig, count: int, texts: int) -> list[Text]:
    """The first documents, ``count`` in a text. Raises `UserError`."""
    rows = read_rows(source, limit=count * texts).rows
    made = []
    for start in range(0, len(rows) - count + 1, count):
        fields = [row.fields for row in rows[start : start + count]]
        documents = [str(one[data.document_column]) for one in fields]
        references = "\n".join(str(one[data.reference_column]) for one in fields)
        made.append(Text("\n\n".join(documents), references))
    return made


def compare(
    policy: Policy, data: DataConfig, length: LengthConfig, max_tokens: int, texts: Sequence[Text]
) -> tuple[list[Told], tuple[float, float, float]]:
    """The three ways, and how much more ROUGE-1 recall the whole text gives than its beginning at the same length."""
    sampler = LocalSampler(policy)
    free = Sampling(0.0, max_tokens=max_tokens)
    long = LongSummarizer(sampler, policy.tokenizer, data, length, free, LongDocumentsConfig())
    answers: dict[str, list[str]] = {"cut": [], "cut, as long": [], "long": []}
    for one in track(texts, description=f"asked for {length.target}", console=Console(stderr=True)):
        whole = long.summarize(one.text, SEED).text
        answers["long"].append(whole)
        tokens = len(policy.tokenizer(whole)["input_ids"])
        forced = Sampling(0.0, max_tokens=tokens, min_tokens=tokens)
        for way, sampling in (("cut", free), ("cut, as long", forced)):
            # A longer answer leaves less of the context to the prompt.
            room = policy.room_for_prompt(data.max_prompt_tokens, sampling.max_tokens)
            fitting = data.model_copy(update={"max_prompt_tokens": room})
            example, _ = fitted_text(one.text, fitting, policy.tokenizer, length.target)
            answers[way].append(sampler.sample([example], 1, sampling, SEED)[0].completions[0].text)
    told = [way_told(way, written, texts, policy) for way, written in answers.items()]
    pairs = zip(answers["cut, as long"], answers["long"], texts, strict=True)
    gains = np.array([recall(b, one) - recall(a, one) for a, b, one in pairs])
    drawn = np.random.default_rng(SEED).choice(gains, (RESAMPLES, len(gains))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return told, (float(gains.mean()), float(low), float(high))


def recall(answer: str, of: Text, name: str = "rouge1_recall") -> float:
    """Of all the references together."""
    return rouge(answer, of.references)[name]


def way_told(way: str, answers: Sequence[str], texts: Sequence[Text], policy: Policy) -> Told:
    """Means over the texts."""
    return Told(
        way,
        float(np.mean([len(policy.tokenizer(answer)["input_ids"]) for answer in answers])),
        {
            name: float(np.mean([recall(a, one, name) for a, one in zip(answers, texts, strict=True)]))
            for name in RECALLS
        },
    )


def table(compared: dict[int, tuple[list[Told], tuple[float, float, float]]]) -> Table:
    """For a person; percent."""
    shown = Table("asked", "way", "tokens", "R-1 recall", "R-2 recall", "R-L recall")
    for asked, (told, _) in compared.items():
        for one in told:
            recalls = [f"{100 * one.recalls[key]:.1f}" for key in RECALLS]
            shown.add_row(str(asked), one.way, f"{one.tokens:.0f}", *recalls)
    return shown


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
