"""Selective prediction: predict only where the model is confident, and leave the rest to a person
(El-Yaniv and Wiener, 2010; Geifman and El-Yaniv, arXiv 1705.08500)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import beta

from vitlab.evaluation.inference import share_interval, wilson_interval
from vitlab.evaluation.scores import Scores, read_scores

COVERAGES = (1.0, 0.9, 0.8, 0.6)
ACCURACIES = (0.9, 0.95)
ERROR = 0.1  # probability that a nominal accuracy does not hold for new images


def risk_coverage_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Error rate on the test images that are covered if only predictions from a confidence on are
    made: a row for each distinct confidence, the highest first.

    Columns threshold (lowest confidence that is covered), n (images covered), coverage (their share
    of all images), risk (share of wrong predictions among them), low, high (95 % Wilson interval of
    the risk, for that coverage alone), oracle (risk of the order that puts all correct predictions
    first)."""
    scores = read_scores(predictions, "test")
    threshold, n, wrong = _accumulate(scores)
    risk, independent = wrong / n, n
    if scores.cluster is not None:  # `effective_count` of the first n images
        ordered = pd.Series(scores.cluster[np.argsort(-scores.confidence, kind="stable")])
        squares = np.cumsum(2 * ordered.groupby(ordered).cumcount().to_numpy() + 1)
        independent = n**2 / squares[n - 1]
    low, high = wilson_interval(risk, independent)
    oracle = np.maximum(n - scores.right.sum(), 0) / n
    table = {"threshold": threshold, "n": n, "coverage": n / len(scores.right), "risk": risk}
    return pd.DataFrame(table | {"low": low, "high": high, "oracle": oracle})


def selective_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Thresholds on the confidence, chosen on validation for a coverage or an accuracy, and their
    results on the test split.

    A row for each of COVERAGES, the highest threshold that covers at least this share of the
    validation images, and for each of ACCURACIES, the lowest threshold that a binary search shows
    to reach this accuracy for new images of the same kind, at a confidence level of 90 % (the bound
    of arXiv 1705.08500). Validation has also chosen the epoch, so this holds approximately. Columns
    target (coverage or accuracy), nominal (its value), threshold, val_coverage, val_accuracy, n
    (test images covered), coverage and accuracy, the last two with 95 % Wilson intervals. NaN for
    an accuracy that validation does not show."""
    val, test = read_scores(predictions, "val"), read_scores(predictions, "test")
    thresholds, n, wrong = _accumulate(val)
    places = [("coverage", share, np.argmax(n / n[-1] >= share - 1e-12)) for share in COVERAGES]
    places += [("accuracy", share, _find_accuracy(n, wrong, share)) for share in ACCURACIES]
    rows = []
    for target, nominal, place in places:
        row = {"target": target, "nominal": nominal, "threshold": np.nan, "n": 0}
        if place is None:
            rows.append(row)
            continue
        everything = (target, nominal) == ("coverage", 1)  # also images below all of validation
        row["threshold"] = 0.0 if everything else thresholds[place]
        row["val_coverage"] = n[place] / n[-1]
        row["val_accuracy"] = 1 - wrong[place] / n[place]
        covered = test.confidence >= row["threshold"]
        row["n"] = covered.sum()
        kept = test.take(covered)
        shares = {
            "coverage": share_interval(covered, test.cluster),
            "accuracy": share_interval(kept.right, kept.cluster),
        }
        for name, values in shares.items():
            row |= zip((name, f"{name}_low", f"{name}_high"), values, strict=True)
        rows.append(row)
    return pd.DataFrame(rows)


def _accumulate(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct confidences from the highest down (G,), and how many images, and mistakes, reach
    each of them."""
    order = np.argsort(-scores.confidence, kind="stable")
    confidence = scores.confidence[order]
    last = np.flatnonzero(np.diff(confidence, append=-np.inf))
    return confidence[last], last + 1, np.cumsum(~scores.right[order])[last]


def _find_accuracy(n: np.ndarray, wrong: np.ndarray, accuracy: float) -> int | None:
    """Place of the last threshold for which a binary search shows the accuracy; its steps share the
    error probability. None if there is none."""
    steps = max(1, int(np.ceil(np.log2(len(n)))))
    # one-sided Clopper-Pearson bound; NaN where no prediction is correct
    bound = beta.ppf(ERROR / steps, n - wrong, wrong + 1)
    first, last, found = 0, len(n), None
    for _ in range(steps):
        middle = (first + last) // 2
        if bound[middle] >= accuracy:
            first = found = middle
        else:
            last = middle
    return found
