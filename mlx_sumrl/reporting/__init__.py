"""The run's folder: config.json, metrics.jsonl, rollouts.jsonl; progress on the screen; tables."""
