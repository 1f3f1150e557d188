"""Metrics of a classifier with bootstrap intervals, computed for all replicates at once.

The values are those of scikit-learn: a class that is never predicted has precision 0. One thing
differs: a metric that needs a class which the images lack is NaN, where scikit-learn returns 0 or
leaves the class out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from vitlab.errors import UserError
from vitlab.evaluation.inference import bootstrap, percentile_interval
from vitlab.evaluation.scores import Scores, read_scores, target_classes
from vitlab.registry import unknown

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",  # unlike precision, it does not depend on the prevalence
    "f1",
    "weighted_f1",
    "roc_auc",
    "average_precision",
    "mcc",
)
REPORTED_SHARE = 0.05  # of undefined replicates, from which on the table mentions them
MIN_CLUSTERS = 20  # with fewer, percentile intervals are too narrow, and the table says so


def metrics_table(
    predictions: pd.DataFrame, split: str = "test", replicates: int = 1000
) -> pd.DataFrame:
    """METRICS with 95 % percentile bootstrap intervals: columns metric, value, low, high, note.

    With two classes, precision, recall, specificity, f1, roc_auc and average_precision are those of
    the last class; with more, they are means over the classes, one against the rest. weighted_f1
    weights each class by its size. Images with the same value in a column `cluster` of the
    predictions, such as near-duplicates, are drawn together. note: which class is missing, the
    share of replicates that lack a class (from 5 % on), or that there are fewer than 20 clusters.

    >>> import pandas as pd, vitlab
    >>> table = {"sample_id": ["a", "b"], "split": "test", "group": "all", "label": ["no", "yes"]}
    >>> table |= {"pred": ["no", "no"], "logit_no": [2.0, 1.0], "logit_yes": 0.0}
    >>> table |= {"prob_no": [0.88, 0.73], "prob_yes": [0.12, 0.27]}
    >>> metrics = vitlab.evaluation.metrics_table(pd.DataFrame(table)).set_index("metric")
    >>> float(metrics.loc["accuracy", "value"])
    0.5
    """
    return measure(read_scores(predictions, split), replicates)


def check_metrics(metrics: Sequence[str]) -> None:
    """UserError for a name that is not in METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(unknown("metric", name, list(METRICS)))


def measure(scores: Scores, replicates: int) -> pd.DataFrame:
    """The table of `metrics_table` for arrays."""
    compute = prepare_metrics(scores)
    value = compute(np.ones((1, len(scores.label))))[0]
    drawn = bootstrap(compute, len(scores.label), replicates, cluster=scores.cluster)
    low, high, undefined = percentile_interval(drawn, value, scores.units)
    clusters = np.inf if scores.cluster is None else int(scores.cluster.max()) + 1
    low[np.isnan(value) | (clusters == 1)] = high[np.isnan(value) | (clusters == 1)] = np.nan
    warning = f"only {clusters} cluster{'s' * (clusters > 1)}" if clusters < MIN_CLUSTERS else ""
    warnings = [describe_undefined(share) or warning for share in undefined]
    notes = np.where(np.isnan(value), describe_classes(scores), warnings if replicates else "")
    return pd.DataFrame(
        {"metric": METRICS, "value": value, "low": low, "high": high, "note": notes}
    )


def describe_classes(scores: Scores) -> str:
    """Which classes are missing; empty if none is."""
    present = np.isin(range(len(scores.classes)), scores.label)
    if present.sum() == 1:
        return "only " + scores.classes[scores.label[0]]
    missing = np.array(scores.classes)[~present]
    more = ", ..." if len(missing) > 5 else ""
    return f"no {', '.join(missing[:5])}{more}" if len(missing) else ""


def describe_undefined(share: float) -> str:
    """The share of replicates without a value, from REPORTED_SHARE on; otherwise empty."""
    return f"{share:.0%} of the replicates lack a class" if share >= REPORTED_SHARE else ""


def prepare_metrics(scores: Scores) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights (R, N) to METRICS (R, 10); what does not depend on the weights is
    computed once."""
    targets = target_classes(scores.classes)
    is_label = np.eye(len(scores.classes))[scores.label]  # (N, C)
    is_pred = np.eye(len(scores.classes))[scores.pred]
    cells = np.hstack([is_label, is_pred, is_label * is_pred])  # (N, 3C)
    # NaN below where a class that the metric needs has no weight
    rankings = [_prepare_ranking(scores.prob[:, k], is_label[:, k]) for k in targets]

    def compute(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)  # (R,)
        labelled, predicted, correct = np.split(weights @ cells, 3, axis=1)  # (R, C)
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = correct / labelled  # 0 / 0 = NaN: there is nothing to recall
            precision = np.where(
                labelled > 0, correct / np.where(predicted > 0, predicted, np.inf), np.nan
            )
            specificity = 1 - (predicted - correct) / (total[:, None] - labelled)
            f1 = np.where(labelled > 0, 2 * correct / (labelled + predicted), np.nan)
            ranked = np.array([ranking(weights) for ranking in rankings])  # (K, 2, R)
            covariance = correct.sum(axis=1) * total - (labelled * predicted).sum(axis=1)
            spread = (total**2 - (labelled**2).sum(axis=1)) * (
                total**2 - (predicted**2).sum(axis=1)
            )
            mcc = np.where(spread > 0, covariance / np.sqrt(spread), 0.0)
        mcc[(labelled > 0).sum(axis=1) < 2] = np.nan
        columns = {
            "accuracy": correct.sum(axis=1) / total,
            "balanced_accuracy": recall.mean(axis=1),
            "precision": precision[:, targets].mean(axis=1),
            "recall": recall[:, targets].mean(axis=1),
            "specificity": specificity[:, targets].mean(axis=1),
            "f1": f1[:, targets].mean(axis=1),
            "weighted_f1": (np.nan_to_num(f1) * labelled).sum(axis=1) / total,
            "roc_auc": ranked[:, 0].mean(axis=0),
            "average_precision": ranked[:, 1].mean(axis=0),
            "mcc": mcc,
        }
        return np.stack([columns[name] for name in METRICS], axis=1)

    return compute


def _prepare_ranking(
    score: np.ndarray, positive: np.ndarray
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function from weights (R, N) to ROC AUC and average precision; the scores are sorted once.

    Both are sums over the positive images, or over the P groups of equal scores that hold one."""
    order = np.argsort(-score, kind="stable")
    found = np.flatnonzero(positive[order])  # ranks of the positive samples
    falling = -score[order]
    starts = np.flatnonzero(np.diff(falling[found], prepend=-np.inf))
    first, last = (
        np.searchsorted(falling, falling[found[starts]], side=side) for side in ("left", "right")
    )
    ties = (last - first > 1).any()

    def rank(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ordered = weights.take(order, axis=1)
        above = np.cumsum(ordered, axis=1)
        step = ordered.take(found, axis=1)
        reached = above.take(last - 1, axis=1)  # (R, P) weight at or above the score of the group
        if ties:
            step = np.add.reduceat(step, starts, axis=1)
        true_positives = np.cumsum(step, axis=1)
        false_positives = reached - true_positives
        if ties:
            tied = reached - above.take(first, axis=1) + ordered.take(first, axis=1)
            false_positives -= (tied - step) / 2  # trapezoid
        positives = step.sum(axis=1)
        negatives = above[:, -1] - positives
        area = 1 - np.vecdot(step, false_positives) / (positives * negatives)
        # now the precision; 0 where nothing is drawn yet
        true_positives /= np.maximum(reached, np.finfo(float).tiny)
        average_precision = np.vecdot(step, true_positives) / positives
        return area, np.where(negatives > 0, average_precision, np.nan)

    return rank


def class_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """precision, recall, f1 and support (number of test images) of each class; NaN without
    images."""
    scores = read_scores(predictions, "test")
    names = ("precision", "recall", "f1", "support")
    columns = precision_recall_fscore_support(
        scores.label, scores.pred, labels=range(len(scores.classes)), average=None, zero_division=0
    )
    table = pd.DataFrame({"class": scores.classes, **dict(zip(names, columns, strict=True))})
    table.loc[table["support"] == 0, ["precision", "recall", "f1"]] = np.nan
    return table


def confusion_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Counts of test images: a row for each true class (index `label`), a column for each predicted
    one (`pred`), in class order."""
    scores = read_scores(predictions, "test")
    counts = confusion_matrix(scores.label, scores.pred, labels=range(len(scores.classes)))
    return pd.DataFrame(
        counts, pd.Index(scores.classes, name="label"), pd.Index(scores.classes, name="pred")
    )
