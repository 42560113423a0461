"""Does reading all of a long text tell more of it than reading its beginning? ``python -m benchmarks.long_documents``

Several documents are joined into one text of several contexts, and a model summarises it twice: cut to one prompt, and
with ``--long``, in chunks whose summaries are summarised again. Both summaries are held against all the references of
the text's documents together: ROUGE recall says how much of them is told, and of how many documents something is. Recall
rises with length, so the same is asked once more with both made to write exactly ``--length`` tokens.
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
from mlx_sumrl.evaluation.overlap import rouge
from mlx_sumrl.options.command_line import exit_code_of
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts import Completion, LocalSampler, Sampling
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
    later: float
    """ROUGE-1 recall of the references of documents that the cut prompt does not hold."""


@dataclass(frozen=True)
class Text:
    """Joined documents."""

    text: str
    references: tuple[str, ...]
    ends: tuple[int, ...]
    """The character after each document."""


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
    parser.add_argument("--joined", type=int, default=8, help="documents of a text, 8 otherwise")
    parser.add_argument("--texts", type=int, default=25, help="texts, 25 otherwise")
    parser.add_argument("--length", type=int, default=64, help="tokens of the forced summaries, 64 otherwise")
    parser.add_argument("--max-tokens", type=int, default=128, help="most tokens of a summary, 128 otherwise")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)

    policy = load_policy(PolicyConfig(model=arguments.model, dtype="float32"))
    data = DataConfig(instruction=arguments.instruction)
    room = policy.room_for_prompt(data.max_prompt_tokens, arguments.max_tokens)
    data = data.model_copy(update={"max_prompt_tokens": room})
    texts = joined(arguments.data, data, arguments.joined, arguments.texts)
    ways = {
        "free": Sampling(0.0, max_tokens=arguments.max_tokens),
        f"{arguments.length} tokens": Sampling(0.0, max_tokens=arguments.length, min_tokens=arguments.length),
    }
    length = LengthConfig(target=arguments.length)
    compared = {name: compare(policy, data, length, sampling, texts) for name, sampling in ways.items()}
    tokens = float(np.mean([len(policy.tokenizer(one.text)["input_ids"]) for one in texts]))
    report = {
        "texts": len(texts),
        "joined": arguments.joined,
        "tokens": tokens,
        "prompt": room,
        "ways": {
            name: {
                "told": [asdict(way) for way in told],
                "difference": {"mean": gain, "low": low, "high": high},
            }
            for name, (told, (gain, low, high)) in compared.items()
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
    for name, (_, (gain, low, high)) in compared.items():
        print(
            f"ROUGE-1 recall, long - cut, {name}: {100 * gain:+.1f} (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
        )
    return 0


def joined(source: str, data: DataConfig, count: int, texts: int) -> list[Text]:
    """The first documents, ``count`` in a text. Raises `UserError`."""
    rows = read_rows(source, limit=count * texts).rows
    made = []
    for start in range(0, len(rows) - count + 1, count):
        fields = [row.fields for row in rows[start : start + count]]
        documents = [str(one[data.document_column]) for one in fields]
        ends = np.cumsum([len(document) + 2 for document in documents]) - 2
        references = tuple(str(one[data.reference_column]) for one in fields)
        made.append(Text("\n\n".join(documents), references, tuple(int(end) for end in ends)))
    return made


def compare(
    policy: Policy, data: DataConfig, length: LengthConfig, sampling: Sampling, texts: Sequence[Text]
) -> tuple[list[Told], tuple[float, float, float]]:
    """Both ways, and the difference of their ROUGE-1 recalls with its interval."""
    sampler = LocalSampler(policy)
    # Partial summaries end by themselves in any case.
    long = LongSummarizer(sampler, policy.tokenizer, data, length, sampling, LongDocumentsConfig())
    cut_answers: list[Completion] = []
    long_answers: list[Completion] = []
    read: list[int] = []
    for one in track(texts, description="summarising", console=Console(stderr=True)):
        example, lost = fitted_text(one.text, data, policy.tokenizer, length.target)
        spans = policy.tokenizer(one.text, return_offsets_mapping=True)["offset_mapping"]
        read.append(spans[-1 - lost][1])
        cut_answers.append(sampler.sample([example], 1, sampling, SEED)[0].completions[0])
        long_answers.append(long.summarize(one.text, SEED).completion)
    told = [way_told("cut", cut_answers, texts, read), way_told("long", long_answers, texts, read)]
    gains = np.array(
        [
            recall(b, one.references) - recall(a, one.references)
            for a, b, one in zip(cut_answers, long_answers, texts, strict=True)
        ]
    )
    drawn = np.random.default_rng(SEED).choice(gains, (RESAMPLES, len(gains))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return told, (float(gains.mean()), float(low), float(high))


def recall(completion: Completion, references: Sequence[str], name: str = "rouge1_recall") -> float:
    """Of all the references together."""
    return rouge(completion.text, "\n".join(references))[name]


def way_told(way: str, answers: Sequence[Completion], texts: Sequence[Text], read: Sequence[int]) -> Told:
    """Means over the texts; ``read`` is how many of a text's characters the cut prompt holds."""
    later = [
        recall(
            answer, [reference for reference, end in zip(one.references, one.ends, strict=True) if end > seen]
        )
        for answer, one, seen in zip(answers, texts, read, strict=True)
    ]
    return Told(
        way,
        float(np.mean([answer.length for answer in answers])),
        {
            name: float(
                np.mean([recall(a, one.references, name) for a, one in zip(answers, texts, strict=True)])
            )
            for name in RECALLS
        },
        float(np.mean(later)),
    )


def table(compared: dict[str, tuple[list[Told], tuple[float, float, float]]]) -> Table:
    """For a person; percent."""
    shown = Table(
        "length", "way", "tokens", "R-1 recall", "R-2 recall", "R-L recall", "R-1 of what was cut off"
    )
    for name, (told, _) in compared.items():
        for one in told:
            recalls = [f"{100 * one.recalls[key]:.1f}" for key in RECALLS]
            shown.add_row(name, one.way, f"{one.tokens:.0f}", *recalls, f"{100 * one.later:.1f}")
    return shown


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
