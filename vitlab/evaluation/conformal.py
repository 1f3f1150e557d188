"""Sets of classes with a promise: they hold the true class at least as often as agreed (split
conformal prediction).

The score of a class is 1 - its probability (Sadinle et al., arXiv 1609.00451). The promise needs
calibration images that are exchangeable with those to come. Here they are the validation images,
which have also chosen the epoch (and may have chosen a threshold or a temperature): the model suits
them a little better than new ones, so the promise holds only approximately."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import effective_count, read_clusters
from vitlab.evaluation.calibration import wilson_interval
from vitlab.evaluation.scores import Scores, read_scores, select_split

SLACK = 1e-9  # so that (n + 1) (1 - alpha) that is a whole number stays it


def conformal_sets(
    predictions: pd.DataFrame, alpha: float = 0.1, by_class: bool = True
) -> pd.DataFrame:
    """The set of each test sample: columns sample_id, group, label, in_<class> (True or False),
    size, covered.

    The promise: a set lacks the true class with probability alpha at most, over all images, and
    with `by_class` for the images of each class (Mondrian: one limit a class, arXiv 1209.2673). A
    set may be empty. With fewer than 1 / alpha - 1 calibration images (of the class) nothing can be
    promised but by including the class always, which is what happens."""
    limits, _ = find_limits(predictions, alpha, by_class)
    test = read_scores(predictions, "test")
    inside = 1 - test.prob <= limits  # (N, C)
    table = select_split(predictions, "test")[["sample_id", "group", "label"]].reset_index(
        drop=True
    )
    table[[f"in_{name}" for name in test.classes]] = inside
    return table.assign(size=inside.sum(axis=1), covered=_covers(inside, test))


def conformal_table(
    predictions: pd.DataFrame,
    alphas: Sequence[float] = (0.05, 0.1, 0.2),
    by_class: bool = True,
    cluster=None,
) -> pd.DataFrame:
    """What the sets promise and keep on the test split: a row for each alpha.

    Columns promise (1 - alpha), coverage (share of sets that hold the true class), coverage_low,
    coverage_high (95 % Wilson), size (mean number of classes), single (share of sets of one class),
    single_accuracy (how often that one is right), empty (share of empty sets), worst_class,
    worst_coverage (the class that is covered least), note. cluster: of the test images, as in
    `reliability_table`."""
    rows, clusters = [], read_clusters(select_split(predictions, "test"), cluster)
    for alpha in alphas:
        inside, test, note = _read_sets(predictions, alpha, by_class)
        covered, size = _covers(inside, test), inside.sum(axis=1)
        low, high = wilson_interval(
            covered.mean(), effective_count(np.zeros(len(covered), dtype=int), 1, clusters)[0]
        )
        shares = {
            name: covered[test.label == k].mean()
            for k, name in enumerate(test.classes)
            if k in test.label
        }
        worst = min(shares, key=shares.get)
        single = size == 1
        row = {
            "promise": 1 - alpha,
            "coverage": covered.mean(),
            "coverage_low": low,
            "coverage_high": high,
        }
        row |= {"size": size.mean(), "single": single.mean()}
        row |= {
            "single_accuracy": covered[single].mean() if single.any() else np.nan,
            "empty": (size == 0).mean(),
        }
        rows.append({**row, "worst_class": worst, "worst_coverage": shares[worst], "note": note})
    return pd.DataFrame(rows)


def conformal_class_table(
    predictions: pd.DataFrame, alpha: float = 0.1, by_class: bool = True, cluster=None
) -> pd.DataFrame:
    """The promise class by class on the test split: a row for each true class.

    Columns class, calibration (validation images of it), limit (least probability that puts it into
    a set), n (test images of it), coverage, coverage_low, coverage_high (95 % Wilson), size (mean
    size of their sets), note. NaN without images. cluster: of the test images, as in
    `reliability_table`."""
    limits, calibration = find_limits(predictions, alpha, by_class)
    inside, test, _ = _read_sets(predictions, alpha, by_class)
    covered, size = _covers(inside, test), inside.sum(axis=1)
    worth = effective_count(
        test.label, len(test.classes), read_clusters(select_split(predictions, "test"), cluster)
    )
    rows = []
    for k, name in enumerate(test.classes):
        of_class = test.label == k
        n = int(of_class.sum())
        coverage = covered[of_class].mean() if n else np.nan
        low, high = wilson_interval(coverage, worth[k])
        row = {
            "class": name,
            "calibration": calibration[k],
            "limit": max(1 - limits[k], 0.0),
            "n": n,
        }
        row |= {"coverage": coverage, "coverage_low": low, "coverage_high": high}
        row["size"] = size[of_class].mean() if n else np.nan
        rows.append(
            {**row, "note": "in every set: too few in validation" if np.isinf(limits[k]) else ""}
        )
    return pd.DataFrame(rows)


def find_limits(
    predictions: pd.DataFrame, alpha: float, by_class: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Largest score that is let into a set, and number of validation images, for each class (C,).
    Infinite: let in always.
    """
    if not 0 < alpha < 1:
        raise UserError(
            f"alpha is the share of sets that may miss, between 0 and 1, such as 0.1; got {alpha}"
        )
    val = read_scores(predictions, "val")
    score = 1 - np.take_along_axis(val.prob, val.label[:, None], axis=1)[:, 0]
    count = np.bincount(val.label, minlength=len(val.classes))
    if not by_class:
        return np.full(len(count), conformal_quantile(score, alpha)), count
    return (
        np.array([conformal_quantile(score[val.label == k], alpha) for k in range(len(count))]),
        count,
    )


def conformal_quantile(score: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; infinite when that is more than n."""
    rank = int(np.ceil((len(score) + 1) * (1 - alpha) - SLACK))
    return float(np.sort(score)[rank - 1]) if rank <= len(score) else np.inf


def _read_sets(
    predictions: pd.DataFrame, alpha: float, by_class: bool
) -> tuple[np.ndarray, Scores, str]:
    """Membership (N, C) of the test samples, their scores, and which classes are in every set for
    want of calibration images.
    """
    limits, _ = find_limits(predictions, alpha, by_class)
    test = read_scores(predictions, "test")
    always = [name for name, limit in zip(test.classes, limits, strict=True) if np.isinf(limit)]
    note = f"too few in validation: {', '.join(always)} in every set" if always else ""
    return 1 - test.prob <= limits, test, note


def _covers(inside: np.ndarray, test: Scores) -> np.ndarray:
    return np.take_along_axis(inside, test.label[:, None], axis=1)[:, 0]
