"""Learning when to stop: the right decisions by hand and in general, the gradient row by row, the phase in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_unflatten
from pydantic import ValidationError

from mlx_sumrl.config import LengthConfig, RunConfig, StoppingConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.sentences import ends_sentence
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.training.loss import decision_logprobs
from mlx_sumrl.training.schedule import learning_rate
from mlx_sumrl.training.stopping import (
    running_texts,
    sentence_ends,
    stop_labels,
    stopping_gradient,
    text_tokens,
)
from mlx_sumrl.training.trainer import Trainer
from tests.families import tokenizer
from tests.recipes.jobs import Job, two_stages
from tests.recipes.programs import tiny_job

from .models import flat, moved
from .oracle import relative_error

MakePolicy = Callable[..., Policy]
REFERENCES = ("The train leaves at ten.", "Ben is coming. Anna is, too.", "The others", "At noon.")


def marks(*places: int, tokens: int) -> list[bool]:
    return [i in places for i in range(tokens)]


def test_labels_by_hand() -> None:
    length = LengthConfig(target=10, tolerance=4)
    # Right are 6 to 14 tokens: a sentence's end after 8 or more, and 12 in any case.
    found = stop_labels(marks(3, 6, 7, 9, tokens=15), length)
    assert np.flatnonzero(found).tolist() == [9, 12, 13, 14]
    assert np.flatnonzero(stop_labels(marks(8, tokens=9), length)).tolist() == [8]
    assert np.flatnonzero(stop_labels(marks(tokens=14), length)).tolist() == [12, 13]
    exact = LengthConfig(target=10, tolerance=0)
    assert np.flatnonzero(stop_labels(marks(9, tokens=12), exact)).tolist() == [10, 11]


@given(
    st.integers(1, 90),
    st.integers(0, 9),
    st.floats(0, 0.5),
    st.lists(st.booleans(), min_size=200, max_size=200),
)
def test_whoever_decides_so_is_within(target: int, tolerance: int, share: float, ends: list[bool]) -> None:
    length = LengthConfig(target=target, tolerance=tolerance, tolerance_share=share)
    first = int(np.argmax(stop_labels(ends, length)))
    assert abs(first - target) <= length.allowed
    assert ends[first] or first == target + max(length.allowed - 2, 0)
    assert not any(ends[max(target - max(length.allowed - 2, 0), 0) : first])


def test_sentences_end_where_the_text_so_far_does() -> None:
    text = 'Anna: "Are you coming?" Ben is coming at noon. The others are coming too!'
    ids = tokenizer().encode(text, add_special_tokens=False)
    found = sentence_ends(tokenizer(), ids)
    before = [ends_sentence(tokenizer().decode(ids[:i])) if i else False for i in range(len(ids))]
    assert found == before
    assert sum(found) >= 2


def policy_and_examples(make_policy: MakePolicy, **options: Any) -> tuple[Policy, list[Example]]:
    policy = make_policy(vocabulary=300, tokenizer=tokenizer(), **options)
    rng = np.random.default_rng(0)
    return policy, [
        Example(
            f"row {i}",
            tuple(int(x) for x in rng.integers(3, 250, 2 + 3 * i)),
            "",
            "",
            reference,
            target=[None, 4, 7, 9][i],
        )
        for i, reference in enumerate(REFERENCES)
    ]


def test_texts_go_round(make_policy: MakePolicy) -> None:
    policy, examples = policy_and_examples(make_policy)
    texts = running_texts(policy, examples, 200)
    assert {len(text) for text in texts} == {200}
    for i, text in enumerate(texts):
        following = " ".join([*REFERENCES[i:], *REFERENCES[:i]] * 10)
        assert following.startswith(policy.decode(text).strip())
    with pytest.raises(UserError, match="none of these has one"):
        running_texts(policy, [replace(example, reference=" ") for example in examples], 50)
    [alone] = running_texts(policy, examples[3:], 50)
    assert ("At noon. " * 30).startswith(policy.decode(alone).strip())
    length = LengthConfig(target=50, targets=(24, 80), tolerance=3, tolerance_share=0.08)
    assert text_tokens(length) == 80 + 6 + 4


def plainly(
    policy: Policy, examples: list[Example], length: LengthConfig, anchor: float
) -> tuple[float, Weights, float]:
    """Loss, gradient and share of right decisions, from the whole model's logits of one row at a time."""
    texts = running_texts(policy, examples, text_tokens(length))
    own = policy.weights()
    count = sum(map(len, texts))
    right = 0

    def stop_and_words(example: Example, text: tuple[int, ...]) -> tuple[mx.array, mx.array]:
        """p(stop) before each token, and log p(token) where the text goes on."""
        start = len(example.prompt_ids) - 1
        logits = policy.model(mx.array([[*example.prompt_ids, *text]]))[0, start : start + len(text)]
        p = mx.softmax(logits, axis=-1)
        stop = p[:, policy.stop_id]
        tokens = mx.take_along_axis(p, mx.array(text)[:, None], axis=-1)[:, 0]
        return stop, mx.log(tokens / (1 - stop))

    with policy.as_reference():
        held = [stop_and_words(*one)[1] for one in zip(examples, texts, strict=True)]
        mx.eval(held)

    def loss(
        weights: Weights, example: Example, text: tuple[int, ...], held_T: mx.array
    ) -> tuple[mx.array, mx.array]:
        policy.model.update(tree_unflatten(list(weights.items())))
        stop, words = stop_and_words(example, text)
        label = stop_labels(sentence_ends(policy.tokenizer, text), length.asked(example.target))
        decided = mx.where(mx.array(label), stop, 1 - stop)
        drifted = anchor * ((words - held_T) ** 2).sum() / 2
        return (drifted - mx.log(decided).sum()) / count, (decided > 0.5).sum()

    total, gradient = 0.0, None
    for example, text, held_T in zip(examples, texts, held, strict=True):
        (value, sure), found = mx.value_and_grad(loss)(own, example, text, held_T)
        total, right = total + float(value.item()), right + int(sure.item())  # type: ignore[arg-type]
        gradient = found if gradient is None else {name: gradient[name] + found[name] for name in found}
    policy.model.update(tree_unflatten(list(own.items())))
    assert gradient is not None
    return total, gradient, right / count


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("anchor", [0.0, 3.0])
def test_gradient_is_that_of_rows_one_by_one(
    make_policy: MakePolicy, tuning: str, checkpointing: bool, anchor: float
) -> None:
    policy, examples = policy_and_examples(make_policy, tuning=tuning, checkpointing=checkpointing)
    if tuning == "full":
        policy.take_reference("copy")
        policy.set_weights(moved(policy.weights(), 0.05, seed=3))
    length = LengthConfig(target=6, targets=(4, 7, 9), tolerance=2)
    loss, gradient, right = plainly(policy, examples, length, anchor)
    without, _, _ = plainly(policy, examples, length, 0.0)
    assert (loss - without > 1e-3) == (anchor > 0), "the policy is not its reference"
    assert np.abs(flat(gradient)).max() > 1e-3
    for size in (1, 40, 4096):
        found = stopping_gradient(policy, examples, length, StoppingConfig(anchor=anchor), size)
        assert found.sums["nats"] / found.sums["tokens"] == pytest.approx(without, rel=1e-5)
        assert found.loss == pytest.approx(loss, rel=1e-5)
        assert relative_error(flat(found.gradients), flat(gradient)) < 1e-5, size
        assert found.sums["tokens"] == len(examples) * text_tokens(length)
        assert found.sums["right"] / found.sums["tokens"] == pytest.approx(right)


def test_no_word_is_taught() -> None:
    """The gradient moves all tokens but those that stop together: what is said, if one goes on, stays as it is."""
    logits = np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32)
    stops, labels = [1, 4], mx.array([[True, False, True], [False, False, True]])

    def loss(logits_BTV: mx.array) -> mx.array:
        table = logits_BTV - mx.logsumexp(logits_BTV, axis=-1, keepdims=True)
        return decision_logprobs(mx.logsumexp(table[..., stops], axis=-1), labels).sum()

    slope = np.array(mx.grad(loss)(mx.array(logits)))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    others = [v for v in range(6) if v not in stops]
    assert np.allclose((slope / p)[..., others].std(-1), 0, atol=1e-6)
    assert (np.abs(slope).max(-1) > 1e-3).all()


def counting(tmp_path: Path, **changes: Any) -> Job:
    options: dict[str, Any] = {
        "data": {"instruction": "In {target_length}: {document}"},
        "length": {"targets": [5, 9], "tolerance": 1},
        "stopping": {"steps": 3, "batch_size": 4, "max_prompt_tokens": 24},
    }
    return Job(tmp_path, {**options, **changes})


def test_a_phase_before_the_stages_with_documents_cut_short(tmp_path: Path) -> None:
    job = counting(tmp_path)
    assert len(job.prepared.shortened) == len(job.prepared.train)
    assert max(len(one.prompt_ids) for one in job.prepared.shortened) <= 24
    assert max(len(one.prompt_ids) for one in job.prepared.train) > 24
    assert [one.target for one in job.prepared.shortened] == [one.target for one in job.prepared.train]
    rows = job.train()
    assert [row["stage"] for row in rows] == ["stopping"] * 3 + ["only"] * 3
    assert all(0 <= row["stopping/right"] <= 1 for row in rows[:3])
    assert rows[2]["stopping/nats"] < rows[0]["stopping/nats"]
    assert rows[0]["stopping/drift"] == pytest.approx(0, abs=1e-5)
    assert rows[2]["stopping/drift"] > 1e-4


def test_where_the_instruction_alone_is_longer_prompts_are_whole_at_once(tmp_path: Path) -> None:
    job = counting(tmp_path, stopping={"steps": 1, "batch_size": 4, "max_prompt_tokens": 3})
    assert job.prepared.shortened == []
    assert any("stopping.max_prompt_tokens 3" in note for note in job.notes), job.notes
    assert [row["stage"] for row in job.train()] == ["stopping"] + ["only"] * 3


@pytest.mark.parametrize(
    ("own", "peak"),
    [({}, 0.003), ({"learning_rate": 0.02}, 0.02), ({"kind": "lion"}, 2e-6)],
    ids=["the run's", "its own", "of another kind"],
)
def test_its_rate_is_the_run_s_where_it_has_none(tmp_path: Path, own: dict[str, Any], peak: float) -> None:
    """Lion's is a fifth of AdamW's 1e-5 for full tuning."""
    stopping = {"steps": 3, "batch_size": 4, "max_prompt_tokens": 24, "optimizer": own}
    job = counting(tmp_path, stopping=stopping, optimizer={"learning_rate": 0.003})
    options = StoppingConfig.model_validate(stopping).optimizer
    taken = [row["learning_rate"] for row in job.train()[:3]]
    assert taken == pytest.approx([learning_rate(options, i, 3, peak) for i in range(3)])


def test_or_after_the_stages(tmp_path: Path) -> None:
    job = counting(tmp_path, stopping={"steps": 2, "batch_size": 4, "max_prompt_tokens": 24, "when": "after"})
    rows = job.train()
    assert [row["stage"] for row in rows] == ["only"] * 3 + ["stopping"] * 2
    assert rows[3]["stopping/drift"] == pytest.approx(0, abs=1e-5), "from what the stages have taught"
    again = job.trainer()
    assert again.restore()
    assert again.state.phases_done == ["only", "stopping"]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_stage_behind_it_begins_afresh(tmp_path: Path, beta: float) -> None:
    """With moments and a reference of its own: those of the phase belong to another loss."""
    between = {"steps": 2, "batch_size": 4, "max_prompt_tokens": 24, "when": "before", "stage": "second"}

    def weights(name: str, **second: Any) -> Weights:
        job = counting(
            tmp_path / name,
            stopping=between,
            stages=two_stages(**second),
            grpo={"beta": beta},
            policy={"tuning": "lora"},
        )
        rows = job.train()
        assert [row["stage"] for row in rows] == ["first"] * 3 + ["stopping"] * 2 + ["second"] * 3
        if beta:
            assert rows[5]["kl"] == pytest.approx(0, abs=1e-6)
            assert rows[7]["kl"] > 1e-6
        return job.policy.weights()

    found, expected = weights("as given"), weights("said", optimizer="fresh", reference="fresh")
    assert all(mx.array_equal(found[name], expected[name]).item() for name in expected)


@pytest.mark.parametrize(
    ("when", "stage", "cut_at"), [("before", None, 3), ("after", None, 6), ("before", "second", 6)]
)
def test_going_on_in_the_middle_is_the_same_run(
    tmp_path: Path, when: str, stage: str | None, cut_at: int
) -> None:
    """Of full tuning without a KL term, whose reference is this phase's alone."""
    options = {"steps": 3, "batch_size": 4, "max_prompt_tokens": 24, "when": when, "stage": stage}
    stages = {"stages": two_stages()} if stage else {}
    whole = counting(tmp_path / "whole", checkpoint={"every": 1}, stopping=options, **stages)
    whole.train()
    stopped = counting(tmp_path / "stopped", checkpoint={"every": 1}, stopping=options, **stages)
    assert (stopped.config.policy.tuning, stopped.config.grpo.beta) == ("full", 0)

    class CutError(Exception):
        pass

    class Cut(Trainer):
        def _log(self, name: str, metrics: Any, seconds: float) -> None:
            # The last step of the phase; a checkpoint was written after the one before.
            if self.state.step == cut_at:
                raise CutError
            super()._log(name, metrics, seconds)

    def cut(sampler: Any = None) -> Trainer:
        return Cut(stopped.policy, stopped.config, run=stopped.run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopped, "trainer", cut)
        with pytest.raises(CutError):
            stopped.train()

    def go_on(sampler: Any = None) -> Trainer:
        again = Trainer(stopped.policy, stopped.config, run=stopped.run)
        assert again.restore()
        assert (again.state.step, again.state.phase) == (cut_at - 1, "stopping")
        return again

    stopped.trainer = go_on  # type: ignore[method-assign]
    stopped.train()
    found, expected = stopped.policy.weights(), whole.policy.weights()
    assert all(mx.array_equal(found[name], expected[name]).item() for name in expected)


def test_a_policy_learns_to_count(tmp_path: Path) -> None:
    """From noise: after the phase alone, the greedy texts of rows it was not taught on are within."""
    from mlx_sumrl.evaluation import evaluate
    from mlx_sumrl.rollouts import LocalSampler, Sampling

    job = counting(
        tmp_path,
        length={"target": 9, "targets": [], "tolerance": 1},
        stopping={"steps": 60, "batch_size": 8, "optimizer": {"learning_rate": 5e-3}},
        stages=[],
    )
    sampling = Sampling(temperature=0, max_tokens=20, min_tokens=0)

    def within() -> float:
        result = evaluate(LocalSampler(job.policy, 8), job.prepared.held_out, job.config.length, sampling, 8)
        return float(result.summary["within"])

    assert within() < 0.5
    job.train()
    assert within() == 1.0


def test_the_share_of_a_rate_is_a_share_of_the_run_s(tmp_path: Path) -> None:
    paid = [{"kind": "length"}]
    half = {"name": "only", "steps": 1, "rewards": paid, "learning_rate_share": 0.5}
    job = Job(tmp_path, {"stages": [half], "optimizer": {"learning_rate": 4e-3, "warmup_steps": 0}})
    assert job.train()[0]["learning_rate"] == pytest.approx(2e-3)
    with pytest.raises(
        ValidationError, match=r"learning_rate 0\.1 and learning_rate_share 0\.5, .* leave one"
    ):
        RunConfig.model_validate(tiny_job({"stages": [{**half, "learning_rate": 0.1}]}))


def test_what_it_cannot_teach_is_refused(tmp_path: Path) -> None:
    def config(**changes: Any) -> RunConfig:
        return RunConfig.model_validate(tiny_job({"stopping": {"steps": 1}, **changes}))

    config()
    with pytest.raises(ValidationError, match=r"stopping teaches to count tokens, and length\.unit is words"):
        config(length={"target": 12, "tolerance": 2, "unit": "words"})
    with pytest.raises(
        ValidationError, match=r"answer\.after asks for the length of what follows '</think>'"
    ):
        config(answer={"after": "</think>"})
    with pytest.raises(
        ValidationError, match=r"stopping\.stage 'cool' is none of the stages \(first, second\)"
    ):
        config(stopping={"steps": 1, "stage": "cool"}, stages=two_stages())
    with pytest.raises(ValidationError, match="a stage cannot be named 'stopping'"):
        config(stages=[{"name": "stopping", "steps": 1, "rewards": [{"kind": "length"}]}])
    with pytest.raises(UserError, match=r"longer than 60 ± 4 .* reads 128: set --data\.max_prompt_tokens 60"):
        counting(
            tmp_path / "long",
            length={"target": 60, "targets": [], "tolerance": 4},
            sampling={"max_tokens": 61},
            stopping={"steps": 1, "max_prompt_tokens": 64},
        )
