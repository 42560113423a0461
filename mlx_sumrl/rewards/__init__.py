"""Completion -> numbers: length, overlap, your own function; how they are weighed and gated."""
