"""Is the difference real: tests, intervals and power for policies compared on the same rows.

Sums are scipy's and statsmodels'; here is which of them is asked what, and what is said where they have no answer (one
row, no spread): a number or None, never NaN.
"""

from mlx_sumrl.evaluation.statistics.comparison import Comparison, Verdict, compare_all
from mlx_sumrl.evaluation.statistics.correlation import Correlations, correlations
from mlx_sumrl.evaluation.statistics.intervals import Difference, compare, paired_difference
from mlx_sumrl.evaluation.statistics.paired_rows import shared_metrics
from mlx_sumrl.evaluation.statistics.power import detectable, power_of, rows_needed
from mlx_sumrl.evaluation.statistics.sentence import sentence
from mlx_sumrl.evaluation.statistics.shares import (
    Mcnemar,
    mcnemar_test,
    paired_share_interval,
    share_interval,
)

__all__ = [
    "Comparison",
    "Correlations",
    "Difference",
    "Mcnemar",
    "Verdict",
    "compare",
    "compare_all",
    "correlations",
    "detectable",
    "mcnemar_test",
    "paired_difference",
    "paired_share_interval",
    "power_of",
    "rows_needed",
    "sentence",
    "share_interval",
    "shared_metrics",
]
