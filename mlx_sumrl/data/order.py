"""Which examples a step uses: a pure function of the step, so a resumed run needs nothing but its number.

Invariant: the steps' batches, laid end to end, are epoch after epoch, each a permutation of all examples; a
batch may reach across the end of an epoch, and never holds an example twice where there are enough of them.
"""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray


def batch_indices(seed: int, examples: int, batch_size: int, step: int) -> list[int]:
    """Indices `[batch_size]` into the examples that step `step` (the first is 0) is trained on.

    With fewer examples than `batch_size` each one is in every batch, as often as any other or once more.

    Raises:
        ValueError: `examples` or `batch_size` is below 1, or `seed` or `step` below 0.
    """
    if examples < 1 or batch_size < 1 or step < 0 or seed < 0:
        raise ValueError(f"no batch {step} of {batch_size} from {examples} examples with seed {seed}")
    if examples < batch_size:
        whole, rest = divmod(batch_size, examples)
        return [*range(examples)] * whole + (batch_indices(seed, examples, rest, step) if rest else [])
    indices: list[int] = []
    epoch, offset = divmod(step * batch_size, examples)
    while len(indices) < batch_size:
        order = epoch_order(seed, examples, batch_size, epoch)
        indices += order[offset : offset + batch_size - len(indices)].tolist()
        epoch, offset = epoch + 1, 0
    return indices


def epoch_order(seed: int, examples: int, batch_size: int, epoch: int) -> NDArray[np.int64]:
    """Order `[examples]` of epoch `epoch` (the first is 0); there are at least `batch_size` examples."""
    # An epoch depends on the one before only where a batch reaches across, and every `period` epochs none
    # does: that is where the chain starts, so nothing needs to be remembered between steps.
    period = batch_size // gcd(examples, batch_size)
    first = epoch - epoch % period
    order = _permutation(seed, examples, first)
    for number in range(first + 1, epoch + 1):
        begun = number * examples % batch_size
        order = _avoid(_permutation(seed, examples, number), order[examples - begun :], batch_size - begun)
    return order


def _permutation(seed: int, examples: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(examples)


def _avoid(order: NDArray[np.int64], taken: NDArray[np.int64], places: int) -> NDArray[np.int64]:
    """`order` with the first `places` filled by those that are not `taken`, else in the order it had."""
    free = np.flatnonzero(~np.isin(order, taken))[:places]
    return np.concatenate([order[free], np.delete(order, free)])
