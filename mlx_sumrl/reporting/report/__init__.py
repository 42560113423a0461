"""report.html: evaluations and runs -> one page with figures, which opens from disk and needs nothing else."""
