"""Many runs as one question: the grid, equal budgets, and the tables of what came of it. Never imports mlx."""
