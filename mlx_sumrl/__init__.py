"""Teach small language models to write summaries that are good and exactly as long as asked."""
