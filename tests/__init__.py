"""Tests mirror the rooms. mlx_sumrl comes before mlx: it loads a fast BLAS."""

import mlx_sumrl as mlx_sumrl
