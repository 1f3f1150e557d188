"""Tables of predictions in, tables of results out. Never imports torch.

All intervals and tests are for other images of the same kind. If the predictions have a column
`cluster`, images with the same value in it (near-duplicates, images of one patient) are not
independent: they are drawn and tested together."""

from vitlab.evaluation import sentences
from vitlab.evaluation.calibration import (
    calibrate,
    calibration_table,
    recalibration_table,
    reliability_table,
)
from vitlab.evaluation.conformal import conformal_class_table, conformal_table
from vitlab.evaluation.curves import curve_band_table, precision_recall_table, roc_table
from vitlab.evaluation.examples import (
    choose_examples,
    draw_findings,
    mistakes_table,
    neighbour_table,
)
from vitlab.evaluation.groups import split_table
from vitlab.evaluation.metrics import METRICS, class_table, confusion_table, metrics_table
from vitlab.evaluation.pairwise import (
    baseline_difference_table,
    class_scores_table,
    comparison_table,
    mcnemar_table,
    pairwise_table,
)
from vitlab.evaluation.published import protocol_table, published_gap_table, published_table
from vitlab.evaluation.selection import risk_coverage_table, selective_table
from vitlab.evaluation.slices import leakage_table, slice_table, worst_slice_table
from vitlab.evaluation.thresholds import (
    choose_threshold,
    threshold_choice_table,
    threshold_table,
)
from vitlab.evaluation.uncertainty import ranking_table, uncertainty_table

__all__ = [
    "METRICS",
    "baseline_difference_table",
    "calibrate",
    "calibration_table",
    "choose_examples",
    "choose_threshold",
    "class_scores_table",
    "class_table",
    "comparison_table",
    "conformal_class_table",
    "conformal_table",
    "confusion_table",
    "curve_band_table",
    "draw_findings",
    "leakage_table",
    "mcnemar_table",
    "metrics_table",
    "mistakes_table",
    "neighbour_table",
    "pairwise_table",
    "precision_recall_table",
    "protocol_table",
    "published_gap_table",
    "published_table",
    "ranking_table",
    "recalibration_table",
    "reliability_table",
    "risk_coverage_table",
    "roc_table",
    "selective_table",
    "sentences",
    "slice_table",
    "split_table",
    "threshold_choice_table",
    "threshold_table",
    "uncertainty_table",
    "worst_slice_table",
]
