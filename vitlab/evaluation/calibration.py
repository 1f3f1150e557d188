"""Do the probabilities mean what they say? Reliability in bins, expected calibration error (Guo et
al., arXiv 1706.04599), Brier score and likelihood."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from vitlab.evaluation.bootstrap import (
    draw_counts,
    effective_count,
    percentile_interval,
    read_clusters,
)
from vitlab.evaluation.scores import Scores, read_scores, select_split

BINS = 10  # of equal width on 0..1
CALIBRATION_METRICS = ("ece", "classwise_ece", "brier", "nll")
MEANS = ("brier", "nll")  # have bootstrap intervals; a resample inflates the calibration errors


def reliability_table(predictions: pd.DataFrame, cluster=None) -> pd.DataFrame:
    """Confidence against accuracy in BINS bins of the test images: columns bin, start, end, n,
    confidence, accuracy, low, high.

    confidence: mean probability of the predicted class. accuracy: share of right answers; low,
    high: its 95 % Wilson interval, in which the images of a cluster count as about one
    (`effective_count`). A bin holds start < p <= end; an empty one has n = 0 and NaN."""
    confidence, right = confidence_of(read_scores(predictions, "test"))
    place = assign_bins(confidence)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, confidence, minlength=BINS) / count
        accuracy = np.bincount(place, right, minlength=BINS) / count
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    low, high = wilson_interval(accuracy, effective_count(place, BINS, clusters))
    edges = np.linspace(0, 1, BINS + 1)
    table = {"bin": range(BINS), "start": edges[:-1], "end": edges[1:], "n": count}
    return pd.DataFrame(
        {**table, "confidence": mean, "accuracy": accuracy, "low": low, "high": high}
    )


def calibration_table(
    predictions: pd.DataFrame, replicates: int = 1000, cluster=None
) -> pd.DataFrame:
    """CALIBRATION_METRICS of the test images beside what honest probabilities would give.

    Columns metric, value, low, high, calibrated, calibrated_low, calibrated_high, note. ece: of the
    predicted class. classwise_ece: mean over the classes. brier: sum over the classes of squared
    distances from the label (Brier, 1950: 0 to 2; for two classes twice the binary score). nll:
    mean negative log-likelihood in nats. calibrated, calibrated_low, calibrated_high: mean and 95 %
    range of the values when labels are drawn from these very probabilities; an error within the
    range shows no fault. low, high: 95 % bootstrap interval of brier and nll. A label with
    probability 0 makes nll infinite. cluster: as in `metrics_table`; labels of one cluster are
    drawn together."""
    scores = read_scores(predictions, "test")
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    count = len(scores.label)
    weights = [np.ones((1, count)), *draw_counts(count, replicates, cluster=clusters)]
    measured = np.concatenate([measure_calibration(scores, part) for part in weights])
    value = measured[0]
    known = np.isin(CALIBRATION_METRICS, MEANS) & np.isfinite(value)
    low, high, _ = percentile_interval(
        np.where(known, measured[1:], np.nan), estimate=np.where(known, value, np.nan)
    )
    drawn = [
        measure_calibration(honest, weights[0])[0]
        for honest in _draw_labels(scores, replicates, clusters)
    ]
    drawn = np.array(drawn).reshape(-1, len(CALIBRATION_METRICS))
    least, most, _ = percentile_interval(drawn)
    impossible = int((_label_probability(scores) == 0).sum())
    table = pd.DataFrame(
        {
            "metric": CALIBRATION_METRICS,
            "value": value,
            "low": low,
            "high": high,
            "calibrated": drawn.mean(axis=0) if replicates else np.nan,
            "calibrated_low": least,
            "calibrated_high": most,
            "note": "",
        }
    )
    if impossible:
        table.loc[table["metric"] == "nll", "note"] = f"{impossible} with a label of probability 0"
    return table


def measure_calibration(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """CALIBRATION_METRICS for each row of weights (R, N): an array (R, 4)."""
    confidence, right = confidence_of(scores)
    classes = range(len(scores.classes))
    one_hot = scores.label[:, None] == np.array(classes)  # (N, C)
    errors = [binned_error(scores.prob[:, k], one_hot[:, k], weights) for k in classes]
    total = weights.sum(axis=1)
    brier = weights @ ((scores.prob - one_hot) ** 2).sum(axis=1) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        nll = weights @ -np.log(_label_probability(scores)) / total
    ece = binned_error(confidence, right, weights)
    return np.column_stack([ece, np.mean(errors, axis=0), brier, nll])


def expected_calibration_error(predictions: pd.DataFrame) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability_table`, weighted by
    their size: 0 is best."""
    confidence, right = confidence_of(read_scores(predictions, "test"))
    return float(binned_error(confidence, right, np.ones((1, len(right))))[0])


def confidence_of(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Probability (N,) of the predicted class, and whether it is right (N,)."""
    confidence = np.take_along_axis(scores.prob, scores.pred[:, None], axis=1)[:, 0]
    return confidence, scores.pred == scores.label


def assign_bins(probability: np.ndarray) -> np.ndarray:
    """The bin (N,) of each probability, 0 to BINS - 1."""
    edges = np.linspace(0, 1, BINS + 1)
    return np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, BINS - 1)


def binned_error(probability: np.ndarray, hit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error for each row of weights (R, N): an array (R,)."""
    in_bin = np.eye(BINS)[assign_bins(probability)]  # (N, B)
    gap = weights @ (in_bin * (probability - hit)[:, None])  # (R, B) size times distance
    return np.abs(gap).sum(axis=1) / weights.sum(axis=1)


def wilson_interval(share, count) -> tuple[np.ndarray, np.ndarray]:
    """95 % score interval of a share of `count` (Wilson, 1927): within 0..1, fair for small counts,
    NaN for a count of 0."""
    from statsmodels.stats.proportion import proportion_confint  # takes a second to import

    count = np.where(np.asarray(count) > 0, count, np.nan)
    low, high = proportion_confint(np.asarray(share) * count, count, method="wilson")
    return np.clip(low, 0, share), np.clip(high, share, 1)  # rounding can leave 0..1 by 1e-17


def _label_probability(scores: Scores) -> np.ndarray:
    return np.take_along_axis(scores.prob, scores.label[:, None], axis=1)[:, 0]


def _draw_labels(scores: Scores, replicates: int, cluster: np.ndarray | None) -> Iterator[Scores]:
    """The scores with labels drawn from their own probabilities, with one random number for each
    image or cluster."""
    cluster = np.arange(len(scores.label)) if cluster is None else cluster
    generator = np.random.default_rng(0)
    steps = np.cumsum(scores.prob, axis=1)[:, :-1]
    for _ in range(replicates):
        label = (generator.random((cluster.max() + 1, 1))[cluster] > steps).sum(axis=1)
        yield Scores(scores.classes, label, scores.pred, scores.prob)
