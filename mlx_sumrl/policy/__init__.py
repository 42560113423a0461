"""The model being trained: loading, full / LoRA / DoRA, log-probabilities, export."""
