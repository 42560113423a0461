"""Held-out examples -> numbers: length pass rate, ROUGE, METEOR, structured answers, and tables of policies."""

from mlx_sumrl.evaluation.evaluate import evaluate
from mlx_sumrl.evaluation.length import LengthSummary
from mlx_sumrl.evaluation.results import Asked, Evaluation, Row, Sample
from mlx_sumrl.evaluation.row_metrics import Scoring
from mlx_sumrl.evaluation.score import score, score_samples
from mlx_sumrl.evaluation.structured import StructuredEvaluation, evaluate_structured
from mlx_sumrl.evaluation.table import comparison_markdown, comparison_table, metrics_table

__all__ = [
    "Asked",
    "Evaluation",
    "LengthSummary",
    "Row",
    "Sample",
    "Scoring",
    "StructuredEvaluation",
    "comparison_markdown",
    "comparison_table",
    "evaluate",
    "evaluate_structured",
    "metrics_table",
    "score",
    "score_samples",
]
