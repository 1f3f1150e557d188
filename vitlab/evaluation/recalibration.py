"""Probabilities made honest after training, with a map that is fitted on the validation split
only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import KFold

from vitlab.errors import UserError
from vitlab.evaluation.probability import CALIBRATION_METRICS, measure_calibration
from vitlab.evaluation.scores import read_scores
from vitlab.registry import unknown
from vitlab.schema import check_predictions

# temperatures between 1/20 and 20, weights up to 20: without mistakes on validation the best fit is
# at infinity
LIMIT = 20.0
# the logit of a class with probability 0, as finite as a predictions table wants it
IMPOSSIBLE = -1000.0
RECALIBRATED_METRICS = ("ece", "ece_mass", "classwise_ece", "brier", "nll")
FOLDS = 5  # of the validation images, by which methods are compared
# (logits, prob) -> new logits, (N, C); and a note
Fit = tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], str]


def calibrate(predictions: pd.DataFrame, method: str = "temperature") -> pd.DataFrame:
    """The predictions with new logits, probabilities and `pred` (the most probable class) in every
    split.

    temperature: all logits divided by one number, which leaves the order of the classes as it is
    (arXiv 1706.04599). vector: each logit, less their mean, times a weight plus a bias of its class
    (same source; with two classes this is Platt's scaling). isotonic: a rising step function of the
    probability of each class, one against the rest, normalised (Zadrozny and Elkan, 2002; as
    scikit-learn does it). The first two minimise the likelihood loss on validation. ValueError
    where validation lacks a class (not for temperature). Validation has also chosen the epoch, so
    the fit sees scores a little better than those of new images."""
    transform, _ = _fit(predictions, method)
    return _replace(predictions, transform)


def recalibration_table(
    predictions: pd.DataFrame,
    methods: Sequence[str] = ("temperature", "vector", "isotonic"),
    bins: int = 10,
    split: str = "test",
) -> pd.DataFrame:
    """Calibration before and after: a row for `none` and each method, measured on one split, fitted
    on validation.

    Columns method, val_brier, ece, ece_mass, classwise_ece, brier, nll (all as in
    `calibration_table`), accuracy, note (what was fitted, or why it could not be; then the rest is
    NaN). val_brier: the Brier score on validation, five-fold cross-validated, by which to choose;
    the other columns are those of `split` and come too late for a choice."""
    rows = [
        {
            "method": "none",
            "val_brier": _cross_validate(predictions, None),
            **_measure(predictions, bins, split),
            "note": "",
        }
    ]
    for method in methods:
        try:
            transform, note = _fit(predictions, method)
        except _CannotFit as reason:
            rows.append({"method": method, "note": str(reason)})
            continue
        row = {"method": method, "val_brier": _cross_validate(predictions, method)}
        row |= {**_measure(_replace(predictions, transform), bins, split), "note": note}
        row["note"] += "; some labels get probability 0" if np.isinf(row["nll"]) else ""
        rows.append(row)
    return pd.DataFrame(rows)[["method", "val_brier", *RECALIBRATED_METRICS, "accuracy", "note"]]


def describe_recalibration(table: pd.DataFrame) -> str:
    """Which method of a `recalibration_table` validation chooses, and what it does on the test
    split: two sentences.
    """
    before, best = table.iloc[0], table.loc[table["val_brier"].idxmin()]
    if best["method"] == "none":
        return (
            "Cross-validated on the validation split, no method has a lower Brier score than the"
            " model as trained."
        )
    return (
        f"Cross-validated on the validation split, *{best['method']}* has the lowest Brier score."
        f" On the test split it takes the Brier score from {before['brier']:.3f} to"
        f" {best['brier']:.3f}, the class-wise error from {before['classwise_ece']:.3f} to"
        f" {best['classwise_ece']:.3f} and accuracy from {before['accuracy']:.1%} to"
        f" {best['accuracy']:.1%}."
    )


def _cross_validate(predictions: pd.DataFrame, method: str | None) -> float:
    """Brier score of the validation images, each mapped by a fit to the other folds; NaN where a
    fold cannot be fitted.
    """
    val = predictions[predictions["split"] == "val"]
    if len(val) < FOLDS:
        return np.nan
    tables = []
    for rest, fold in KFold(FOLDS, shuffle=True, random_state=0).split(val):
        try:
            transform = _fit(val.iloc[rest], method)[0] if method else lambda logits, prob: logits
        except _CannotFit:
            return np.nan
        tables.append(_replace(val.iloc[fold], transform))
    return _measure(pd.concat(tables), 1, "val")["brier"]


class _CannotFit(UserError):
    """The validation split does not determine the map."""


def _fit(predictions: pd.DataFrame, method: str) -> Fit:
    if method not in METHODS:
        raise UserError(unknown("method", method, list(METHODS)))
    scores = read_scores(predictions, "val")
    logits, prob = _read_arrays(predictions[predictions["split"] == "val"], scores.classes)
    if method != "temperature":
        missing = [name for k, name in enumerate(scores.classes) if k not in scores.label]
        if missing:
            raise _CannotFit(
                f"{method} needs images of every class in validation, which has none of"
                f" {', '.join(missing)}"
            )
    return METHODS[method](logits, prob, scores.label)


def _fit_temperature(logits: np.ndarray, prob: np.ndarray, label: np.ndarray) -> Fit:
    def loss(log_temperature):
        return _likelihood_loss(logits / np.exp(log_temperature), label)

    reach = np.log(LIMIT)
    found = minimize_scalar(
        loss, bounds=(-reach, reach), method="bounded", options={"xatol": 1e-12}
    )
    temperature = float(np.exp(found.x))
    note = f"T = {temperature:.3f}" + (", the limit" if abs(found.x) > reach - 1e-3 else "")
    return lambda logits, prob: logits / temperature, note


def _fit_vector(logits: np.ndarray, prob: np.ndarray, label: np.ndarray) -> Fit:
    num_classes = logits.shape[1]
    # their mean does not reach the probabilities
    logits = logits - logits.mean(axis=1, keepdims=True)
    one_hot = np.eye(num_classes)[label]

    def loss(parameters):
        weight, bias = np.split(parameters, 2)
        scaled = logits * weight + bias
        slope = (softmax(scaled, axis=1) - one_hot) / len(label)
        return _likelihood_loss(scaled, label), np.concatenate(
            [(slope * logits).sum(axis=0), slope.sum(axis=0)]
        )

    start = np.repeat([1.0, 0.0], num_classes)
    bounds = [(0, LIMIT)] * num_classes + [(-LIMIT, LIMIT)] * num_classes
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-8}
    weight, bias = np.split(
        minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options).x, 2
    )
    at_limit = (weight >= LIMIT).any() or (np.abs(bias) >= LIMIT).any()
    note = f"weights {_join(weight)}; biases {_join(bias)}" + ("; at the limit" if at_limit else "")
    return lambda logits, prob: (logits - logits.mean(axis=1, keepdims=True)) * weight + bias, note


def _fit_isotonic(logits: np.ndarray, prob: np.ndarray, label: np.ndarray) -> Fit:
    targets = [1] if prob.shape[1] == 2 else range(prob.shape[1])
    steps = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(prob[:, k], label == k)
        for k in targets
    ]

    def transform(logits, prob):
        risen = np.column_stack(
            [step.predict(prob[:, k]) for step, k in zip(steps, targets, strict=True)]
        )
        if prob.shape[1] == 2:
            risen = np.column_stack([1 - risen[:, 0], risen[:, 0]])
        total = risen.sum(axis=1, keepdims=True)
        # no class at all: all alike
        risen = np.where(total > 0, risen / np.where(total > 0, total, 1), 1 / prob.shape[1])
        with np.errstate(divide="ignore"):
            return np.maximum(np.log(risen), IMPOSSIBLE)

    levels = [len(np.unique(step.y_thresholds_)) for step in steps]
    return transform, (
        f"{min(levels)} steps" if len(set(levels)) == 1 else f"{min(levels)} to {max(levels)} steps"
    )


METHODS = {"temperature": _fit_temperature, "vector": _fit_vector, "isotonic": _fit_isotonic}


def _likelihood_loss(logits: np.ndarray, label: np.ndarray) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(label)), label].mean())


def _replace(predictions: pd.DataFrame, transform) -> pd.DataFrame:
    """New logits, their softmax as probabilities, and the most probable class; among equals the one
    that led before.
    """
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
            f"the probabilities of sample {first!r} are not the softmax of its logits, so scaling"
            " one does not change the other: write the logarithms of the probabilities into the"
            " logit columns"
        )
    return logits, prob


def _measure(predictions: pd.DataFrame, bins: int, split: str) -> dict[str, float]:
    scores = read_scores(predictions, split)
    value = measure_calibration(scores, np.ones((1, len(scores.label))), bins)[0]
    measured = dict(zip(CALIBRATION_METRICS, value, strict=True))
    return {name: measured[name] for name in RECALIBRATED_METRICS} | {
        "accuracy": float((scores.pred == scores.label).mean())
    }


def _join(values: np.ndarray) -> str:
    """The values, or from where to where they lie when they are many."""
    if len(values) > 4:
        return f"{values.min():.2f} to {values.max():.2f}"
    return ", ".join(f"{value:.2f}" for value in values)
