"""What samples: how each engine is started, asked, loaded and probed. Never imports mlx."""
