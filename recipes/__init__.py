"""One readable program per job, ``python -m recipes.<job>``."""
