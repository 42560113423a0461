"""``--cluster nodes.yaml``: the workers' sampler, told what only the trainer's process knows of the policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.fingerprint import model_fingerprint
from cluster.nodes import read_nodes
from cluster.sampler import ClusterSampler
from cluster.snapshot import Snapshot
from mlx_sumrl.data.example import Example
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.snapshot import text_logprobs, write_snapshot
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Sampling, TrainingSampler

CANARY_TOKENS = 128
"""Of the first prompt, at most: enough to see any layer that was left behind, and scored in no time."""
GREEDY_TOKENS = 8
"""What engines that cannot score a text are asked to say after the canary."""
HELP = "sample on other machines: a nodes.yaml that lists workers (see the README's chapter on clusters)"


@contextmanager
def rollouts_from(
    nodes: Path | None,
    policy: Policy,
    examples: Sequence[Example],
    folder: Path,
    drawn: Sequence[Sampling] = (),
) -> Iterator[TrainingSampler | None]:
    """The workers of ``nodes``; None, for the trainer's own sampler, without.

    What is sent is written below ``folder`` first; ``drawn`` is how the stages will sample. Raises `UserError` for a
    file, a worker or a policy that will not do.
    """
    if nodes is None:
        yield None
        return
    canary = examples[0].prompt_ids[:CANARY_TOKENS]
    after_canary = Example(id="canary", prompt_ids=canary, prompt="", document="", reference="")

    def snapshot(version: int) -> Snapshot:
        path = folder / f"{version:06d}"
        kind = write_snapshot(policy, path)
        [said] = LocalSampler(policy).sample(
            [after_canary], 1, Sampling(temperature=0, max_tokens=GREEDY_TOKENS), seed=0
        )
        return Snapshot(
            version=version,
            kind=kind,
            folder=path,
            canary_logprobs=tuple(text_logprobs(policy, canary)),
            greedy_ids=said.completions[0].token_ids,
            greedy_logprobs=said.completions[0].logprobs,
        )

    sampler = ClusterSampler(
        read_nodes(nodes),
        snapshot=snapshot,
        decode=lambda token_ids: policy.decode(list(token_ids)),
        canary_ids=canary,
        stop_ids=policy.stop_ids,
        vocabulary=policy.vocabulary,
        model=model_fingerprint(policy.folder),
        drawn=drawn,
    )
    with sampler:
        yield sampler
