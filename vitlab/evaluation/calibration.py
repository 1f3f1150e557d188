"""Calibration: do the predicted probabilities match the observed frequencies?

Reliability in bins, expected calibration error (Guo et al., arXiv 1706.04599), Brier score,
likelihood, and recalibration by a map that is fitted on the validation split.

scikit-learn's CalibratedClassifierCV has temperature scaling and isotonic regression, too, but
needs an estimator that predicts, at least five images of each class, and has no vector scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import KFold

from vitlab.errors import UserError
from vitlab.evaluation.inference import (
    CHUNK,
    bootstrap,
    effective_count,
    percentile_interval,
    wilson_interval,
)
from vitlab.evaluation.scores import Scores, read_scores, select_split
from vitlab.registry import unknown
from vitlab.schema import check_predictions

BINS = 10  # of equal width on 0..1
CALIBRATION_METRICS = ("ece", "classwise_ece", "brier", "nll")
# Temperatures lie between 1/20 and 20, weights up to 20: without mistakes on validation the best
# fit is at infinity.
LIMIT = 20.0
MIN_LOGIT = -1000.0  # of a class with probability 0: predictions must be finite
FOLDS = 5  # of the validation images, to compare the methods
Transform = Callable[[np.ndarray], np.ndarray]  # logits (N, C) -> calibrated logits (N, C)


def reliability_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Confidence against accuracy in BINS bins of the test images: columns bin, start, end, n,
    confidence, accuracy, low, high.

    confidence: mean probability of the predicted class. accuracy: share of correct predictions;
    low, high: its 95 % Wilson interval, in which the images of a cluster count as about one
    (`effective_count`). A bin holds start < p <= end; an empty one has n = 0 and NaN."""
    scores = read_scores(predictions, "test")
    place = assign_bins(scores.confidence)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, scores.confidence, minlength=BINS) / count
        accuracy = np.bincount(place, scores.right, minlength=BINS) / count
    low, high = wilson_interval(accuracy, effective_count(place, BINS, scores.cluster))
    edges = np.linspace(0, 1, BINS + 1)
    table = {"bin": range(BINS), "start": edges[:-1], "end": edges[1:], "n": count}
    table |= {"confidence": confidence, "accuracy": accuracy, "low": low, "high": high}
    return pd.DataFrame(table)


def calibration_table(predictions: pd.DataFrame, replicates: int = 1000) -> pd.DataFrame:
    """CALIBRATION_METRICS of the test images beside what calibrated probabilities would give.

    Columns metric, value, low, high, calibrated, calibrated_low, calibrated_high. ece: of the
    predicted class. classwise_ece: mean over the classes. brier: sum over the classes of squared
    distances from the label (Brier, 1950: 0 to 2; for two classes twice the binary score). nll:
    mean negative log-likelihood in nats, infinite if a label has probability 0. calibrated,
    calibrated_low, calibrated_high: mean and 95 % range of the values when labels are drawn from
    these very probabilities (those of a cluster together); an error within the range is no evidence
    of miscalibration. low, high: 95 % bootstrap interval of brier and nll; a resample inflates the
    calibration errors."""
    scores = read_scores(predictions, "test")
    once = np.ones((1, len(scores.label)))
    value = measure_calibration(scores, once)[0]
    drawn = bootstrap(
        lambda weights: measure_calibration(scores, weights),
        len(scores.label),
        replicates,
        cluster=scores.cluster,
    )
    known = np.isin(CALIBRATION_METRICS, ["brier", "nll"]) & np.isfinite(value)
    drawn, estimate = np.where(known, drawn, np.nan), np.where(known, value, np.nan)
    low, high, _ = percentile_interval(drawn, estimate, scores.units)
    simulated = [
        measure_calibration(scores, once, label) for label in _draw_labels(scores, replicates)
    ]
    simulated = np.concatenate([*simulated, np.empty((0, len(CALIBRATION_METRICS)))])
    calibrated_low, calibrated_high, _ = percentile_interval(simulated)
    return pd.DataFrame(
        {
            "metric": CALIBRATION_METRICS,
            "value": value,
            "low": low,
            "high": high,
            "calibrated": simulated.mean(axis=0) if replicates else np.nan,
            "calibrated_low": calibrated_low,
            "calibrated_high": calibrated_high,
        }
    )


def measure_calibration(
    scores: Scores, weights: np.ndarray, label: np.ndarray | None = None
) -> np.ndarray:
    """CALIBRATION_METRICS for each row of weights (R, N), or of other labels (R, N): an array
    (R, 4)."""
    label = scores.label if label is None else label
    total = weights.sum(axis=1)
    confidence_error = binned_error(scores.confidence, scores.pred == label, weights)
    errors, brier = [], 0.0
    for k, prob in enumerate(scores.prob.T):
        errors.append(binned_error(prob, label == k, weights))
        brier = brier + (weights * (prob - (label == k)) ** 2).sum(axis=1) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        log_prob = np.log(scores.prob[np.arange(len(scores.prob)), label])
        nll = (weights * -log_prob).sum(axis=1) / total
    return np.column_stack([confidence_error, np.mean(errors, axis=0), brier, nll])


def expected_calibration_error(predictions: pd.DataFrame) -> float:
    """Mean distance of confidence and accuracy over the bins of `reliability_table`, weighted by
    their size: 0 is best."""
    scores = read_scores(predictions, "test")
    once = np.ones((1, len(scores.label)))
    return float(binned_error(scores.confidence, scores.right, once)[0])


def assign_bins(probability: np.ndarray) -> np.ndarray:
    """The bin (N,) of each probability, 0 to BINS - 1."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability, side="left")


def binned_error(probability: np.ndarray, hit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error (R,) for each row of weights (R, N), or of hit (R, N)."""
    in_bin = np.eye(BINS)[assign_bins(probability)]  # (N, B)
    gap = (weights * (probability - hit)) @ in_bin  # (R, B) size times distance
    return np.abs(gap).sum(axis=1) / weights.sum(axis=1)


def _draw_labels(scores: Scores, replicates: int) -> Iterator[np.ndarray]:
    """Labels (r, N), `replicates` rows in all, drawn from the probabilities of the scores, with one
    random number for each image or cluster."""
    count = len(scores.label)
    cluster = np.arange(count) if scores.cluster is None else scores.cluster
    generator, steps = np.random.default_rng(0), np.cumsum(scores.prob, axis=1)[:, :-1]
    chunk = max(1, CHUNK // count)
    for start in range(0, replicates, chunk):
        rows = min(chunk, replicates - start)
        drawn = generator.random((rows, cluster.max() + 1))[:, cluster]
        yield (drawn[:, :, None] > steps).sum(axis=2)


def calibrate(predictions: pd.DataFrame, method: str = "temperature") -> pd.DataFrame:
    """The predictions with new logits, probabilities and `pred` in every split.

    method: one of METHODS, fitted on the validation split. temperature: all logits are divided by
    one number, which changes no prediction (arXiv 1706.04599). vector: each logit is multiplied by
    a weight of its class and a bias is added (same source; with two classes this is Platt scaling).
    isotonic: a rising step function of the probability of each class, one against the rest,
    normalised (Zadrozny and Elkan, 2002). The new logits start from the logarithms of the
    probabilities."""
    if method not in METHODS:
        raise UserError(unknown("method", method, list(METHODS)))
    return _apply(predictions, METHODS[method](read_scores(predictions, "val")))


def recalibration_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Calibration of the test split as trained (`none`) and after each method: columns method,
    val_brier, CALIBRATION_METRICS, accuracy, note (the temperature).

    val_brier: five-fold cross-validated Brier score on validation, by which to choose; the test
    columns are for reporting only."""
    val, rows = select_split(predictions, "val"), []
    for method in ("none", *METHODS):
        calibrated = predictions if method == "none" else calibrate(predictions, method)
        scores = read_scores(calibrated, "test")
        measured = measure_calibration(scores, np.ones((1, len(scores.label))))[0]
        row = {"method": method, "val_brier": _cross_validate(val, method)}
        row |= zip(CALIBRATION_METRICS, measured, strict=True)
        rows.append(row | {"accuracy": scores.right.mean(), "note": ""})
    table = pd.DataFrame(rows)
    temperature = find_temperature(read_scores(predictions, "val"))
    table.loc[table["method"] == "temperature", "note"] = f"T = {temperature:.3f}"
    return table


def _cross_validate(val: pd.DataFrame, method: str) -> float:
    """Brier score of the validation images, each calibrated by a fit to the other folds."""
    tables = []
    for rest, fold in KFold(FOLDS, shuffle=True, random_state=0).split(val):
        table = val.iloc[fold]
        if method != "none":
            table = _apply(table, METHODS[method](read_scores(val.iloc[rest], "val")))
        tables.append(table)
    scores = read_scores(pd.concat(tables), "val")
    return float(measure_calibration(scores, np.ones((1, len(val))))[0, 2])


def find_temperature(scores: Scores) -> float:
    """The number that all logits are divided by, of the highest likelihood."""
    logits = _read_logits(scores.prob)

    def loss(log_temperature):
        return _mean_nll(logits / np.exp(log_temperature), scores.label)

    bounds = (-np.log(LIMIT), np.log(LIMIT))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    return float(np.exp(found.x))


def _fit_temperature(scores: Scores) -> Transform:
    temperature = find_temperature(scores)
    return lambda logits: logits / temperature


def _fit_vector(scores: Scores) -> Transform:
    logits, count = _center(_read_logits(scores.prob)), len(scores.classes)
    one_hot = np.eye(count)[scores.label]

    def loss(parameters):
        weight, bias = np.split(parameters, 2)
        scaled = logits * weight + bias
        slope = (softmax(scaled, axis=1) - one_hot) / len(logits)
        gradient = np.concatenate([(slope * logits).sum(axis=0), slope.sum(axis=0)])
        return _mean_nll(scaled, scores.label), gradient

    start = np.repeat([1.0, 0.0], count)
    bounds = [(0, LIMIT)] * count + [(-LIMIT, LIMIT)] * count
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    weight, bias = np.split(found.x, 2)
    return lambda logits: _center(logits) * weight + bias


def _fit_isotonic(scores: Scores) -> Transform:
    count = len(scores.classes)
    targets = [1] if count == 2 else range(count)
    steps = [
        IsotonicRegression(out_of_bounds="clip").fit(scores.prob[:, k], scores.label == k)
        for k in targets
    ]

    def transform(logits):
        prob = softmax(logits, axis=1)
        risen = np.column_stack(
            [step.predict(prob[:, k]) for k, step in zip(targets, steps, strict=True)]
        )
        if count == 2:
            risen = np.column_stack([1 - risen, risen])
        risen[risen.sum(axis=1) == 0] = 1  # all classes impossible: all equally probable
        return _read_logits(risen)

    return transform


METHODS = {"temperature": _fit_temperature, "vector": _fit_vector, "isotonic": _fit_isotonic}


def _read_logits(prob: np.ndarray) -> np.ndarray:
    """Logits (N, C) whose softmax is proportional to prob (N, C)."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(prob), MIN_LOGIT)


def _center(logits: np.ndarray) -> np.ndarray:
    """Softmax does not depend on the mean of the logits."""
    return logits - logits.mean(axis=1, keepdims=True)


def _mean_nll(logits: np.ndarray, label: np.ndarray) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(label)), label].mean())


def _apply(predictions: pd.DataFrame, transform: Transform) -> pd.DataFrame:
    """New logits, their softmax, and the most probable class; among equals, the one that was most
    probable before."""
    classes = check_predictions(predictions)
    probs = [f"prob_{name}" for name in classes]
    before = predictions[probs].to_numpy(float)
    logits = transform(_read_logits(before))
    best = logits >= logits.max(axis=1, keepdims=True)
    table = predictions.copy()
    table[[f"logit_{name}" for name in classes]] = logits
    table[probs] = softmax(logits, axis=1)
    table["pred"] = np.array(classes)[np.where(best, before, -1).argmax(axis=1)]
    return table
