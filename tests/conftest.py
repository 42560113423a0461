"""For all tests: in CI, property tests look at the same cases every time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def exact_buffers() -> Iterator[None]:
    """For what is measured in bytes: a buffer of MLX's that is used again may be larger than what lies in it, and
    counts whole. Here each is made anew."""
    import mlx_sumrl  # isort: skip  # noqa: F401  (its BLAS comes before MLX)
    import mlx.core as mx

    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)
