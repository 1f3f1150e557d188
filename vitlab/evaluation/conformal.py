"""Sets of classes that hold the true class at least as often as agreed (split conformal
prediction).

The score of a class is 1 - its probability (Sadinle et al., arXiv 1609.00451). The coverage needs
calibration images that are exchangeable with new ones. Here they are the validation images, which
have also chosen the epoch, so it holds approximately."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import effective_count, read_clusters
from vitlab.evaluation.calibration import wilson_interval
from vitlab.evaluation.scores import Scores, read_scores, select_split

ALPHAS = (0.05, 0.1, 0.2)


def conformal_sets(
    predictions: pd.DataFrame, alpha: float = 0.1, by_class: bool = True
) -> pd.DataFrame:
    """The set of each test image: columns sample_id, group, label, in_<class> (True or False),
    size, covered.

    A set lacks the true class with probability alpha at most, over all images, or with `by_class`
    over those of each class (Mondrian: one limit a class, arXiv 1209.2673). A set may be empty. A
    class with fewer than 1 / alpha - 1 calibration images is in every set."""
    inside, test, _ = _read_sets(predictions, alpha, by_class)
    table = select_split(predictions, "test")[["sample_id", "group", "label"]]
    table = table.reset_index(drop=True)
    table[[f"in_{name}" for name in test.classes]] = inside
    return table.assign(size=inside.sum(axis=1), covered=_covers(inside, test))


def conformal_table(
    predictions: pd.DataFrame,
    alphas: Sequence[float] = ALPHAS,
    by_class: bool = True,
    cluster=None,
) -> pd.DataFrame:
    """Nominal and measured coverage of the sets on the test split: a row for each alpha.

    Columns nominal (1 - alpha), coverage (share of sets that hold the true class), coverage_low,
    coverage_high (95 % Wilson), size (mean number of classes), single (share of sets of one class),
    single_accuracy (how often that one is right), empty (share of empty sets), worst_class,
    worst_coverage (the class that is covered least), note. cluster: of the test images, as in
    `reliability_table`."""
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    rows = []
    for alpha in alphas:
        inside, test, note = _read_sets(predictions, alpha, by_class)
        covered, size = _covers(inside, test), inside.sum(axis=1)
        worth = effective_count(np.zeros(len(covered), dtype=int), 1, clusters)[0]
        low, high = wilson_interval(covered.mean(), worth)
        by_label = pd.Series(covered).groupby(np.array(test.classes)[test.label]).mean()
        single = size == 1
        rows.append(
            {
                "nominal": 1 - alpha,
                "coverage": covered.mean(),
                "coverage_low": low,
                "coverage_high": high,
                "size": size.mean(),
                "single": single.mean(),
                "single_accuracy": covered[single].mean() if single.any() else np.nan,
                "empty": (size == 0).mean(),
                "worst_class": by_label.idxmin(),
                "worst_coverage": by_label.min(),
                "note": note,
            }
        )
    return pd.DataFrame(rows)


def conformal_class_table(
    predictions: pd.DataFrame, alpha: float = 0.1, by_class: bool = True, cluster=None
) -> pd.DataFrame:
    """Coverage class by class on the test split: a row for each true class.

    Columns class, calibration (validation images of it), limit (lowest probability that puts it
    into a set), n (test images of it), coverage, coverage_low, coverage_high (95 % Wilson), size
    (mean size of their sets), note. NaN without images. cluster: as in `conformal_table`."""
    limits, calibration = find_limits(predictions, alpha, by_class)
    inside, test, _ = _read_sets(predictions, alpha, by_class)
    covered, size = _covers(inside, test), inside.sum(axis=1)
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    worth = effective_count(test.label, len(test.classes), clusters)
    rows = []
    for k, name in enumerate(test.classes):
        of_class = test.label == k
        coverage = covered[of_class].mean() if of_class.any() else np.nan
        low, high = wilson_interval(coverage, worth[k])
        rows.append(
            {
                "class": name,
                "calibration": calibration[k],
                "limit": max(1 - limits[k], 0.0),
                "n": int(of_class.sum()),
                "coverage": coverage,
                "coverage_low": low,
                "coverage_high": high,
                "size": size[of_class].mean() if of_class.any() else np.nan,
                "note": "in every set: too few in validation" if np.isinf(limits[k]) else "",
            }
        )
    return pd.DataFrame(rows)


def find_limits(
    predictions: pd.DataFrame, alpha: float, by_class: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Largest score that is let into a set, and number of validation images, of each class (C,).
    Infinite: always let in."""
    if not 0 < alpha < 1:
        raise UserError(
            f"alpha is the share of sets that may miss, between 0 and 1, such as 0.1; got {alpha}"
        )
    val = read_scores(predictions, "val")
    score = 1 - np.take_along_axis(val.prob, val.label[:, None], axis=1)[:, 0]
    count = np.bincount(val.label, minlength=len(val.classes))
    if not by_class:
        return np.full(len(count), conformal_quantile(score, alpha)), count
    limits = [conformal_quantile(score[val.label == k], alpha) for k in range(len(count))]
    return np.array(limits), count


def conformal_quantile(score: np.ndarray, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; infinite when that is more than n."""
    rank = int(np.ceil((len(score) + 1) * (1 - alpha) - 1e-9))  # 1e-9: whole numbers stay whole
    return float(np.sort(score)[rank - 1]) if rank <= len(score) else np.inf


def _read_sets(
    predictions: pd.DataFrame, alpha: float, by_class: bool
) -> tuple[np.ndarray, Scores, str]:
    """Membership (N, C) of the test images, their scores, and a note on classes that are in every
    set."""
    limits, _ = find_limits(predictions, alpha, by_class)
    test = read_scores(predictions, "test")
    always = [name for name, limit in zip(test.classes, limits, strict=True) if np.isinf(limit)]
    note = f"too few in validation: {', '.join(always)} in every set" if always else ""
    return 1 - test.prob <= limits, test, note


def _covers(inside: np.ndarray, test: Scores) -> np.ndarray:
    return np.take_along_axis(inside, test.label[:, None], axis=1)[:, 0]
