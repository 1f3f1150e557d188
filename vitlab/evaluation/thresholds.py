"""A threshold on the probability of the last class: chosen on validation, measured once on the test
split."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.inference import bootstrap, percentile_interval
from vitlab.evaluation.scores import Scores, read_scores
from vitlab.registry import unknown

RULES = ("f1", "cost", "recall", "youden")
MEASURES = ("precision", "recall", "specificity", "f1", "cost", "flagged")
POINTS = np.linspace(0, 1, 101)


def threshold_table(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """precision, recall, specificity and f1 for each of 101 thresholds on 0..1: an image is called
    positive if the probability of the last class reaches the threshold.

    Columns class, threshold and the four measures. Precision is NaN where nothing reaches the
    threshold."""
    scores = read_scores(predictions, split)
    measured = _measure(scores, POINTS, np.ones((1, len(scores.label))))[0]
    table = {"class": scores.classes[-1], "threshold": POINTS}
    return pd.DataFrame(table | dict(zip(MEASURES[:4], measured.T[:4], strict=True)))


def choose_threshold(
    predictions: pd.DataFrame,
    rule: str,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
    min_recall: float = 0.9,
) -> float:
    """The threshold that a rule chooses on the validation split: an image is flagged if the
    probability of the last class reaches it.

    f1: the largest F1. cost: the smallest expected cost of misses and false alarms. youden: the
    largest recall + specificity - 1 (Youden, 1950). recall: the largest threshold whose recall is
    at least `min_recall`. Candidates are the distinct scores of the split and, for cost, infinity
    (flag nothing); among equally good ones the lowest, which finds most. NaN where the split lacks
    images of the class or other images."""
    if rule not in RULES:
        raise UserError(unknown("rule", rule, list(RULES)))
    costs = (cost_miss, cost_false_alarm)
    if not all(0 <= cost < np.inf for cost in costs) or not any(costs):
        raise UserError(
            "costs are finite numbers, not negative and not both 0; got cost_miss,"
            f" cost_false_alarm = {costs}"
        )
    if not 0 < min_recall <= 1:
        raise UserError(
            f"min_recall is a share above 0 and at most 1, such as 0.9; got {min_recall}"
        )
    scores = read_scores(predictions, "val")
    is_positive = scores.label == len(scores.classes) - 1
    if is_positive.all() or not is_positive.any():
        return np.nan
    candidates = np.append(np.unique(scores.prob[:, -1]), np.inf)
    measured = _measure(scores, candidates, np.ones((1, len(scores.label))), costs)[0]
    _, recall, specificity, f1, cost, _ = measured.T
    if rule == "recall":
        return float(candidates[recall >= min_recall - 1e-12].max())
    value = {"f1": f1, "cost": -cost, "youden": recall + specificity - 1}[rule]
    if rule != "cost":
        candidates, value = candidates[:-1], value[:-1]
    return float(candidates[value >= value.max() - 1e-12].min())


def threshold_choice_table(
    predictions: pd.DataFrame,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
    min_recall: float = 0.9,
    replicates: int = 1000,
) -> pd.DataFrame:
    """The thresholds that the rules choose on validation, and their results on the test split: a
    row for 0.5 (the reference) and for each rule.

    Columns rule, threshold; precision, recall, specificity, f1, cost (per image) and flagged (share
    of all images), each with its 95 % bootstrap interval (recall_low, recall_high, ...); saved
    (cost at 0.5 minus cost, on the same replicates) with its interval. The intervals are for other
    test images at this threshold, without the uncertainty of the choice. NaN for a rule that finds
    no threshold."""
    costs = (cost_miss, cost_false_alarm)
    thresholds = {"0.5": 0.5} | {
        rule: choose_threshold(predictions, rule, *costs, min_recall) for rule in RULES
    }
    chosen = np.array(list(thresholds.values()))
    scores = read_scores(predictions, "test")

    def measure(weights: np.ndarray) -> np.ndarray:  # (R, N) -> (R, T, 7)
        measured = _measure(scores, chosen, weights, costs)
        cost = measured[:, :, [MEASURES.index("cost")]]
        return np.concatenate([measured, cost[:, :1] - cost], axis=2)

    value = measure(np.ones((1, len(scores.label))))[0]
    value[0, -1] = np.nan  # nothing is saved by the reference
    drawn = bootstrap(measure, len(scores.label), replicates, cluster=scores.cluster)
    drawn = drawn.reshape(len(drawn), value.size)
    low, high, _ = percentile_interval(drawn, value.ravel(), scores.units)
    table = {"rule": list(thresholds), "threshold": chosen}
    ends = zip(value.T, low.reshape(value.shape).T, high.reshape(value.shape).T, strict=True)
    for name, columns in zip((*MEASURES, "saved"), ends, strict=True):
        table |= zip((name, f"{name}_low", f"{name}_high"), columns, strict=True)
    return pd.DataFrame(table)


def _measure(
    scores: Scores, thresholds: np.ndarray, weights: np.ndarray, costs=(1.0, 1.0)
) -> np.ndarray:
    """MEASURES (R, T, 6) at each threshold (T,) for each row of weights (R, N); NaN for a NaN
    threshold, and where there is nothing to count.

    costs: of a miss and of a false alarm."""
    score, is_positive = scores.prob[:, -1], scores.label == len(scores.classes) - 1
    order = np.argsort(-score, kind="stable")
    reaching = np.searchsorted(-score[order], -thresholds, side="right")  # (T,) number of images
    start = np.zeros((len(weights), 1))
    weights, positive = weights[:, order], weights[:, order] * is_positive[order]
    flagged = np.hstack([start, np.cumsum(weights, axis=1)])[:, reaching]  # (R, T)
    found = np.hstack([start, np.cumsum(positive, axis=1)])[:, reaching]
    alarms = flagged - found
    total, positives = weights.sum(axis=1)[:, None], positive.sum(axis=1)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = (
            found / flagged,
            found / positives,
            1 - alarms / (total - positives),
            np.where(positives > 0, 2 * found / (flagged + positives), np.nan),
            (costs[0] * (positives - found) + costs[1] * alarms) / total,
            flagged / total,
        )
    measured = np.stack(columns, axis=-1)
    measured[:, np.isnan(thresholds)] = np.nan
    return measured
