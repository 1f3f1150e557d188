"""Do the probabilities mean what they say? Reliability in bins, expected calibration error (Guo et
al., arXiv 1706.04599).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import t

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import effective_count, read_clusters
from vitlab.evaluation.scores import Scores, read_scores, select_split, target_classes
from vitlab.registry import unknown

STRATEGIES = ("width", "mass")


def reliability_table(
    predictions: pd.DataFrame,
    bins: int = 10,
    split: str = "test",
    positive: str | None = None,
    strategy: str = "width",
    cluster=None,
) -> pd.DataFrame:
    """Confidence against accuracy in bins: columns bin, start, end, n, confidence, accuracy, low,
    high.

    confidence: mean probability of the predicted class; accuracy: share of right answers; low,
    high: its 95 % Wilson interval. With `positive`, confidence is the mean probability of that
    class and accuracy the share of samples that are of it. strategy: bins of equal `width` on 0..1,
    or of equal `mass` (as many samples in each; equal probabilities stay together, so there may be
    fewer bins). A bin holds start < p <= end (the first one p = start too); an empty bin has n = 0
    and NaN. cluster: as in `metrics_table`; images of one cluster then count as about one
    (`effective_count`)."""
    probability, hit = confidence_of(read_scores(predictions, split), positive)
    edges, place = assign_bins(probability, bins, strategy)
    bins = len(edges) - 1
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, probability, minlength=bins) / count
        accuracy = np.bincount(place, hit, minlength=bins) / count
    clusters = read_clusters(select_split(predictions, split), cluster)
    low, high = wilson_interval(accuracy, effective_count(place, bins, clusters))
    table = {"bin": range(bins), "start": edges[:-1], "end": edges[1:], "n": count}
    return pd.DataFrame(
        {**table, "confidence": confidence, "accuracy": accuracy, "low": low, "high": high}
    )


def expected_calibration_error(
    predictions: pd.DataFrame,
    bins: int = 10,
    split: str = "test",
    positive: str | None = None,
    strategy: str = "width",
) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability_table`, weighted by
    their size: 0 is best.
    """
    table = reliability_table(predictions, bins, split, positive, strategy)
    distance = (table["accuracy"] - table["confidence"]).abs()
    return float((distance * table["n"]).sum() / table["n"].sum())


def confidence_of(scores: Scores, positive: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Probability (N,) of the predicted class and whether it is right (N,); or of `positive`, and
    whether the sample is of it.
    """
    if positive is None:
        return (
            np.take_along_axis(scores.prob, scores.pred[:, None], axis=1)[:, 0],
            scores.pred == scores.label,
        )
    target = target_classes(scores.classes, positive)[0]
    return scores.prob[:, target], scores.label == target


def assign_bins(probability: np.ndarray, bins: int, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges (B + 1,) and the bin of each probability (N,); B is at most `bins`."""
    if bins < 1:
        raise UserError(f"bins must be at least 1, got {bins}")
    if strategy not in STRATEGIES:
        raise UserError(unknown("strategy", strategy, list(STRATEGIES)))
    edges = np.linspace(0, 1, bins + 1)
    if strategy == "mass":
        edges = np.unique(np.quantile(probability, edges))
        # one value only: one bin without width
        edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    return edges, np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, len(edges) - 2)


def binned_error(
    probability: np.ndarray, hit: np.ndarray, place: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Expected calibration error for each row of weights (R, N): an array (R,)."""
    in_bin = np.eye(place.max() + 1)[place]  # (N, B)
    gap = weights @ (in_bin * (probability - hit)[:, None])  # (R, B) size times distance
    return np.abs(gap).sum(axis=1) / weights.sum(axis=1)


def wilson_interval(share, count) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a share of `count` (Wilson, 1927): within 0..1, fair for small counts,
    NaN for none.
    """
    from statsmodels.stats.proportion import proportion_confint  # takes a second to import

    count = np.where(np.asarray(count) > 0, count, np.nan)
    low, high = proportion_confint(np.asarray(share) * count, count, method="wilson")
    # rounding may leave 0..1, or the share, by 1e-17
    return np.clip(low, 0, share), np.clip(high, share, 1)


def describe_confidence(predictions: pd.DataFrame, split: str = "test", cluster=None) -> str:
    """One sentence: is the model right as often as it says, more often (under-confident) or less
    often (over-confident)?

    By a 95 % t interval of accuracy less confidence over the images, or with clusters over as many
    as they are worth."""
    confidence, right = confidence_of(read_scores(predictions, split))
    clusters = read_clusters(select_split(predictions, split), cluster)
    count = effective_count(np.zeros(len(right), dtype=int), 1, clusters)[0]
    gap = right - confidence
    half = t.ppf(0.975, count - 1) * gap.std(ddof=1) / np.sqrt(count) if count > 1 else np.inf
    text = (
        f"On average the model gives its answers a probability of {confidence.mean():.1%}, and"
        f" {right.mean():.1%} are right. "
    )
    if abs(gap.mean()) <= half:
        return text + f"{len(right)} images do not show whether the two differ."
    if gap.mean() > 0:
        return text + "On the whole it is under-confident: it is right more often than it says."
    return text + "On the whole it is over-confident: it is right less often than it says."
