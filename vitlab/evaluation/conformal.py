"""Split conformal prediction: sets of classes that contain the true class with a nominal
probability.

The score of a class is 1 - its probability (Sadinle et al., arXiv 1609.00451). The coverage needs
calibration images that are exchangeable with new ones. Here they are the validation images, which
have also chosen the epoch, so it holds approximately."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.evaluation.inference import share_interval
from vitlab.evaluation.scores import Scores, read_scores

ALPHAS = (0.05, 0.1, 0.2)


def conformal_table(predictions: pd.DataFrame, by_class: bool = True) -> pd.DataFrame:
    """Nominal and measured coverage of the sets on the test split: a row for each of ALPHAS.

    by_class: one limit a class (Mondrian, arXiv 1209.2673) instead of one for all, so that the
    coverage holds for each class. Columns nominal (1 - alpha), coverage (share of sets that contain
    the true class) with its 95 % Wilson interval coverage_low, coverage_high, size (mean number of
    classes), single (share of sets of one class), single_accuracy (how often that one is right),
    empty (share of empty sets), worst_class, worst_coverage (the class with the lowest
    coverage)."""
    test = read_scores(predictions, "test")
    rows = []
    for alpha in ALPHAS:
        inside, covered = predict_sets(predictions, alpha, by_class)
        share, low, high = share_interval(covered, test.cluster)
        by_label = pd.Series(covered).groupby(np.array(test.classes)[test.label]).mean()
        size = inside.sum(axis=1)
        rows.append(
            {
                "nominal": 1 - alpha,
                "coverage": share,
                "coverage_low": low,
                "coverage_high": high,
                "size": size.mean(),
                "single": (size == 1).mean(),
                "single_accuracy": covered[size == 1].mean() if (size == 1).any() else np.nan,
                "empty": (size == 0).mean(),
                "worst_class": by_label.idxmin(),
                "worst_coverage": by_label.min(),
            }
        )
    return pd.DataFrame(rows)


def conformal_class_table(predictions: pd.DataFrame, alpha: float = 0.1) -> pd.DataFrame:
    """Coverage of the sets with a limit for each class on the test split: a row for each true
    class.

    Columns class, calibration (its validation images), limit (lowest probability that puts it into
    a set), n (its test images), coverage with its 95 % Wilson interval coverage_low, coverage_high,
    size (mean size of their sets). A limit of 0 puts the class into every set: it has fewer than
    1 / alpha - 1 validation images. NaN without test images."""
    val, test = read_scores(predictions, "val"), read_scores(predictions, "test")
    limits = find_limits(val, alpha)
    inside, covered = predict_sets(predictions, alpha)
    rows = []
    for k, name in enumerate(test.classes):
        of_class = test.label == k
        share, low, high = share_interval(covered[of_class], test.take(of_class).cluster)
        rows.append(
            {
                "class": name,
                "calibration": (val.label == k).sum(),
                "limit": max(1 - limits[k], 0.0),
                "n": of_class.sum(),
                "coverage": share,
                "coverage_low": low,
                "coverage_high": high,
                "size": inside[of_class].sum(axis=1).mean() if of_class.any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def predict_sets(
    predictions: pd.DataFrame, alpha: float, by_class: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each class is in the set of each test image (N, C), and whether the true class is
    (N,). A set may be empty."""
    test = read_scores(predictions, "test")
    inside = 1 - test.prob <= find_limits(read_scores(predictions, "val"), alpha, by_class)
    return inside, inside[np.arange(len(inside)), test.label]


def find_limits(val: Scores, alpha: float, by_class: bool = True) -> np.ndarray:
    """Largest score of each class that is let into a set (C,); infinite: always let in.

    A set misses the true class with probability alpha at most, over all images, or with `by_class`
    over those of each class."""
    score = 1 - val.label_prob
    if not by_class:
        return np.full(len(val.classes), conformal_quantile(score, alpha))
    limits = [conformal_quantile(score[val.label == k], alpha) for k in range(len(val.classes))]
    return np.array(limits)


def conformal_quantile(score: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; infinite if that is more than n."""
    rank = int(np.ceil((len(score) + 1) * (1 - alpha) - 1e-9))  # 1e-9: whole numbers stay whole
    return float(np.sort(score)[rank - 1]) if rank <= len(score) else np.inf
