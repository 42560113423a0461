"""The distribution that is drawn from, against Hugging Face's and vLLM's own rules in numpy's float64.

Chi-square tests over 20,000 draws with fixed seeds: the same numbers at each run. A right sampler fails one with a
probability of 1e-3 once, when the seed is chosen, and never again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import chisquare

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.draw import draw, uniforms
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Completion, Sampling
from tests.families import example, full_logits, log_softmax, sampling_logprobs

DRAWS = 20_000
SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_p": 0.9},
    {"top_p": 0.35},
    {"top_k": 5},
    {"top_k": 1},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.5, "top_k": 9},
]
LOGITS = np.array([0.1, 2.0, -1.0, 1.4, 0.5, -3.0, 1.9, 0.0, 0.7, -0.4, 2.3, 1.1])


def settings(changes: dict[str, float], max_tokens: int = 1) -> tuple[Sampling, tuple[float, float, int]]:
    sampling = Sampling(**changes, max_tokens=max_tokens)
    return sampling, (sampling.temperature, sampling.top_p, sampling.top_k)


def check_frequencies(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    """No forbidden token, and the others as often as they should be; rare ones are counted together."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert not counts[probabilities == 0].any(), np.flatnonzero((probabilities == 0) & (counts > 0))
    expected = probabilities * len(tokens)
    rare = expected < 10
    observed, expected = counts[~rare], expected[~rare]
    rest = len(tokens) - expected.sum()
    if rest > 1:
        observed, expected = np.append(observed, len(tokens) - observed.sum()), np.append(expected, rest)
    else:
        expected = expected * observed.sum() / expected.sum()
    if len(observed) > 1:
        assert chisquare(observed, expected).pvalue > 1e-3


@pytest.fixture(scope="module")
def policy(family_folder: Callable[[str], Path]) -> Policy:
    """A tiny qwen2."""
    return load_policy(PolicyConfig(model=str(family_folder("qwen2")), tuning="full", dtype="float32"))


@pytest.mark.parametrize("changes", SETTINGS)
def test_draws_from_a_tiny_vocabulary(changes: dict[str, float]) -> None:
    sampling, filters = settings(changes)
    numbers = mx.random.uniform(shape=(DRAWS,), key=mx.random.key(1))
    logits = mx.broadcast_to(mx.array(LOGITS, dtype=mx.float32), (DRAWS, len(LOGITS)))
    tokens, logprobs = draw(logits, sampling, numbers)
    truth = sampling_logprobs(LOGITS, *filters)
    check_frequencies(np.array(tokens), np.exp(truth))
    np.testing.assert_allclose(logprobs, truth[np.array(tokens)], atol=1e-5)


@pytest.mark.parametrize("changes", SETTINGS)
def test_each_number_gives_the_token_whose_share_it_falls_in(changes: dict[str, float]) -> None:
    """Inverse transform: over an even grid every token comes as often as it should, to one draw."""
    sampling, filters = settings(changes)
    grid = (np.arange(10_000) + 0.5) / 10_000
    logits = mx.broadcast_to(mx.array(LOGITS, dtype=mx.float32), (len(grid), len(LOGITS)))
    tokens, _ = draw(logits, sampling, mx.array(grid, dtype=mx.float32))
    expected = np.exp(sampling_logprobs(LOGITS, *filters)) * len(grid)
    assert np.abs(np.bincount(np.array(tokens), minlength=len(LOGITS)) - expected).max() <= 1.1


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-24])
def test_the_ends_of_the_unit_interval(number: float) -> None:
    """The first and the last token that can be drawn, never one with a probability of 0."""
    logits = mx.array([[-mx.inf, 1.0, -mx.inf, 0.5, -mx.inf]])
    tokens, logprobs = draw(logits, Sampling(), mx.array([number]))
    assert tokens.tolist() == [1 if number == 0 else 3]
    assert np.isfinite(logprobs.item())
    # Behind a long tail of near-zero probabilities rounding must not run past the end either.
    wide = mx.concatenate([mx.zeros((1, 5)), mx.full((1, 100_000), -12.0), mx.full((1, 5), -mx.inf)], axis=-1)
    [token], [logprob] = (array.tolist() for array in draw(wide, Sampling(), mx.array([number])))
    assert token < 100_005
    assert np.isfinite(logprob)


def test_a_large_vocabulary_keeps_its_tail() -> None:
    """As many tokens as qwen2 has: one likely, and a tail of which each token vanishes in a float32 near 1."""
    size, likely = 151_936, 70_000
    logits = np.full(size, np.log(5e-8))
    logits[likely] = 0.0
    probabilities = np.exp(log_softmax(logits))
    grid = (np.arange(2_000) + 0.5) / 2_000
    tokens: list[int] = []
    for numbers in np.split(grid, 50):
        rows = mx.broadcast_to(mx.array(logits, dtype=mx.float32), (len(numbers), size))
        drawn, logprobs = draw(rows, Sampling(), mx.array(numbers, dtype=mx.float32))
        tokens += drawn.tolist()  # type: ignore[arg-type]
        np.testing.assert_allclose(logprobs, np.log(probabilities)[np.array(drawn)], atol=3e-5)
    for part in (slice(0, likely), slice(likely, likely + 1), slice(likely + 1, size)):
        count = sum(part.start <= token < part.stop for token in tokens)
        assert abs(count - probabilities[part].sum() * len(grid)) <= 1.1
    # And each where numpy's float64 finds it, to a share of 5e-5.
    cumulative = np.cumsum(probabilities)
    truth = np.searchsorted(cumulative, grid)
    assert np.abs(cumulative[truth] - cumulative[tokens]).max() <= 5e-5


def test_logprobs_over_a_large_vocabulary() -> None:
    logits = np.random.default_rng(0).standard_normal((8, 151_936)).astype(np.float32) * 2
    for temperature in (0, 1):
        sampling = Sampling(temperature=temperature)
        tokens, logprobs = draw(mx.array(logits), sampling, mx.array(np.linspace(0, 0.99, 8), mx.float32))
        truth = log_softmax(logits.astype(np.float64))[np.arange(8), np.array(tokens)]
        np.testing.assert_allclose(logprobs, truth, atol=4e-6)


@pytest.mark.parametrize(("first", "second"), [(3, 100), (3, 600), (130, 639)])
def test_no_impossible_token_when_sums_round_otherwise(
    first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's running sum is no sequence of additions: it may rise, by rounding, where nothing is added."""
    generator = np.random.default_rng(0)
    in_order = mx.cumsum

    def as_a_tree(array: mx.array, axis: int) -> mx.array:
        noise = generator.choice([-1, 0, 1], array.shape).astype(np.float32) * 2.0**-22
        return in_order(array, axis=axis) * mx.array(1 + noise)

    monkeypatch.setattr(mx, "cumsum", as_a_tree)
    logits = np.full((2_000, 640), -np.inf, np.float32)
    logits[:, [first, second]] = 0.0
    numbers = 0.5 + np.linspace(-2e-6, 2e-6, len(logits), dtype=np.float32)  # where the first one ends
    tokens, _ = draw(mx.array(logits), Sampling(), mx.array(numbers))
    assert set(np.array(tokens)) == {first, second}


def test_temperature_0_takes_the_most_likely_token() -> None:
    logits = mx.array(np.stack([LOGITS, LOGITS[::-1]]), dtype=mx.float32)
    tokens, logprobs = draw(logits, Sampling(temperature=0), mx.array([0.1, 0.99]))
    assert tokens.tolist() == [10, 1]
    # With its log-probability at temperature 1.
    np.testing.assert_allclose(logprobs, [sampling_logprobs(LOGITS, 1.0, 1.0, 0)[10]] * 2, atol=1e-6)


@pytest.mark.parametrize("changes", SETTINGS)
def test_the_whole_sampler_on_a_first_token(changes: dict[str, float], policy: Policy) -> None:
    prompt = [7, 8, 9, 50]
    sampling, filters = settings(changes)
    [group] = LocalSampler(policy).sample([example(*prompt)], DRAWS, sampling, seed=11)
    tokens = np.array([completion.token_ids[0] for completion in group.completions])
    check_frequencies(tokens, np.exp(sampling_logprobs(full_logits(policy, prompt)[-1], *filters)))


def test_pairs_of_tokens_are_drawn_independently(policy: Policy) -> None:
    """Both tokens together come as often as p(first) p(second | first): no number is used twice."""
    prompt = [7, 8, 9, 50]
    sampling, filters = settings({"top_k": 4}, max_tokens=2)
    [group] = LocalSampler(policy).sample([example(*prompt)], DRAWS, sampling, seed=5)
    first = np.exp(sampling_logprobs(full_logits(policy, prompt)[-1], *filters))
    size = len(first)
    joint = np.zeros((size, size))
    for token in np.flatnonzero(first):
        assert int(token) not in policy.stop_ids
        joint[token] = first[token] * np.exp(
            sampling_logprobs(full_logits(policy, [*prompt, token])[-1], *filters)
        )
    pairs = np.array([completion.token_ids for completion in group.completions])
    check_frequencies(pairs[:, 0] * size + pairs[:, 1], joint.reshape(-1))


def test_groups_of_one_call_are_drawn_independently(policy: Policy) -> None:
    """Two groups of the same prompt are no copies of each other."""
    prompt = example(7, 8, 9, 50)
    sampling, filters = settings({"top_k": 4})
    first, second = LocalSampler(policy).sample([prompt, prompt], DRAWS, sampling, seed=6)
    probabilities = np.exp(sampling_logprobs(full_logits(policy, prompt.prompt_ids)[-1], *filters))

    def tokens(completions: tuple[Completion, ...]) -> np.ndarray:
        return np.array([completion.token_ids[0] for completion in completions])

    pairs = tokens(first.completions) * len(probabilities) + tokens(second.completions)
    check_frequencies(pairs, np.outer(probabilities, probabilities).reshape(-1))


def test_random_numbers_depend_on_their_place_alone() -> None:
    small, large = uniforms(3, 1, 4, 8), uniforms(3, 1, 6, 20)
    np.testing.assert_array_equal(small, large[:4, :8])
    others = [uniforms(4, 1, 4, 8), uniforms(3, 2, 4, 8), uniforms(1, 3, 4, 8)]
    for other in others:
        assert not np.isin(other, small).any()
    many = uniforms(0, 0, 300, 300)
    assert len(np.unique(many)) > 0.99 * many.size
    assert many.min() >= 0
    assert many.max() < 1
    assert chisquare(np.histogram(many, bins=50, range=(0, 1))[0]).pvalue > 1e-3
