"""Tables of predictions in, tables of results out. Never imports torch."""

from vitlab.evaluation.annotators import annotator_agreement_table, annotator_table, predict_value
from vitlab.evaluation.calibration import classwise_calibration_error, expected_calibration_error, reliability_table
from vitlab.evaluation.comparison import comparison_table
from vitlab.evaluation.conformal import conformal_class_table, conformal_sets, conformal_table
from vitlab.evaluation.curves import precision_recall_table, roc_table, threshold_table
from vitlab.evaluation.metrics import METRICS, class_table, confusion_table, metrics_table
from vitlab.evaluation.probability import CALIBRATION_METRICS, brier_table, calibration_table
from vitlab.evaluation.recalibration import calibrate, recalibration_table
from vitlab.evaluation.selection import risk_area_table, risk_coverage_table, selective_table
from vitlab.evaluation.slices import mistakes_table, slice_table
from vitlab.evaluation.thresholds import apply_threshold, choose_threshold, threshold_choice_table

__all__ = [
    "CALIBRATION_METRICS",
    "METRICS",
    "annotator_agreement_table",
    "annotator_table",
    "apply_threshold",
    "brier_table",
    "calibrate",
    "calibration_table",
    "choose_threshold",
    "class_table",
    "classwise_calibration_error",
    "comparison_table",
    "conformal_class_table",
    "conformal_sets",
    "conformal_table",
    "confusion_table",
    "expected_calibration_error",
    "metrics_table",
    "mistakes_table",
    "precision_recall_table",
    "predict_value",
    "recalibration_table",
    "reliability_table",
    "risk_area_table",
    "risk_coverage_table",
    "roc_table",
    "selective_table",
    "slice_table",
    "threshold_choice_table",
    "threshold_table",
]
