"""ROC and precision-recall curves of the test split, and their bootstrap bands."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from vitlab.errors import UserError
from vitlab.evaluation.inference import bootstrap, percentile_interval
from vitlab.evaluation.scores import Scores, read_scores, target_classes
from vitlab.registry import unknown

AXES = {
    "roc": ("false_positive_rate", "true_positive_rate"),
    "precision_recall": ("recall", "precision"),
}
POINTS = np.linspace(0, 1, 101)  # of the bands


def roc_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """ROC curves: columns class, false_positive_rate, true_positive_rate, threshold; each starts at
    (0, 0) with an infinite threshold.

    One curve for the last of two classes, or one for each of more (one against the rest). A class
    that has no images in the split, or all of them, has no curve."""
    columns = ("class", "false_positive_rate", "true_positive_rate", "threshold")
    curves = [
        (name, *roc_curve(is_positive, score))
        for name, is_positive, score in _list_curves(read_scores(predictions, "test"))
    ]
    return _stack(columns, curves)


def precision_recall_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Precision-recall curves: columns class, precision, recall, threshold.

    Each starts at recall 1, where precision is the prevalence, and ends at recall 0 with an
    infinite threshold. Classes as in `roc_table`."""
    curves = []
    for name, is_positive, score in _list_curves(read_scores(predictions, "test")):
        precision, recall, threshold = precision_recall_curve(is_positive, score)
        curves.append((name, precision, recall, np.append(threshold, np.inf)))
    return _stack(("class", "precision", "recall", "threshold"), curves)


def curve_band_table(
    predictions: pd.DataFrame, kind: str = "roc", replicates: int = 1000
) -> pd.DataFrame:
    """Pointwise 95 % bootstrap bands of the curves of `roc_table` (kind "roc") or
    `precision_recall_table` ("precision_recall"), at 101 places on 0..1.

    Columns class, false_positive_rate, true_positive_rate, low, high; or class, recall, precision,
    low, high. ROC curves are interpolated linearly; precision is that of the highest threshold that
    reaches the recall, since lines between the points would be too high (Davis and Goadrich, 2006).
    Pointwise: the band contains the curve at each single place in 95 % of cases, the whole curve
    less often."""
    if kind not in AXES:
        raise UserError(unknown("kind of curve", kind, list(AXES)))
    scores = read_scores(predictions, "test")
    curves = []
    for name, is_positive, score in _list_curves(scores):
        compute = prepare_curve(score, is_positive, kind)
        value = compute(np.ones((1, len(score))))[0]
        drawn = bootstrap(compute, len(score), replicates, cluster=scores.cluster)
        low, high, _ = percentile_interval(drawn, value, scores.units)
        curves.append((name, POINTS, value, low, high))
    return _stack(("class", *AXES[kind], "low", "high"), curves)


def prepare_curve(
    score: np.ndarray, is_positive: np.ndarray, kind: str
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights (R, N) to the heights (R, 101) of the curve; NaN where one class has
    no weight."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))  # of each group of equal scores
    positive = is_positive[order].astype(float)

    def height(true: np.ndarray, false: np.ndarray) -> np.ndarray:
        """From the weights of true and false positives at each threshold, the highest first."""
        if true[-1] == 0 or false[-1] == 0:
            return np.full(len(POINTS), np.nan)
        if kind == "roc":
            place = (POINTS * false[-1]).round(9)
            return np.interp(place, np.append(0, false), np.append(0, true)) / true[-1]
        wanted = np.maximum(POINTS * true[-1], 1e-6).round(9)  # at recall 0: the first positive
        place = np.searchsorted(true, wanted)
        return true[place] / (true[place] + false[place])

    def curve(weights: np.ndarray) -> np.ndarray:
        weights = weights[:, order]
        true = np.cumsum(weights * positive, axis=1)[:, last]
        false = np.cumsum(weights * (1 - positive), axis=1)[:, last]
        return np.array([height(*pair) for pair in zip(true, false, strict=True)])

    return curve


def _list_curves(scores: Scores) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, membership (N,) and scores (N,) of each class that has a curve."""
    for target in target_classes(scores.classes):
        is_positive = scores.label == target
        if 0 < is_positive.sum() < len(is_positive):
            yield scores.classes[target], is_positive, scores.prob[:, target]


def _stack(columns: tuple[str, ...], curves: list[tuple]) -> pd.DataFrame:
    """One table of all curves, each given as the values of its columns."""
    tables = [pd.DataFrame(columns=columns)]
    tables += [pd.DataFrame(dict(zip(columns, curve, strict=True))) for curve in curves]
    return pd.concat(tables[1:] or tables, ignore_index=True)
