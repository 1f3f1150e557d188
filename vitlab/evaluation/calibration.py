"""Do the probabilities mean what they say? Reliability in bins, expected calibration error (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.evaluation.scores import read_scores, target_classes

Z95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


def reliability_table(
    predictions: pd.DataFrame, bins: int = 10, split: str = "test", positive: str | None = None
) -> pd.DataFrame:
    """Confidence against accuracy in equal-width bins: columns bin, start, end, n, confidence, accuracy, low, high.

    confidence: mean probability of the predicted class; accuracy: share of right answers; low, high: its 95 % Wilson interval.
    With `positive`, confidence is the mean probability of that class and accuracy the share of samples that are of it.
    A bin holds start < p <= end (the first one p = 0 too); an empty bin has n = 0 and NaN.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    scores = read_scores(predictions, split)
    if positive is None:
        probability = np.take_along_axis(scores.prob, scores.pred[:, None], axis=1)[:, 0]
        hit = scores.pred == scores.label
    else:
        target = target_classes(scores.classes, positive)[0]
        probability, hit = scores.prob[:, target], scores.label == target
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, probability, minlength=bins) / count
        accuracy = np.bincount(place, hit, minlength=bins) / count
    low, high = wilson_interval(accuracy, count)
    table = {"bin": range(bins), "start": edges[:-1], "end": edges[1:], "n": count}
    return pd.DataFrame({**table, "confidence": confidence, "accuracy": accuracy, "low": low, "high": high})


def expected_calibration_error(
    predictions: pd.DataFrame, bins: int = 10, split: str = "test", positive: str | None = None
) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability_table`, weighted by their size: 0 is best."""
    table = reliability_table(predictions, bins, split, positive)
    distance = (table["accuracy"] - table["confidence"]).abs()
    return float((distance * table["n"]).sum() / table["n"].sum())


def wilson_interval(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a share of `count` (Wilson, 1927): within 0..1, fair for small counts, NaN for none."""
    count = np.where(count > 0, count, np.nan)
    middle = share + Z95**2 / (2 * count)
    half = Z95 * np.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return np.maximum((middle - half) / scale, 0.0), np.minimum((middle + half) / scale, 1.0)  # rounding may leave 0..1 by 1e-17
