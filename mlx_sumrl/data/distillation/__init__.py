"""Distillation: documents -> a larger model's answers -> a prepared dataset, with nothing paid for twice."""
