"""Length pass rate and overlap with references, on held-out rows."""
