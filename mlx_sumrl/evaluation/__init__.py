"""Held-out examples -> numbers: length pass rate, ROUGE, METEOR, structured answers, and tables of policies."""

from mlx_sumrl.evaluation.evaluate import evaluate
from mlx_sumrl.evaluation.length import LengthSummary
from mlx_sumrl.evaluation.results import Evaluation, Row, score
from mlx_sumrl.evaluation.structured import StructuredEvaluation, evaluate_structured
from mlx_sumrl.evaluation.table import comparison_markdown, comparison_table

__all__ = [
    "Evaluation",
    "LengthSummary",
    "Row",
    "StructuredEvaluation",
    "comparison_markdown",
    "comparison_table",
    "evaluate",
    "evaluate_structured",
    "score",
]
