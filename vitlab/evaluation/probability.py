"""Proper scores of the probabilities (Brier, likelihood) beside their calibration errors, with
bootstrap intervals.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.evaluation.bootstrap import draw_counts, percentile_interval, read_clusters
from vitlab.evaluation.calibration import assign_bins, binned_error, confidence_of
from vitlab.evaluation.scores import Scores, read_scores, select_split

BRIER_PARTS = ("brier", "reliability", "resolution", "uncertainty", "within_bins")
CALIBRATION_METRICS = ("ece", "ece_mass", "classwise_ece", *BRIER_PARTS, "nll")
INTERVALS = ("brier", "uncertainty", "nll")  # plain means or nearly; a resample inflates all others


def calibration_table(
    predictions: pd.DataFrame,
    split: str = "test",
    bins: int = 10,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster=None,
) -> pd.DataFrame:
    """CALIBRATION_METRICS beside what honest probabilities would give.

    Columns metric, value, low, high, calibrated, calibrated_low, calibrated_high, note.

    ece, ece_mass: of the predicted class, in bins of equal width and equal mass; classwise_ece:
    mean over classes, equal width. brier: sum of squared distances of all class probabilities from
    the label (Brier, 1950: 0 to 2, for two classes twice the binary score); its parts as in
    `brier_table`, summed over classes. nll: mean negative log-likelihood in nats. calibrated,
    calibrated_low, calibrated_high: mean and range of the values when labels are drawn from these
    very probabilities. An ECE of few images is never 0, even for honest probabilities; in the range
    it shows no fault. low, high: bootstrap interval, of brier, uncertainty and nll only. The
    replicates of the others overshoot them: no percentile interval of an ECE holds the truth where
    probabilities are honest, and reversed ones do so in 72 % of cases. A label whose probability is
    0 makes nll infinite; it has no interval then. cluster: as in `metrics_table`; labels of one
    cluster are drawn together, as alike as their probabilities allow."""
    scores = read_scores(predictions, split)
    clusters = read_clusters(select_split(predictions, split), cluster)
    num_samples = len(scores.label)
    weights = [np.ones((1, num_samples)), *draw_counts(num_samples, replicates, seed, clusters)]
    measured = np.concatenate([measure_calibration(scores, part, bins) for part in weights])
    value = np.where(
        np.isin(CALIBRATION_METRICS, INTERVALS) & np.isfinite(measured[0]), measured[0], np.nan
    )
    low, high, _ = percentile_interval(measured[1:] + 0 * value, confidence, value)
    impossible = int((_label_probability(scores) == 0).sum())
    notes = dict.fromkeys(CALIBRATION_METRICS, "") | {
        "nll": f"{impossible} with a label of probability 0" * bool(impossible)
    }
    drawn = [
        measure_calibration(one, weights[0], bins)[0]
        for one in _draw_labels(scores, replicates, seed, clusters)
    ]
    drawn = np.array(drawn).reshape(-1, len(CALIBRATION_METRICS))
    calibrated = drawn.mean(axis=0) if replicates else np.nan
    least, most, _ = percentile_interval(drawn, confidence)
    table = {
        "metric": CALIBRATION_METRICS,
        "value": measured[0],
        "low": low,
        "high": high,
        "calibrated": calibrated,
    }
    return pd.DataFrame(
        {**table, "calibrated_low": least, "calibrated_high": most, "note": list(notes.values())}
    )


def brier_table(predictions: pd.DataFrame, split: str = "test", bins: int = 10) -> pd.DataFrame:
    """The Brier score of each class, one against the rest, and their sum, in Murphy's parts (1973).

    Columns class, brier, reliability, resolution, uncertainty, within_bins; brier is the sum
    reliability - resolution + uncertainty + within_bins. reliability: squared distance of
    confidence and share over bins of equal width (0 is best); resolution: how far the shares of the
    bins lie from the share over all (more is better); uncertainty: the score of always saying that
    share; within_bins: what the bins hide, as probabilities differ inside one (Stephenson et al.,
    2008)."""
    scores = read_scores(predictions, split)
    once = np.ones((1, len(scores.label)))
    parts = np.array(
        [
            _split_brier(scores.prob[:, k], scores.label == k, once, bins)[0]
            for k in range(len(scores.classes))
        ]
    )
    table = pd.DataFrame(np.vstack([parts, parts.sum(axis=0)]), columns=list(BRIER_PARTS))
    table.insert(0, "class", [*scores.classes, "sum"])
    return table


def measure_calibration(scores: Scores, weights: np.ndarray, bins: int) -> np.ndarray:
    """CALIBRATION_METRICS for each row of weights (R, N): an array (R, 9). Bins are those of the
    whole split.
    """
    probability, hit = confidence_of(scores)
    errors = [
        binned_error(probability, hit, assign_bins(probability, bins, how)[1], weights)
        for how in ("width", "mass")
    ]
    classes = range(len(scores.classes))
    one_hot = scores.label[:, None] == np.array(classes)  # (N, C)
    places = [assign_bins(scores.prob[:, k], bins, "width")[1] for k in classes]
    classwise = np.mean(
        [binned_error(scores.prob[:, k], one_hot[:, k], places[k], weights) for k in classes],
        axis=0,
    )
    # (R, 5)
    brier = np.sum(
        [_split_brier(scores.prob[:, k], one_hot[:, k], weights, bins) for k in classes], axis=0
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        nll = weights @ -np.log(_label_probability(scores)) / weights.sum(axis=1)
    return np.column_stack([*errors, classwise, brier, nll])


def _split_brier(
    probability: np.ndarray, hit: np.ndarray, weights: np.ndarray, bins: int
) -> np.ndarray:
    """BRIER_PARTS of one class for each row of weights (R, N): an array (R, 5)."""
    in_bin = np.eye(bins)[assign_bins(probability, bins, "width")[1]]  # (N, B)
    total = weights.sum(axis=1)
    size = weights @ in_bin  # (R, B)
    filled = np.maximum(size, 1e-300)
    mean, share = (
        weights @ (in_bin * probability[:, None]) / filled,
        weights @ (in_bin * hit[:, None]) / filled,
    )
    overall = (weights @ hit / total)[:, None]
    reliability = (size * (mean - share) ** 2).sum(axis=1) / total
    resolution = (size * (share - overall) ** 2).sum(axis=1) / total
    uncertainty = (overall * (1 - overall))[:, 0]
    brier = weights @ (probability - hit) ** 2 / total
    return np.column_stack(
        [
            brier,
            reliability,
            resolution,
            uncertainty,
            brier - (reliability - resolution + uncertainty),
        ]
    )


def _label_probability(scores: Scores) -> np.ndarray:
    return np.take_along_axis(scores.prob, scores.label[:, None], axis=1)[:, 0]


def _draw_labels(scores: Scores, replicates: int, seed: int, cluster: np.ndarray | None = None):
    """The scores with labels drawn from their own probabilities, by one random number for each
    sample or cluster.
    """
    cluster = np.arange(len(scores.label)) if cluster is None else cluster
    generator = np.random.default_rng(seed)
    steps = np.cumsum(scores.prob, axis=1)[:, :-1]
    for _ in range(replicates):
        label = (generator.random((cluster.max() + 1, 1))[cluster] > steps).sum(axis=1)
        yield Scores(scores.classes, label, scores.pred, scores.prob)
