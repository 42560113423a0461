"""One question per file, the peer measured in the same run."""
