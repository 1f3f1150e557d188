"""How far a ROC or precision-recall curve would move with another test set: bootstrap bands around
it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, percentile_interval, read_clusters
from vitlab.evaluation.scores import read_scores, select_split, target_classes
from vitlab.registry import unknown

AXES = {
    "roc": ("false_positive_rate", "true_positive_rate"),
    "precision_recall": ("recall", "precision"),
}


def curve_band_table(
    predictions: pd.DataFrame,
    kind: str = "roc",
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    points: int = 101,
    cluster=None,
) -> pd.DataFrame:
    """Pointwise percentile bands of the curves of `roc_table` (kind "roc") or
    `precision_recall_table` ("precision_recall").

    Columns class, false_positive_rate, true_positive_rate, low, high; or class, recall, precision,
    low, high: `points` places evenly on 0..1. ROC curves are interpolated along their lines, at a
    jump its upper end; precision is that of the highest threshold which reaches the recall, for
    lines between the points would be too high (Davis and Goadrich, 2006). Pointwise: at each single
    place the band holds the curve with `confidence`, the whole curve at once less often. Classes
    and those without a curve as in `roc_table`; cluster as in `metrics_table`."""
    if kind not in AXES:
        raise UserError(unknown("kind of curve", kind, list(AXES)))
    scores = read_scores(predictions, split)
    clusters = read_clusters(select_split(predictions, split), cluster)
    x, y = AXES[kind]
    grid = np.linspace(0, 1, points)
    tables = [pd.DataFrame(columns=["class", x, y, "low", "high"])]
    for target in target_classes(scores.classes, positive):
        is_positive = scores.label == target
        if 0 < is_positive.sum() < len(is_positive):
            curve = prepare_curve(scores.prob[:, target], is_positive, kind, grid)
            value = curve(np.ones((1, len(is_positive))))[0]
            drawn = bootstrap(curve, len(is_positive), replicates, seed, clusters)
            low, high, _ = percentile_interval(drawn, confidence, value)
            values = {x: grid, y: value, "low": low, "high": high}
            tables.append(pd.DataFrame({"class": scores.classes[target], **values}))
    return pd.concat(tables[1:] or tables, ignore_index=True)


def prepare_curve(
    score: np.ndarray, is_positive: np.ndarray, kind: str, grid: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights (R, N) to the heights of the curve (R, G) over the grid (G,); NaN
    where one class has no weight.

    All rows are looked up at once: each has a range of the number line of its own.
    """
    order = np.argsort(-score, kind="stable")
    # last sample of each group of equal scores
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))
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
                begin = np.zeros((len(weights), 1))  # the curve begins at (0, 0), above every score
                walk, height = (
                    np.hstack([begin, values]) for values in (false_positives, true_positives)
                )
                place = (grid * negatives).round(9) + start
                values = np.interp(place, (walk + start).ravel(), height.ravel()) / positives
            else:
                # at recall 0: where the first positive is found
                wanted = np.maximum(grid * positives, 1e-6).round(9) + start
                place = np.searchsorted((true_positives + start).ravel(), wanted.ravel()).reshape(
                    wanted.shape
                )
                place -= np.arange(len(weights))[:, None] * len(last)
                place = np.minimum(place, len(last) - 1)
                reached = np.take_along_axis(true_positives, place, axis=1)
                values = reached / (reached + np.take_along_axis(false_positives, place, axis=1))
        values[((positives == 0) | (negatives == 0))[:, 0]] = np.nan
        return values

    return curve
