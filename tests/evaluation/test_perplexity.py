"""Perplexity under another model: by the plain path, of noise, and through `evaluate`."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

import mlx_sumrl  # isort: skip  # noqa: F401  (its BLAS comes before MLX)
import mlx.core as mx
import numpy as np

from mlx_sumrl.config import DataConfig, LengthConfig, PolicyConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import make_example
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation import evaluate
from mlx_sumrl.evaluation.perplexity import perplexities
from mlx_sumrl.metrics.sentences import ends_sentence
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.rollouts import LocalSampler, Sampling
from mlx_sumrl.rollouts.types import Completion, Group


@pytest.fixture(scope="module")
def untouched(shared: Path) -> Any:
    return load_policy(PolicyConfig(model=str(shared / "models" / "summarizer-5m"), dtype="float32"))


@pytest.fixture(scope="module")
def asked(untouched: Any, dialogues: list[dict[str, str]]) -> list[Example]:
    config = DataConfig(instruction="Summarize the conversation.\n\n{document}", max_prompt_tokens=300)
    return [make_example(row["dialogue"], config, untouched.tokenizer, 64) for row in dialogues[:6]]


def by_hand(policy: Any, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """One row at a time, through the model as it is, softmax and mean in float64."""
    logits = np.array(policy.model(mx.array([[*prompt, *ids]]))[0].astype(mx.float32), np.float64)
    nats = []
    for place, token in enumerate(ids):
        row = logits[len(prompt) - 1 + place]
        nats.append(math.log(np.exp(row - row.max()).sum()) + row.max() - row[token])
    return math.exp(fmean(nats))


def completion(ids: tuple[int, ...], stop: bool, end: int) -> Completion:
    whole = (*ids, end) if stop else ids
    return Completion(whole, (-1.0,) * len(whole), "stop" if stop else "length", 0, "")


def test_the_plain_path_says_the_same(untouched: Any, asked: list[Example]) -> None:
    sampled = LocalSampler(untouched).sample(asked, 2, Sampling(max_tokens=20), 0)
    noise = np.random.default_rng(0).integers(10, untouched.vocabulary, 15).tolist()
    end = min(untouched.stop_ids)
    groups = [
        *sampled,
        Group(asked[0], (completion(tuple(noise), False, end), completion((), True, end))),
    ]
    found = perplexities(untouched, groups)
    assert len(found) == 14
    each = [(group.example.prompt_ids, one) for group in groups for one in group.completions]
    for value, (prompt_ids, one) in zip(found, each, strict=True):
        if one.content_ids:
            expected = by_hand(untouched, prompt_ids, one.content_ids)
            assert value == pytest.approx(expected, rel=1e-4)
        else:
            assert value is None
    written = [value for value in found[:12] if value is not None]
    assert found[12] is not None
    assert found[12] > 50 * median(written)  # noise looks bad


def test_a_stop_token_is_no_part_of_it(untouched: Any, asked: list[Example]) -> None:
    ids = (20, 31, 45)
    end = min(untouched.stop_ids)
    pair = (completion(ids, True, end), completion(ids, False, end))
    stopped, cut = perplexities(untouched, [Group(asked[0], pair)])
    assert stopped == pytest.approx(cut, rel=1e-5)


def test_another_tokenizer_is_refused(untouched: Any, asked: list[Example]) -> None:
    strange = completion((untouched.vocabulary,), False, 0)
    with pytest.raises(UserError, match="tokenizer"):
        perplexities(untouched, [Group(asked[0], (strange,))])


def test_evaluate_reports_it(untouched: Any, asked: list[Example]) -> None:
    sampler = LocalSampler(untouched)
    found = evaluate(
        sampler, asked, LengthConfig(), Sampling(max_tokens=12), 6, samples=2, untouched=untouched
    )
    groups = sampler.sample(asked, 2, Sampling(max_tokens=12), 0)
    firsts = perplexities(untouched, [Group(group.example, group.completions[:1]) for group in groups])
    assert [row.metrics["perplexity"] for row in found.rows] == pytest.approx(firsts, rel=1e-5)
    assert found.summary["perplexity"] == pytest.approx(fmean(firsts), rel=1e-5)  # type: ignore[arg-type]
    assert found.summary["perplexity_median"] == pytest.approx(median(firsts), rel=1e-5)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("All is well.", True),
        ('He said: "No!" ', True),
        ("(So it was.)", True),
        ("天气很好。", True),
        ("And then they", False),
        ("A list, with a comma,", False),
        ("", False),
        (" \n", False),
        ('"', False),
    ],
)
def test_the_end_of_a_sentence(text: str, ends: bool) -> None:
    assert ends_sentence(text) is ends
