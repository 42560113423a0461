"""Asking an OpenAI-compatible server: one request, many at once, the caps on cost, and the record of every answer."""
