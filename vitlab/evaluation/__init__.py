"""Tables of predictions in, tables of results out. Never imports torch."""

from vitlab.evaluation.calibration import expected_calibration_error, reliability_table
from vitlab.evaluation.comparison import comparison_table
from vitlab.evaluation.curves import precision_recall_table, roc_table, threshold_table
from vitlab.evaluation.leakage import leakage_table
from vitlab.evaluation.metrics import METRICS, class_table, confusion_table, metrics_table
from vitlab.evaluation.slices import mistakes_table, slice_table

__all__ = [
    "METRICS",
    "class_table",
    "comparison_table",
    "confusion_table",
    "expected_calibration_error",
    "leakage_table",
    "metrics_table",
    "mistakes_table",
    "precision_recall_table",
    "reliability_table",
    "roc_table",
    "slice_table",
    "threshold_table",
]
