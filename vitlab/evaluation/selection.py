"""Answer or leave it to a person: what is gained by keeping silent where the model is unsure
(El-Yaniv; arXiv 1705.08500).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import beta

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import (
    draw_counts,
    effective_count,
    percentile_interval,
    read_clusters,
)
from vitlab.evaluation.calibration import confidence_of, wilson_interval
from vitlab.evaluation.scores import read_scores, select_split

SELECTIVE_COLUMNS = [
    *("promised", "promise", "threshold", "val_coverage", "val_accuracy", "n"),
    *(f"{name}{end}" for name in ("coverage", "accuracy") for end in ("", "_low", "_high")),
]


def risk_coverage_table(
    predictions: pd.DataFrame, split: str = "test", cluster=None
) -> pd.DataFrame:
    """Risk of the answers that are kept when only those from a confidence on are given: a row for
    each distinct confidence.

    Columns threshold (least confidence that is answered), n (answers), coverage (share of all
    samples), risk (share of wrong answers among them), low, high (95 % Wilson interval of the risk,
    for that coverage alone), oracle (the risk of an order that puts every right answer before every
    wrong one). Confidence is the probability of the predicted class. cluster: as in
    `reliability_table`."""
    confidence, right = confidence_of(read_scores(predictions, split))
    threshold, n, wrong = _accumulate(confidence, right)
    risk, worth = wrong / n, n
    clusters = read_clusters(select_split(predictions, split), cluster)
    if clusters is not None:  # `effective_count` of the first n
        ordered = pd.Series(clusters[np.argsort(-confidence, kind="stable")])
        worth = n**2 / np.cumsum(2 * ordered.groupby(ordered).cumcount().to_numpy() + 1)[n - 1]
    low, high = wilson_interval(risk, worth)
    oracle = np.maximum(n - right.sum(), 0) / n
    coverage = n / len(right)
    return pd.DataFrame(
        {
            "threshold": threshold,
            "n": n,
            "coverage": coverage,
            "risk": risk,
            "low": low,
            "high": high,
            "oracle": oracle,
        }
    )


def risk_area_table(
    predictions: pd.DataFrame,
    split: str = "test",
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster=None,
) -> pd.DataFrame:
    """Areas under the risk-coverage curve with bootstrap intervals: columns metric, value, low,
    high.

    error_rate: the risk at full coverage, and the area of an order that knows nothing. aurc: the
    area, the mean risk over all numbers of answers; oracle_aurc: of the best order for the same
    mistakes; excess_aurc: their distance (arXiv 1805.08206). Samples of equal confidence count as
    if in random order. 0 is best for all four. cluster: as in `metrics_table`."""
    sure, right = confidence_of(read_scores(predictions, split))
    every = np.arange(len(right))
    drawn = [_areas(sure[every], right[every])]
    for counts in draw_counts(
        len(right), replicates, seed, read_clusters(select_split(predictions, split), cluster)
    ):
        rows = (np.repeat(every, row.astype(int)) for row in counts)
        drawn += [_areas(sure[chosen], right[chosen]) for chosen in rows]
    drawn = np.array(drawn)
    low, high, _ = percentile_interval(drawn[1:], confidence, drawn[0])
    names = ("error_rate", "aurc", "oracle_aurc", "excess_aurc")
    return pd.DataFrame({"metric": names, "value": drawn[0], "low": low, "high": high})


def selective_table(
    predictions: pd.DataFrame,
    coverages: Sequence[float] = (1.0, 0.9, 0.8, 0.6),
    least_accuracies: Sequence[float] = (),
    certainty: float | None = None,
    cluster=None,
) -> pd.DataFrame:
    """Confidence thresholds chosen on validation for a promise, and what the test split keeps of
    it: a row for each promise.

    coverages: the highest threshold that answers at least this share of validation; least_accuracies: the lowest one from which
    on the answers given on validation are right at least this often. Columns promised (coverage or accuracy), promise, threshold,
    val_coverage, val_accuracy, n (test answers), coverage, accuracy, both followed by their 95 % Wilson interval (coverage_low,
    ...), note. An accuracy that validation never reaches has NaN and a note. The choice took the best of what validation showed,
    so on average the test split keeps a little less than an accuracy promised; with a `certainty` such as 0.95 the accuracy is
    promised for new images of the same kind with that probability (the bound of arXiv 1705.08500), and fewer answers are given.
    Validation has also chosen the epoch, so even that holds only approximately. cluster: of the test images, as in
    `reliability_table`.
    """
    for value in (*coverages, *least_accuracies):
        if not 0 < value <= 1:
            raise UserError(
                "coverages and least_accuracies are shares above 0 and at most 1, such as 0.9; got"
                f" {value}"
            )
    if certainty is not None and not 0 < certainty < 1:
        raise UserError(
            f"certainty is a probability between 0 and 1, such as 0.95, or None; got {certainty}"
        )
    val, val_right = confidence_of(read_scores(predictions, "val"))
    sure, right = confidence_of(read_scores(predictions, "test"))
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    threshold, n, wrong = _accumulate(val, val_right)
    coverage, accuracy = n / len(val), 1 - wrong / n
    rows, worth = [], []
    for promised, promise in [("coverage", value) for value in coverages] + [
        ("accuracy", value) for value in least_accuracies
    ]:
        row = {"promised": promised, "promise": promise, "threshold": np.nan, "n": 0, "note": ""}
        worth.append([0, 0])
        at = _keep_promise(promised, promise, n, wrong, certainty)
        if at is None:
            reached = f"at most {accuracy.max():.1%} on validation"
            rows.append(
                {
                    **row,
                    "note": (
                        reached
                        if accuracy.max() < promise
                        else "too few validation images to be so certain"
                    ),
                }
            )
            continue
        # also an image that is less sure than all of validation
        everything = promised == "coverage" and promise == 1
        row["threshold"] = 0.0 if everything else threshold[at]
        answered = sure >= row["threshold"]
        worth[-1] = effective_count(np.where(answered, 1, 0), 2, clusters)
        row |= {
            "val_coverage": coverage[at],
            "val_accuracy": accuracy[at],
            "n": answered.sum(),
            "coverage": answered.mean(),
        }
        row |= (
            {"accuracy": right[answered].mean()}
            if answered.any()
            else {"note": "answers nothing in test"}
        )
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=SELECTIVE_COLUMNS)
    everything = effective_count(np.zeros(len(right), dtype=int), 1, clusters)[0]
    for name, count in (("coverage", everything), ("accuracy", np.array(worth)[:, 1])):
        table[f"{name}_low"], table[f"{name}_high"] = wilson_interval(
            table[name].to_numpy(float), count
        )
    return table.assign(note=[row["note"] for row in rows])


def _accumulate(
    confidence: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct confidences from the highest down (G,), and how many samples, and mistakes, reach
    each of them.
    """
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    return confidence[order][last], last + 1, np.cumsum(~right[order])[last]


def _keep_promise(
    promised: str, promise: float, n: np.ndarray, wrong: np.ndarray, certainty: float | None
) -> int | None:
    """Which of the thresholds, counted from the highest, keeps the promise on validation; None when
    none does.
    """
    if promised == "coverage":
        return int(np.argmax(n / n[-1] >= promise - 1e-12))
    if certainty is not None:
        return _find_certain(n, wrong, promise, certainty)
    kept = np.flatnonzero(1 - wrong / n >= promise - 1e-12)
    return int(kept[-1]) if len(kept) else None


def _find_certain(n: np.ndarray, wrong: np.ndarray, promise: float, certainty: float) -> int | None:
    """The last threshold for which a halving search showed the accuracy; its steps share the chance
    to err.
    """
    steps = max(1, int(np.ceil(np.log2(len(n)))))
    # one-sided Clopper-Pearson; NaN where none is right
    least = beta.ppf((1 - certainty) / steps, n - wrong, wrong + 1)
    first, last, kept = 0, len(n), None
    for _ in range(steps):
        middle = (first + last) // 2
        if least[middle] >= promise:
            first = kept = middle
        else:
            last = middle
    return kept


def _areas(confidence: np.ndarray, right: np.ndarray) -> list[float]:
    """error rate, area, area of the oracle, excess."""
    total = len(right)
    _, n, wrong = _accumulate(confidence, right)
    answers = np.arange(1, total + 1)
    # within a tie: their expected number
    mistakes = np.interp(answers, np.append(0, n), np.append(0, wrong))
    area, best = (
        (mistakes / answers).mean(),
        (np.maximum(answers - right.sum(), 0) / answers).mean(),
    )
    return [wrong[-1] / total, area, best, area - best]
