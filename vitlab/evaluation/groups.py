"""Scores where images come in groups (patients, modules): for unseen images of known groups, for
unseen groups, and within a group.

A model that recognises the group can score well on new images of groups that it was trained on, and
fail on a new group. Within a group, recognising it is of no use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vitlab.errors import UserError
from vitlab.evaluation.inference import bootstrap, percentile_interval
from vitlab.evaluation.metrics import METRICS, prepare_metrics
from vitlab.evaluation.scores import Scores, read_scores, target_classes

WITHIN = "roc_auc_within_groups"
ALONE = " alone"  # ends the name of a model that sees the group only
SPLIT_METRICS = ("roc_auc", "balanced_accuracy")


def split_table(
    tests: Mapping[str, Mapping[str, pd.DataFrame]], replicates: int = 1000
) -> pd.DataFrame:
    """Scores of models under several splits, with 95 % bootstrap intervals over the groups.

    tests: split -> model -> predictions with a column `cluster`, the group of each image. Columns
    model, split, images, groups, metric, value, low, high. metric: SPLIT_METRICS and WITHIN, the
    ROC AUC over pairs of images of one group (NaN where no group has two classes, left out for the
    group alone, which cannot order them)."""
    rows = []
    for split, models in tests.items():
        for model, predictions in models.items():
            scores = read_scores(predictions, "test")
            if scores.cluster is None:
                raise UserError(f"{model}: the predictions have no column cluster, the groups")
            names, values = _measure(scores, replicates)
            facts = {"model": model, "split": split, "images": len(scores.label)}
            facts["groups"] = int(scores.cluster.max()) + 1
            for name, row in zip(names, values, strict=True):
                if name != WITHIN or not model.endswith(ALONE):
                    rows.append({**facts, "metric": name, **row})
    return pd.DataFrame(rows)


def _measure(scores: Scores, replicates: int) -> tuple[list[str], list[dict[str, float]]]:
    overall, within = prepare_metrics(scores), prepare_within_auc(scores)
    chosen = [METRICS.index(name) for name in SPLIT_METRICS]

    def compute(weights: np.ndarray) -> np.ndarray:  # (R, N) -> (R, 3)
        return np.column_stack([overall(weights)[:, chosen], within(weights)])

    value = compute(np.ones((1, len(scores.label))))[0]
    drawn = bootstrap(compute, len(scores.label), replicates, cluster=scores.cluster)
    low, high, _ = percentile_interval(drawn, value, scores.units)
    rows = [
        {"value": float(value[i]), "low": float(low[i]), "high": float(high[i])} for i in range(3)
    ]
    return [*SPLIT_METRICS, WITHIN], rows


def prepare_within_auc(scores: Scores) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights (R, N), equal within a group, to the ROC AUC (R,) over pairs of one
    group: the share of pairs, one image of the class and one of another, that are in the right
    order. With several classes, the mean over them."""
    groups = scores.cluster.max() + 1
    first = np.unique(scores.cluster, return_index=True)[1]
    right, pairs = np.zeros((2, len(target_classes(scores.classes)), groups))
    for row, target in enumerate(target_classes(scores.classes)):
        for group in range(groups):
            own = scores.cluster == group
            positive, score = scores.label[own] == target, scores.prob[own, target]
            count = positive.sum()
            pairs[row, group] = count * (own.sum() - count)
            # Mann-Whitney: the rank sum of the positives counts the pairs in the right order
            right[row, group] = rankdata(score)[positive].sum() - count * (count + 1) / 2

    def compute(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, first]  # (R, G)
        with np.errstate(invalid="ignore"):
            return ((drawn @ right.T) / (drawn @ pairs.T)).mean(axis=1)

    return compute
