"""Probabilities made honest after training, by a map that is fitted on the validation split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import KFold

from vitlab.errors import UserError
from vitlab.evaluation.calibration import CALIBRATION_METRICS, measure_calibration
from vitlab.evaluation.scores import read_scores
from vitlab.registry import unknown
from vitlab.schema import check_predictions

# Temperatures lie between 1/20 and 20, weights up to 20: without mistakes on validation the best
# fit is at infinity.
LIMIT = 20.0
IMPOSSIBLE = -1000.0  # the logit of a class with probability 0: predictions must be finite
FOLDS = 5  # of the validation images, to compare the methods
Transform = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (logits, prob) -> new logits, (N, C)


def calibrate(predictions: pd.DataFrame, method: str = "temperature") -> pd.DataFrame:
    """The predictions with new logits, probabilities and `pred` in every split.

    temperature: all logits divided by one number, which changes no answer (arXiv 1706.04599).
    vector: each logit, minus their mean, times a weight plus a bias of its class (same source; with
    two classes this is Platt's scaling). isotonic: a rising step function of the probability of
    each class, one against the rest, normalised (Zadrozny and Elkan, 2002). Raises UserError where
    validation lacks a class that the method needs."""
    transform, _ = _fit(predictions, method)
    return _replace(predictions, transform)


def recalibration_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Calibration of the test split before and after: a row for `none` and for each method.

    Columns method, val_brier, CALIBRATION_METRICS, accuracy, note (what was fitted, or why it could
    not be; the rest is then NaN). val_brier: five-fold cross-validated Brier score on validation,
    by which to choose; the test columns are for reporting only."""
    rows = []
    for method in ("none", *METHODS):
        row = {"method": method, "note": ""}
        try:
            transform, row["note"] = _fit(predictions, method)
        except _CannotFit as reason:
            rows.append({**row, "note": str(reason)})
            continue
        row["val_brier"] = _cross_validate(predictions, method)
        row |= _measure(_replace(predictions, transform), "test")
        if np.isinf(row["nll"]) and method != "none":
            row["note"] += "; some labels get probability 0"
        rows.append(row)
    return pd.DataFrame(rows)[["method", "val_brier", *CALIBRATION_METRICS, "accuracy", "note"]]


def _cross_validate(predictions: pd.DataFrame, method: str) -> float:
    """Brier score of the validation images, each mapped by a fit to the other folds; NaN where a
    fold cannot be fitted."""
    val = predictions[predictions["split"] == "val"]
    if len(val) < FOLDS:
        return np.nan
    tables = []
    for rest, fold in KFold(FOLDS, shuffle=True, random_state=0).split(val):
        try:
            transform, _ = _fit(val.iloc[rest], method)
        except _CannotFit:
            return np.nan
        tables.append(_replace(val.iloc[fold], transform))
    return _measure(pd.concat(tables), "val")["brier"]


class _CannotFit(UserError):
    """The validation split does not determine the map."""


def _fit(predictions: pd.DataFrame, method: str) -> tuple[Transform, str]:
    """The map fitted on validation, and a note."""
    if method == "none":
        return lambda logits, prob: logits, ""
    if method not in METHODS:
        raise UserError(unknown("method", method, list(METHODS)))
    scores = read_scores(predictions, "val")
    logits, prob = _read_arrays(predictions[predictions["split"] == "val"], scores.classes)
    missing = [name for k, name in enumerate(scores.classes) if k not in scores.label]
    if missing and method != "temperature":
        raise _CannotFit(
            f"{method} needs images of every class in validation, which has none of"
            f" {', '.join(missing)}"
        )
    return METHODS[method](logits, prob, scores.label)


def _fit_temperature(
    logits: np.ndarray, prob: np.ndarray, label: np.ndarray
) -> tuple[Transform, str]:
    def loss(log_temperature):
        return _mean_nll(logits / np.exp(log_temperature), label)

    reach = np.log(LIMIT)
    found = minimize_scalar(
        loss, bounds=(-reach, reach), method="bounded", options={"xatol": 1e-12}
    )
    temperature = float(np.exp(found.x))
    note = f"T = {temperature:.3f}" + (", the limit" if abs(found.x) > reach - 1e-3 else "")
    return lambda logits, prob: logits / temperature, note


def _fit_vector(logits: np.ndarray, prob: np.ndarray, label: np.ndarray) -> tuple[Transform, str]:
    count = logits.shape[1]
    centred = logits - logits.mean(axis=1, keepdims=True)  # softmax does not depend on the mean
    one_hot = np.eye(count)[label]

    def loss(parameters):
        weight, bias = np.split(parameters, 2)
        scaled = centred * weight + bias
        slope = (softmax(scaled, axis=1) - one_hot) / len(label)
        gradient = np.concatenate([(slope * centred).sum(axis=0), slope.sum(axis=0)])
        return _mean_nll(scaled, label), gradient

    start = np.repeat([1.0, 0.0], count)
    bounds = [(0, LIMIT)] * count + [(-LIMIT, LIMIT)] * count
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    weight, bias = np.split(found.x, 2)
    at_limit = (weight >= LIMIT).any() or (np.abs(bias) >= LIMIT).any()
    note = f"weights {_join(weight)}; biases {_join(bias)}" + ("; at the limit" if at_limit else "")
    return lambda logits, prob: (logits - logits.mean(axis=1, keepdims=True)) * weight + bias, note


def _fit_isotonic(logits: np.ndarray, prob: np.ndarray, label: np.ndarray) -> tuple[Transform, str]:
    two = prob.shape[1] == 2
    targets = [1] if two else range(prob.shape[1])
    steps = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(prob[:, k], label == k)
        for k in targets
    ]

    def transform(logits, prob):
        risen = np.column_stack(
            [step.predict(prob[:, k]) for step, k in zip(steps, targets, strict=True)]
        )
        if two:
            risen = np.column_stack([1 - risen[:, 0], risen[:, 0]])
        total = risen.sum(axis=1, keepdims=True)
        # where every class gets 0, all are equally probable
        risen = np.where(total > 0, risen / np.where(total > 0, total, 1), 1 / prob.shape[1])
        with np.errstate(divide="ignore"):
            return np.maximum(np.log(risen), IMPOSSIBLE)

    levels = [len(np.unique(step.y_thresholds_)) for step in steps]
    few, many = min(levels), max(levels)
    return transform, f"{few} steps" if few == many else f"{few} to {many} steps"


METHODS = {"temperature": _fit_temperature, "vector": _fit_vector, "isotonic": _fit_isotonic}


def _mean_nll(logits: np.ndarray, label: np.ndarray) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(label)), label].mean())


def _replace(predictions: pd.DataFrame, transform: Transform) -> pd.DataFrame:
    """New logits, their softmax, and the most probable class; of equal ones that which led
    before."""
    classes = check_predictions(predictions)
    logits, prob = _read_arrays(predictions, classes)
    new = transform(logits, prob)
    best = new >= new.max(axis=1, keepdims=True)
    table = predictions.copy()
    table[[f"logit_{name}" for name in classes]] = new
    table[[f"prob_{name}" for name in classes]] = softmax(new, axis=1)
    table["pred"] = np.array(classes)[np.where(best, logits, -np.inf).argmax(axis=1)]
    return table


def _read_arrays(rows: pd.DataFrame, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities (N, C)."""
    logits, prob = (
        rows[[f"{kind}_{name}" for name in classes]].to_numpy(float) for kind in ("logit", "prob")
    )
    off = np.abs(softmax(logits, axis=1) - prob).max(axis=1) > 1e-3
    if off.any():
        first = rows["sample_id"][off].iloc[0]
        raise UserError(
            f"the probabilities of {first!r} are not the softmax of its logits, so they cannot be"
            " recalibrated: write the logarithms of the probabilities into the logit columns"
        )
    return logits, prob


def _measure(predictions: pd.DataFrame, split: str) -> dict[str, float]:
    scores = read_scores(predictions, split)
    value = measure_calibration(scores, np.ones((1, len(scores.label))))[0]
    accuracy = float((scores.pred == scores.label).mean())
    return dict(zip(CALIBRATION_METRICS, value, strict=True)) | {"accuracy": accuracy}


def _join(values: np.ndarray) -> str:
    """The values, or their range when there are more than four."""
    if len(values) > 4:
        return f"{values.min():.2f} to {values.max():.2f}"
    return ", ".join(f"{value:.2f}" for value in values)
