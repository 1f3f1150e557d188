"""ROC and precision-recall curves with bootstrap bands, and what every threshold does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, percentile_interval, read_clusters
from vitlab.evaluation.scores import Scores, read_scores, select_split, target_classes
from vitlab.registry import unknown

AXES = {
    "roc": ("false_positive_rate", "true_positive_rate"),
    "precision_recall": ("recall", "precision"),
}
POINTS = np.linspace(0, 1, 101)  # of the bands and the thresholds


def roc_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """ROC curves of the test split: columns class, false_positive_rate, true_positive_rate,
    threshold; each starts at (0, 0) with an infinite threshold.

    One curve for the last of two classes, or one for each of more (one against the rest). A class
    that has no images in the split, or all of them, has no curve."""
    columns = ("false_positive_rate", "true_positive_rate", "threshold")
    tables = [pd.DataFrame(columns=["class", *columns])]
    for name, is_positive, score in _read_targets(read_scores(predictions, "test")):
        values = dict(zip(columns, roc_curve(is_positive, score), strict=True))
        tables.append(pd.DataFrame({"class": name, **values}))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def precision_recall_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Precision-recall curves of the test split: columns class, precision, recall, threshold.

    Each starts at recall 1, where precision is the prevalence. Classes as in `roc_table`."""
    columns = ("precision", "recall", "threshold")
    tables = [pd.DataFrame(columns=["class", *columns])]
    for name, is_positive, score in _read_targets(read_scores(predictions, "test")):
        precision, recall, threshold = precision_recall_curve(is_positive, score)
        closed = np.append(threshold, np.inf)  # the last point, recall 0, lies above every score
        values = dict(zip(columns, (precision, recall, closed), strict=True))
        tables.append(pd.DataFrame({"class": name, **values}))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def threshold_table(
    predictions: pd.DataFrame, split: str = "test", positive: str | None = None
) -> pd.DataFrame:
    """precision, recall, specificity and f1 for each of 101 thresholds on 0..1, from which on an
    image is called `positive` (default: the last of two classes).

    Precision is NaN where nothing reaches the threshold."""
    scores = read_scores(predictions, split)
    target = one_target(scores.classes, positive)
    score, is_positive = scores.prob[:, target], scores.label == target
    true_positives = count_reaching(score[is_positive], POINTS)
    false_positives = count_reaching(score[~is_positive], POINTS)
    positives, negatives = is_positive.sum(), (~is_positive).sum()
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(
            {
                "class": scores.classes[target],
                "threshold": POINTS,
                "precision": true_positives / (true_positives + false_positives),
                "recall": true_positives / positives,
                "specificity": (negatives - false_positives) / negatives,
                "f1": 2 * true_positives / (true_positives + false_positives + positives),
            }
        )


def curve_band_table(
    predictions: pd.DataFrame, kind: str = "roc", replicates: int = 1000, cluster=None
) -> pd.DataFrame:
    """Pointwise 95 % bootstrap bands of the curves of `roc_table` (kind "roc") or
    `precision_recall_table` ("precision_recall"), at 101 places on 0..1.

    Columns class, false_positive_rate, true_positive_rate, low, high; or class, recall, precision,
    low, high. ROC curves are interpolated linearly, with the upper end at a jump; precision is that
    of the highest threshold that reaches the recall, since lines between the points would be too
    high (Davis and Goadrich, 2006). Pointwise: the band holds the curve at each single place in
    95 % of cases, the whole curve less often. cluster: as in `metrics_table`."""
    if kind not in AXES:
        raise UserError(unknown("kind of curve", kind, list(AXES)))
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    x, y = AXES[kind]
    tables = [pd.DataFrame(columns=["class", x, y, "low", "high"])]
    for name, is_positive, score in _read_targets(read_scores(predictions, "test")):
        curve = prepare_curve(score, is_positive, kind)
        value = curve(np.ones((1, len(is_positive))))[0]
        drawn = bootstrap(curve, len(is_positive), replicates, cluster=clusters)
        low, high, _ = percentile_interval(drawn, estimate=value)
        values = {x: POINTS, y: value, "low": low, "high": high}
        tables.append(pd.DataFrame({"class": name, **values}))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def prepare_curve(
    score: np.ndarray, is_positive: np.ndarray, kind: str
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights (R, N) to the heights (R, 101) of the curve; NaN where one class has
    no weight.

    All rows are looked up at once: each gets a range of the number line of its own."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # of each group of equal scores
    positive = is_positive[order].astype(float)

    def curve(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        true_positives = np.cumsum(weights * positive, axis=1)[:, last]
        false_positives = np.cumsum(weights * (1 - positive), axis=1)[:, last]
        positives, negatives = true_positives[:, -1:], false_positives[:, -1:]
        counted = false_positives if kind == "roc" else true_positives
        start = (np.arange(len(weights)) * (counted.max() + 2))[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            if kind == "roc":
                origin = np.zeros((len(weights), 1))  # the curve starts at (0, 0)
                walk = np.hstack([origin, false_positives]) + start
                height = np.hstack([origin, true_positives])
                place = (POINTS * negatives).round(9) + start
                values = np.interp(place, walk.ravel(), height.ravel()) / positives
            else:
                wanted = np.maximum(POINTS * positives, 1e-6)  # at recall 0: the first positive
                wanted = wanted.round(9) + start
                place = np.searchsorted((true_positives + start).ravel(), wanted.ravel())
                place = place.reshape(wanted.shape) - np.arange(len(weights))[:, None] * len(last)
                place = np.minimum(place, len(last) - 1)
                reached = np.take_along_axis(true_positives, place, axis=1)
                values = reached / (reached + np.take_along_axis(false_positives, place, axis=1))
        values[((positives == 0) | (negatives == 0))[:, 0]] = np.nan
        return values

    return curve


def count_reaching(score: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many scores are at or above each threshold."""
    return len(score) - np.searchsorted(np.sort(score), thresholds, side="left")


def one_target(classes: tuple[str, ...], positive: str | None) -> int:
    """Index of `positive`, or of the last of two classes; UserError where it must be named."""
    targets = target_classes(classes, positive)
    if len(targets) > 1:
        raise UserError(
            f"a threshold needs one class: write positive= with one of {', '.join(classes)}"
        )
    return targets[0]


def _read_targets(scores: Scores) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, membership (N,) and scores (N,) of each class that has images and is not alone."""
    for target in target_classes(scores.classes):
        is_positive = scores.label == target
        if 0 < is_positive.sum() < len(is_positive):
            yield scores.classes[target], is_positive, scores.prob[:, target]
