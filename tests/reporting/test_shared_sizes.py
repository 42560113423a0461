"""The estimate never imports mlx, so it has sizes of its own: they are those that training cuts by."""

from __future__ import annotations

from mlx_sumrl.policy import attention, head, packing
from mlx_sumrl.reporting import activation_estimate


def test_sizes_of_the_estimate_are_those_of_training() -> None:
    for module, names in (
        (packing, ("POSITIONS",)),
        (head, ("ALIVE", "TILE", "NARROWEST")),
        (attention, ("SCORES",)),
    ):
        for name in names:
            assert getattr(activation_estimate, name) == getattr(module, name), name
