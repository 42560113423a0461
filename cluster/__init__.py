"""Rollouts from other machines: workers, and the pool that a training loop samples from. Never imports mlx."""
