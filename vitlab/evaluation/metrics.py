"""Metrics of a classifier with bootstrap intervals, computed for all replicates at once.

Values are those of scikit-learn, whose conventions hold: a class that is never predicted has precision 0. One thing differs:
a metric that needs a class which the samples lack is NaN, where scikit-learn would say 0 or leave the class out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from vitlab.evaluation.bootstrap import draw_counts, percentile_interval
from vitlab.evaluation.scores import Scores, read_scores, target_classes

METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "weighted_f1", "roc_auc", "average_precision", "mcc")
REPORTED_SHARE = 0.05  # from this share of undefined replicates on, the table says so


def metrics_table(
    predictions: pd.DataFrame,
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """METRICS with percentile bootstrap intervals: columns metric, value, low, high, note.

    precision, recall, f1, roc_auc and average_precision are those of the class `positive`; without it, of the last one of two
    classes, or the plain mean over more than two (one against the rest). weighted_f1 is weighted by the size of each class.
    note: which class is missing, or the share of replicates that lacked a class, from 5 % on; empty otherwise.
    """
    scores = read_scores(predictions, split)
    return measure(scores, target_classes(scores.classes, positive), replicates, seed, confidence)


def measure(scores: Scores, targets: list[int], replicates: int, seed: int, confidence: float) -> pd.DataFrame:
    """The table of `metrics_table` for arrays."""
    num_samples = len(scores.label)
    value = compute_metrics(scores, np.ones((1, num_samples)), targets)[0]
    drawn = [compute_metrics(scores, counts, targets) for counts in draw_counts(num_samples, replicates, seed)]
    low, high, undefined = percentile_interval(np.concatenate([np.empty((0, len(METRICS))), *drawn]), confidence)
    low[np.isnan(value)] = high[np.isnan(value)] = np.nan
    present = np.isin(range(len(scores.classes)), scores.label)
    few = (
        "only " + scores.classes[scores.label[0]] if present.sum() == 1 else "no " + ", ".join(np.array(scores.classes)[~present])
    )
    notes = np.where(
        np.isnan(value),
        few,
        [f"{share:.0%} of the replicates lack a class" if share >= REPORTED_SHARE and replicates else "" for share in undefined],
    )
    return pd.DataFrame({"metric": METRICS, "value": value, "low": low, "high": high, "note": notes})


def compute_metrics(scores: Scores, weights: np.ndarray, targets: list[int]) -> np.ndarray:
    """METRICS for each row of weights (R, N): an array (R, 9). NaN where a class that the metric needs has no weight."""
    num_classes = len(scores.classes)
    is_label = np.eye(num_classes)[scores.label]  # (N, C)
    is_pred = np.eye(num_classes)[scores.pred]
    total = weights.sum(axis=1)  # (R,)
    labelled, predicted, correct = weights @ is_label, weights @ is_pred, weights @ (is_label * is_pred)  # (R, C)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = correct / labelled  # 0 / 0 = NaN: there is nothing to recall
        precision = np.where(labelled > 0, correct / np.where(predicted > 0, predicted, np.inf), np.nan)
        f1 = np.where(labelled > 0, 2 * correct / (labelled + predicted), np.nan)
        ranked = np.array([_rank(scores.prob[:, k], is_label[:, k], weights) for k in targets])  # (K, 2, R)
        covariance = correct.sum(axis=1) * total - (labelled * predicted).sum(axis=1)
        spread = (total**2 - (labelled**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
        mcc = np.where(spread > 0, covariance / np.sqrt(spread), 0.0)
    mcc[(labelled > 0).sum(axis=1) < 2] = np.nan
    columns = (
        correct.sum(axis=1) / total,
        recall.mean(axis=1),
        precision[:, targets].mean(axis=1),
        recall[:, targets].mean(axis=1),
        f1[:, targets].mean(axis=1),
        (np.nan_to_num(f1) * labelled).sum(axis=1) / total,
        *ranked.mean(axis=0),
        mcc,
    )
    return np.stack(columns, axis=1)


def _rank(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision for each row of weights (R, N): the samples are sorted only once."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # last sample of each group of equal scores
    weights = weights[:, order]
    above = np.cumsum(weights, axis=1)[:, last]  # (R, G) weight at or above each distinct score
    true_positives = np.cumsum(weights * positive[order], axis=1)[:, last]
    false_positives = above - true_positives
    step = np.diff(true_positives, axis=1, prepend=0)
    positives, negatives = true_positives[:, -1], false_positives[:, -1]
    height = true_positives - step / 2  # trapezoid
    area = (np.diff(false_positives, axis=1, prepend=0) * height).sum(axis=1) / (positives * negatives)
    precision = true_positives / np.where(above > 0, above, np.inf)
    average_precision = np.where(negatives > 0, (step * precision).sum(axis=1) / positives, np.nan)
    return area, average_precision


def class_table(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """precision, recall, f1 and support (number of samples) of each class; NaN for a class without samples."""
    scores = read_scores(predictions, split)
    names = ("precision", "recall", "f1", "support")
    columns = precision_recall_fscore_support(
        scores.label, scores.pred, labels=range(len(scores.classes)), average=None, zero_division=0
    )
    table = pd.DataFrame({"class": scores.classes, **dict(zip(names, columns, strict=True))})
    table.loc[table["support"] == 0, ["precision", "recall", "f1"]] = np.nan
    return table


def confusion_table(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Counts: a row for each true class (index `label`), a column for each predicted one (`pred`), in class order."""
    scores = read_scores(predictions, split)
    counts = confusion_matrix(scores.label, scores.pred, labels=range(len(scores.classes)))
    return pd.DataFrame(counts, pd.Index(scores.classes, name="label"), pd.Index(scores.classes, name="pred"))
