"""Selective prediction: answer only where the model is sure, and leave the rest to a person
(El-Yaniv and Wiener, 2010; Geifman and El-Yaniv, arXiv 1705.08500)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import beta

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import effective_count, read_clusters
from vitlab.evaluation.calibration import confidence_of, wilson_interval
from vitlab.evaluation.scores import read_scores, select_split

COLUMNS = [
    "target",
    "nominal",
    "threshold",
    "val_coverage",
    "val_accuracy",
    "n",
    "coverage",
    "coverage_low",
    "coverage_high",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "note",
]


def risk_coverage_table(predictions: pd.DataFrame, cluster=None) -> pd.DataFrame:
    """Risk of the answers that are given when only those from a confidence on are given: a row for
    each distinct confidence on the test split, the highest first.

    Columns threshold (lowest confidence that is answered), n (answers), coverage (their share of
    all images), risk (share of wrong ones among them), low, high (95 % Wilson interval of the risk,
    for that coverage alone), oracle (risk of the order that puts all right answers first).
    Confidence is the probability of the predicted class. cluster: as in `reliability_table`."""
    confidence, right = confidence_of(read_scores(predictions, "test"))
    threshold, n, wrong = _accumulate(confidence, right)
    risk, worth = wrong / n, n
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    if clusters is not None:  # `effective_count` of the first n images
        ordered = pd.Series(clusters[np.argsort(-confidence, kind="stable")])
        squares = np.cumsum(2 * ordered.groupby(ordered).cumcount().to_numpy() + 1)
        worth = n**2 / squares[n - 1]
    low, high = wilson_interval(risk, worth)
    return pd.DataFrame(
        {
            "threshold": threshold,
            "n": n,
            "coverage": n / len(right),
            "risk": risk,
            "low": low,
            "high": high,
            "oracle": np.maximum(n - right.sum(), 0) / n,
        }
    )


def selective_table(
    predictions: pd.DataFrame,
    coverages: Sequence[float] = (1.0, 0.9, 0.8, 0.6),
    accuracies: Sequence[float] = (0.9, 0.95),
    confidence_level: float = 0.9,
    cluster=None,
) -> pd.DataFrame:
    """Thresholds on the confidence, chosen on validation for a coverage or an accuracy, and what
    they give on the test split: a row for each.

    coverages: the highest threshold that answers at least this share of the validation images.
    accuracies: the lowest threshold from which on the answers are right at least this often, with
    confidence_level for new images of the same kind (the bound of arXiv 1705.08500). Validation has
    also chosen the epoch, so this holds approximately. Columns: COLUMNS; target is coverage or
    accuracy, nominal its value, n the number of test answers; low and high are 95 % Wilson
    intervals. An accuracy that validation does not show has NaN and a note. cluster: of the test
    images, as in `reliability_table`."""
    for value in (*coverages, *accuracies):
        if not 0 < value <= 1:
            raise UserError(
                f"coverages and accuracies lie above 0 and at most at 1, such as 0.9; got {value}"
            )
    val, val_right = confidence_of(read_scores(predictions, "val"))
    confidence, right = confidence_of(read_scores(predictions, "test"))
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    thresholds, n, wrong = _accumulate(val, val_right)
    targets = [("coverage", value) for value in coverages]
    targets += [("accuracy", value) for value in accuracies]
    rows = []
    for target, nominal in targets:
        row = {"target": target, "nominal": nominal, "n": 0, "note": ""}
        if target == "coverage":
            at = int(np.argmax(n / n[-1] >= nominal - 1e-12))
        else:
            at = _find_accuracy(n, wrong, nominal, confidence_level)
        if at is None:
            best = (1 - wrong / n).max()
            row["note"] = (
                f"at most {best:.1%} on validation"
                if best < nominal
                else f"too few validation images for {confidence_level:.0%} confidence"
            )
            rows.append(row)
            continue
        everything = target == "coverage" and nominal == 1  # also images below all of validation
        row["threshold"] = 0.0 if everything else thresholds[at]
        row |= {"val_coverage": n[at] / len(val), "val_accuracy": 1 - wrong[at] / n[at]}
        rows.append(row | _read_test(confidence, right, row["threshold"], clusters))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _read_test(
    confidence: np.ndarray, right: np.ndarray, threshold: float, clusters: np.ndarray | None
) -> dict:
    """n, coverage and accuracy with their intervals on the test split."""
    answered = confidence >= threshold
    row = {"n": answered.sum(), "coverage": answered.mean()}
    whole = effective_count(np.zeros(len(right), dtype=int), 1, clusters)[0]
    row["coverage_low"], row["coverage_high"] = wilson_interval(answered.mean(), whole)
    if not answered.any():
        return {**row, "note": "answers nothing in test"}
    worth = effective_count(np.where(answered, 1, 0), 2, clusters)[1]
    row["accuracy"] = right[answered].mean()
    row["accuracy_low"], row["accuracy_high"] = wilson_interval(row["accuracy"], worth)
    return row


def _accumulate(
    confidence: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct confidences from the highest down (G,), and how many images, and mistakes, reach
    each of them."""
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    return confidence[order][last], last + 1, np.cumsum(~right[order])[last]


def _find_accuracy(
    n: np.ndarray, wrong: np.ndarray, accuracy: float, confidence_level: float
) -> int | None:
    """The last threshold for which a binary search shows the accuracy; its steps share the error
    probability. None where there is none."""
    steps = max(1, int(np.ceil(np.log2(len(n)))))
    # one-sided Clopper-Pearson bound; NaN where no answer is right
    bound = beta.ppf((1 - confidence_level) / steps, n - wrong, wrong + 1)
    first, last, found = 0, len(n), None
    for _ in range(steps):
        middle = (first + last) // 2
        if bound[middle] >= accuracy:
            first = found = middle
        else:
            last = middle
    return found
