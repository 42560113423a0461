"""A run's numbers, shown elsewhere as it goes on: TensorBoard, Weights & Biases. Off by default. Never imports mlx.

metrics.jsonl is the record and has everything; what a tracker shows is a copy of its numbers.
"""

from mlx_sumrl.reporting.trackers.attached import AttachedTrackers, check_trackers
from mlx_sumrl.reporting.trackers.tracker import Tracker, numbers

__all__ = ["AttachedTrackers", "Tracker", "check_trackers", "numbers"]
