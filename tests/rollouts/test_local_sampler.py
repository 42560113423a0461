"""The local sampler: its log-probabilities, where it stops, and that the batch it decodes in does not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.sampling_cache import BatchCache, BatchState
from mlx_sumrl.rollouts import local
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Group, Sampling
from tests.families import (
    FAMILIES,
    completion_truth,
    full_logits,
    log_softmax,
    random_prompts,
    randomize_adapters,
)

Folder = Callable[[str], Path]

MANY_STOPS = frozenset({2, *range(40, 70)})
"""About every tenth token ends a completion: finished rows at every position."""
FILTERS = [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8}]
PROMPTS = random_prompts([3, 11, 1, 7])


def load(
    folder: Path, tuning: str = "full", dtype: str = "float32", stops: frozenset[int] = MANY_STOPS
) -> Policy:
    policy = load_policy(PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype, lora=LoraConfig(rank=4)))
    policy.stop_ids = stops
    return policy


def ids(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group.completions] for group in groups]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_teacher_forcing(
    family: str, filters: dict[str, float], family_folder: Folder
) -> None:
    policy = load(family_folder(family))
    sampling = Sampling(**filters, max_tokens=20)
    options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    groups = LocalSampler(policy).sample(PROMPTS, 4, sampling, seed=3)
    rows = [(group.example.prompt_ids, completion) for group in groups for completion in group.completions]
    batch = token_batch([prompt for prompt, _ in rows], [completion.token_ids for _, completion in rows])
    forced = np.array(completion_logprobs(policy.model, batch, **options))
    for row, (_, completion) in zip(forced, rows, strict=True):
        sampled = np.array(completion.logprobs)
        assert np.isfinite(sampled).all()
        assert (sampled <= 1e-6).all()
        np.testing.assert_allclose(sampled, row[: len(sampled)], atol=1e-5)
    # And both are those of each row by itself, by the model as mlx-lm calls it, filters in numpy's float64.
    for prompt, completion in rows[::3]:
        truth = completion_truth(policy, prompt, completion.token_ids, **options)
        np.testing.assert_allclose(completion.logprobs, truth, atol=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "dora"])
@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
def test_adapters_are_sampled_with(family: str, tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder(family), tuning)
    randomize_adapters(policy)
    options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    for group in LocalSampler(policy).sample(PROMPTS, 2, Sampling(max_tokens=12), seed=0):
        for completion in group.completions:
            truth = completion_truth(policy, group.example.prompt_ids, completion.token_ids, **options)
            np.testing.assert_allclose(completion.logprobs, truth, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_agrees_with_teacher_forcing_as_far_as_it_goes(family: str, family_folder: Folder) -> None:
    policy = load(family_folder(family), dtype="bfloat16")
    groups = LocalSampler(policy).sample(PROMPTS, 4, Sampling(max_tokens=12), seed=3)
    rows = [(group.example.prompt_ids, completion) for group in groups for completion in group.completions]
    batch = token_batch([prompt for prompt, _ in rows], [completion.token_ids for _, completion in rows])
    forced = np.array(completion_logprobs(policy.model, batch))
    differences = np.concatenate(
        [row[: len(c.logprobs)] - np.array(c.logprobs) for row, (_, c) in zip(forced, rows, strict=True)]
    )
    assert np.abs(differences).mean() < 0.05
    assert np.abs(differences).max() < 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_most_likely_token_each_time(family: str, family_folder: Folder) -> None:
    """Against the plainest loop there is: the whole row through the model again for every token, no cache."""
    policy = load(family_folder(family), stops=frozenset({2, *range(40, 46)}))
    groups = LocalSampler(policy).sample(PROMPTS, 1, Sampling(temperature=0, max_tokens=12), seed=0)
    assert [group.example for group in groups] == PROMPTS
    for group in groups:
        row = list(group.example.prompt_ids)
        for _ in range(12):
            row.append(int(full_logits(policy, row)[-1].argmax()))
            if row[-1] in policy.stop_ids:
                break
        assert group.completions[0].token_ids == tuple(row[len(group.example.prompt_ids) :])


def test_where_a_completion_ends(family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"))
    groups = LocalSampler(policy).sample(PROMPTS, 16, Sampling(max_tokens=12), seed=1)
    reasons = []
    for completion in (completion for group in groups for completion in group.completions):
        assert len(completion.logprobs) == len(completion.token_ids) <= 12
        assert not policy.stop_ids & set(completion.token_ids[:-1])
        stopped = completion.token_ids[-1] in policy.stop_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        if stopped:
            assert completion.length == len(completion.token_ids) - 1
            assert completion.text == policy.decode(completion.token_ids[:-1])
        else:
            assert completion.length == len(completion.token_ids) == 12
            assert completion.text == policy.decode(completion.token_ids)
        reasons.append(completion.finish_reason)
    assert 5 < reasons.count("length") < 59  # both ways have been seen
    lengths = {completion.length for group in groups for completion in group.completions}
    assert len(lengths) > 6


def test_a_stop_token_as_the_last_one_allowed_is_a_stop(family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"))
    groups = LocalSampler(policy).sample(PROMPTS, 64, Sampling(max_tokens=3), seed=1)
    last = [
        c
        for group in groups
        for c in group.completions
        if len(c.token_ids) == 3 and c.token_ids[2] in MANY_STOPS
    ]
    assert len(last) > 5
    assert {(c.finish_reason, c.length) for c in last} == {("stop", 2)}


@pytest.mark.parametrize("retire_at", [0, 0.5, 1])
@pytest.mark.parametrize("family", ["qwen2", "phi3", "lfm2"])
def test_retiring_finished_rows_does_not_show(
    family: str, retire_at: float, family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(family_folder(family))
    sampling = Sampling(max_tokens=24)
    usual = LocalSampler(policy).sample(PROMPTS, 6, sampling, seed=4)
    widths: list[int] = []
    plain_draw = local.draw

    def counting(logits: mx.array, sampling: Sampling, numbers: mx.array) -> tuple[mx.array, mx.array]:
        widths.append(logits.shape[0])
        return plain_draw(logits, sampling, numbers)

    monkeypatch.setattr(local, "draw", counting)
    monkeypatch.setattr(local, "RETIRE_AT", retire_at)
    groups = LocalSampler(policy).sample(PROMPTS, 6, sampling, seed=4)
    assert ids(groups) == ids(usual)
    for group, other in zip(groups, usual, strict=True):
        for completion, same in zip(group.completions, other.completions, strict=True):
            np.testing.assert_allclose(completion.logprobs, same.logprobs, atol=1e-5)
    going = [
        sum(len(row) > position for group in ids(groups) for row in group) for position in range(len(widths))
    ]
    assert going[-1] < 24  # some had finished
    if retire_at == 0:
        assert set(widths) == {24}
    elif retire_at == 1:
        # One step late: a step's graph is built before the tokens of the step before it are known.
        assert widths == [24, *going[:-1]]
    else:
        assert all(wide >= needed for wide, needed in zip(widths, going, strict=True))
        assert len(set(widths)) > 1


@pytest.mark.parametrize("max_tokens", [1, 2, 24])
@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
def test_building_ahead_does_not_show(
    family: str, max_tokens: int, family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what waiting for each step gives, and no step more than the longest completion needs."""
    policy = load(family_folder(family))
    sampling = Sampling(max_tokens=max_tokens)
    usual = LocalSampler(policy).sample(PROMPTS, 6, sampling, seed=4)
    plain_start, steps = local._start, []

    def waiting(step: local._Drawn, caches: Sequence[BatchCache | BatchState]) -> None:
        plain_start(step, caches)
        mx.eval(step.tokens_B, step.logprobs_B, [cache.arrays for cache in caches])
        steps.append(step)

    monkeypatch.setattr(local, "_start", waiting)
    assert LocalSampler(policy).sample(PROMPTS, 6, sampling, seed=4) == usual
    assert len(steps) == max(len(row) for group in ids(usual) for row in group)


@pytest.mark.parametrize("tokens", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_read_in_pieces(
    family: str, tokens: int, family_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(family_folder(family))
    monkeypatch.setattr(local, "PREFILL", tokens)
    for group in LocalSampler(policy).sample(PROMPTS, 2, Sampling(max_tokens=6), seed=0):
        for row in group.completions:
            truth = completion_truth(
                policy, group.example.prompt_ids, row.token_ids, temperature=1.0, top_p=1.0, top_k=0
            )
            np.testing.assert_allclose(row.logprobs, truth, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_rows_at_once_do_not_show(family: str, family_folder: Folder) -> None:
    policy = load(family_folder(family))
    sampling = Sampling(max_tokens=16)
    usual = ids(LocalSampler(policy, max_rows=64).sample(PROMPTS, 4, sampling, seed=4))
    for max_rows in (1, 4, 8, 13):
        assert ids(LocalSampler(policy, max_rows=max_rows).sample(PROMPTS, 4, sampling, seed=4)) == usual


def test_one_seed_gives_one_result(family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"))
    sampling = Sampling(max_tokens=16)
    first = LocalSampler(policy).sample(PROMPTS, 8, sampling, seed=4)
    assert (
        LocalSampler(policy).sample(PROMPTS, 8, sampling, seed=4) == first
    )  # log-probabilities too, bit for bit
    mx.random.seed(99)  # MLX's own generator has no part in it
    assert LocalSampler(policy).sample(PROMPTS, 8, sampling, seed=4) == first
    other = ids(LocalSampler(policy).sample(PROMPTS, 8, sampling, seed=5))
    rows = [pair for group in zip(ids(first), other, strict=True) for pair in zip(*group, strict=True)]
    assert sum(a[0] == b[0] for a, b in rows) < 10  # of 32
    everything = [row for group in ids(first) + other for row in group if len(row) > 3]
    assert len(set(everything)) == len(everything)


def test_random_numbers_belong_to_a_place_and_not_to_the_call(family_folder: Folder) -> None:
    """More prompts, a larger group or a longer limit only add to what is drawn."""
    sampler = LocalSampler(load(family_folder("qwen2")))
    usual = ids(sampler.sample(PROMPTS[:2], 4, Sampling(max_tokens=10), seed=4))
    more_prompts = ids(sampler.sample(PROMPTS, 4, Sampling(max_tokens=10), seed=4))
    assert more_prompts[:2] == usual
    larger = ids(sampler.sample(PROMPTS[:2], 9, Sampling(max_tokens=10), seed=4))
    assert [group[:4] for group in larger] == usual
    longer = ids(sampler.sample(PROMPTS[:2], 4, Sampling(max_tokens=25), seed=4))
    assert [[row[:10] for row in group] for group in longer] == usual


def test_groups_come_in_the_order_of_their_examples(family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"))
    examples = random_prompts([5, 2, 9, 2, 1, 5], seed=8)
    sampler = LocalSampler(policy, max_rows=6)
    sampler.publish(17)
    groups = sampler.sample(examples, 3, Sampling(max_tokens=6), seed=0)
    assert [group.example for group in groups] == examples
    assert {completion.policy_version for group in groups for completion in group.completions} == {17}
    options = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    for group, following in pairwise(groups):
        [first, *_] = group.completions
        own = completion_truth(policy, group.example.prompt_ids, first.token_ids, **options)
        np.testing.assert_allclose(first.logprobs, own, atol=1e-5)
        foreign = completion_truth(policy, following.example.prompt_ids, first.token_ids, **options)
        assert np.abs(foreign[0] - first.logprobs[0]) > 1e-3
    assert sampler.sample([], 3, Sampling(), seed=0) == []


@pytest.mark.parametrize("filters", FILTERS)
def test_no_stop_token_before_min_tokens(filters: dict[str, float], family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"), stops=frozenset(range(0, 300, 2)))  # every other token
    sampling = Sampling(**filters, max_tokens=14, min_tokens=10)
    groups = LocalSampler(policy).sample(PROMPTS, 16, sampling, seed=2)
    lengths = [completion.length for group in groups for completion in group.completions]
    assert min(lengths) == 10  # and not before: about half of the tokens are stop tokens
    assert lengths.count(10) > 3
    # The log-probabilities are those among the tokens that were allowed.
    if not filters:
        for group in groups:
            completion = group.completions[0]
            row = [*group.example.prompt_ids, *completion.token_ids]
            logits = full_logits(policy, row)[len(group.example.prompt_ids) - 1 : -1].copy()
            logits[:10, sorted(policy.stop_ids)] = -np.inf
            truth = log_softmax(logits)[np.arange(len(completion.token_ids)), list(completion.token_ids)]
            np.testing.assert_allclose(completion.logprobs, truth, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_a_length_can_be_forced(length: int, temperature: float, family_folder: Folder) -> None:
    """The length-matched baseline: no stop token before N, cut at N."""
    policy = load(family_folder("lfm2"), stops=frozenset(range(0, 300, 2)))
    sampling = Sampling(temperature=temperature, max_tokens=length, min_tokens=length)
    for group in LocalSampler(policy).sample(PROMPTS, 3, sampling, seed=2):
        for completion in group.completions:
            assert (completion.length, completion.finish_reason) == (length, "length")


def test_sampling_is_without_dropout(family_folder: Folder) -> None:
    options = PolicyConfig(
        model=str(family_folder("qwen2")),
        dtype="float32",
        tuning="lora",
        lora=LoraConfig(rank=4, dropout=0.5),
    )
    policy = load_policy(options)
    randomize_adapters(policy)
    policy.model.train()
    sampler = LocalSampler(policy)
    first = sampler.sample(PROMPTS, 2, Sampling(max_tokens=8), seed=0)
    policy.model.train()
    assert sampler.sample(PROMPTS, 2, Sampling(max_tokens=8), seed=0) == first


def test_a_group_is_told_of_as_soon_as_it_is_complete(family_folder: Folder) -> None:
    """4 prompts of 3 completions, 4 rows at once: batches hold 1.33 groups each."""
    sampler = LocalSampler(load(family_folder("qwen2")), max_rows=4)
    told: list[tuple[int, Group]] = []
    decoded = 0
    decode = sampler._decode

    def counted(*arguments: object) -> object:
        nonlocal decoded
        decoded += 1
        return decode(*arguments)  # type: ignore[arg-type]

    sampler._decode = counted  # type: ignore[method-assign, assignment]
    sampler.on_group = lambda group: told.append((decoded, group))
    groups = sampler.sample(PROMPTS, 3, Sampling(max_tokens=6), seed=3)
    assert [group for _, group in told] == groups
    assert [batches for batches, _ in told] == [1, 2, 3, 3]
