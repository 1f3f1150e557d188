"""What a threshold on the probability of a class buys and costs: ROC, precision-recall, and the
threshold itself.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from vitlab.errors import UserError
from vitlab.evaluation.scores import read_scores, target_classes


def roc_table(
    predictions: pd.DataFrame, split: str = "test", positive: str | None = None
) -> pd.DataFrame:
    """ROC curves: columns class, false_positive_rate, true_positive_rate, threshold; from (0, 0) at
    an infinite threshold on.

    One curve, of `positive` or of the last one of two classes; one for each of more than two (one
    against the rest). A class that the split lacks, or that is alone in it, has no curve."""
    columns = ("false_positive_rate", "true_positive_rate", "threshold")
    return _curves(predictions, split, positive, columns, roc_curve)


def precision_recall_table(
    predictions: pd.DataFrame, split: str = "test", positive: str | None = None
) -> pd.DataFrame:
    """Precision-recall curves: columns class, precision, recall, threshold; the first row of a
    curve is at recall 1.

    There precision is the prevalence of the class. Classes as in `roc_table`.
    """

    def curve(is_positive, score):
        precision, recall, threshold = precision_recall_curve(is_positive, score)
        # the closing point (recall 0) lies above every score
        return precision, recall, np.append(threshold, np.inf)

    return _curves(predictions, split, positive, ("precision", "recall", "threshold"), curve)


def threshold_table(
    predictions: pd.DataFrame, split: str = "test", positive: str | None = None, steps: int = 101
) -> pd.DataFrame:
    """precision, recall, specificity and f1 of calling everything `positive` that reaches a
    threshold: a row for each threshold.

    Thresholds lie evenly on 0..1. Precision is NaN where nothing reaches the threshold. More than
    two classes need `positive`."""
    scores = read_scores(predictions, split)
    targets = target_classes(scores.classes, positive)
    if len(targets) > 1:
        raise UserError(
            f"a threshold needs one class: write positive= with one of {', '.join(scores.classes)}"
        )
    score, is_positive = scores.prob[:, targets[0]], scores.label == targets[0]
    thresholds = np.linspace(0, 1, steps)
    true_positives = count_reaching(score[is_positive], thresholds)
    false_positives = count_reaching(score[~is_positive], thresholds)
    positives, negatives = is_positive.sum(), (~is_positive).sum()
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(
            {
                "class": scores.classes[targets[0]],
                "threshold": thresholds,
                "precision": true_positives / (true_positives + false_positives),
                "recall": true_positives / positives,
                "specificity": (negatives - false_positives) / negatives,
                "f1": 2 * true_positives / (true_positives + false_positives + positives),
            }
        )


def count_reaching(score: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores are at or above each threshold."""
    return len(score) - np.searchsorted(np.sort(score), thresholds, side="left")


def _curves(predictions, split, positive, columns, curve) -> pd.DataFrame:
    scores = read_scores(predictions, split)
    tables = [pd.DataFrame(columns=["class", *columns])]
    for target in target_classes(scores.classes, positive):
        is_positive = scores.label == target
        if 0 < is_positive.sum() < len(is_positive):
            values = dict(zip(columns, curve(is_positive, scores.prob[:, target]), strict=True))
            tables.append(pd.DataFrame({"class": scores.classes[target], **values}))
    return pd.concat(tables[1:] or tables, ignore_index=True)
