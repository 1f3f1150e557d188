"""Tables of predictions in, tables of results out. Never imports torch."""

from vitlab.evaluation.bands import curve_band_table
from vitlab.evaluation.calibration import expected_calibration_error, reliability_table
from vitlab.evaluation.comparison import comparison_table
from vitlab.evaluation.curves import precision_recall_table, roc_table, threshold_table
from vitlab.evaluation.metrics import METRICS, class_table, confusion_table, metrics_table
from vitlab.evaluation.paired import mcnemar_table, paired_table
from vitlab.evaluation.pairwise import corrected_t, describe_pairs, pairwise_table
from vitlab.evaluation.ranking import friedman_table, nemenyi_table, ranks_table
from vitlab.evaluation.slices import mistakes_table, slice_table
from vitlab.evaluation.uncertainty import uncertainty_table

__all__ = [
    "METRICS",
    "class_table",
    "comparison_table",
    "confusion_table",
    "corrected_t",
    "curve_band_table",
    "describe_pairs",
    "expected_calibration_error",
    "friedman_table",
    "mcnemar_table",
    "metrics_table",
    "mistakes_table",
    "nemenyi_table",
    "paired_table",
    "pairwise_table",
    "precision_recall_table",
    "ranks_table",
    "reliability_table",
    "roc_table",
    "slice_table",
    "threshold_table",
    "uncertainty_table",
]
