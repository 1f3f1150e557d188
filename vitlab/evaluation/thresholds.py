"""A threshold on the probability of one class: chosen on validation, read once on the test
split."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import draw_counts, percentile_interval, read_clusters
from vitlab.evaluation.curves import count_reaching, one_target
from vitlab.evaluation.scores import read_scores, select_split
from vitlab.registry import unknown

RULES = ("f1", "cost", "recall", "youden")
READINGS = ("precision", "recall", "specificity", "f1", "cost", "flagged")


def choose_threshold(
    predictions: pd.DataFrame,
    rule: str,
    positive: str | None = None,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
    min_recall: float = 0.9,
) -> float:
    """The threshold that a rule picks on the validation split: an image is flagged from this
    probability of `positive` on.

    f1: the largest F1. cost: the smallest expected cost of misses and false alarms. youden: the
    largest recall + specificity - 1 (Youden, 1950). recall: the largest threshold whose recall is
    at least `min_recall`. Candidates are the distinct scores of the split and, for cost, infinity
    (flag nothing); of equally good ones the lowest, which finds most. NaN where the split lacks
    what the rule needs: images of the class, or (youden) images that are not of it."""
    if rule not in RULES:
        raise UserError(unknown("rule", rule, list(RULES)))
    _check_costs(cost_miss, cost_false_alarm)
    if not 0 < min_recall <= 1:
        raise UserError(
            f"min_recall is a share above 0 and at most 1, such as 0.9; got {min_recall}"
        )
    score, is_positive, _ = _read_target(predictions, "val", positive)
    positives, negatives = is_positive.sum(), (~is_positive).sum()
    if positives == 0 or (rule == "youden" and negatives == 0):
        return np.nan
    candidates = np.append(np.unique(score), np.inf)
    found, alarms = (
        count_reaching(score[rows], candidates) for rows in (is_positive, ~is_positive)
    )
    read = _read(found, alarms, positives, negatives, cost_miss, cost_false_alarm)  # (T, 6)
    _, recall, specificity, f1, cost, _ = read.T
    if rule == "recall":
        return float(candidates[recall >= min_recall - 1e-12].max())
    value = {"f1": f1, "cost": -cost, "youden": recall + specificity - 1}[rule]
    if rule != "cost":
        candidates, value = candidates[:-1], value[:-1]
    return float(candidates[value >= value.max() - 1e-12].min())


def threshold_choice_table(
    predictions: pd.DataFrame,
    positive: str | None = None,
    cost_miss: float = 1.0,
    cost_false_alarm: float = 1.0,
    min_recall: float = 0.9,
    replicates: int = 1000,
    cluster=None,
) -> pd.DataFrame:
    """The thresholds that the rules choose on validation, and what they do on the test split: a row
    for 0.5 (the reference) and for each rule.

    Columns rule, threshold; precision, recall, specificity, f1, cost (per image) and flagged (share
    of all images), each with its 95 % bootstrap interval (recall_low, recall_high, ...); saved
    (cost at 0.5 minus cost, on the same replicates) with its interval; note. The intervals are for
    other test images at this threshold, without the uncertainty of the choice. A rule that finds
    no threshold has NaN and a note. cluster: as in `metrics_table`."""
    options = {
        "cost_miss": cost_miss,
        "cost_false_alarm": cost_false_alarm,
        "min_recall": min_recall,
    }
    thresholds = {"0.5": 0.5} | {
        rule: choose_threshold(predictions, rule, positive, **options) for rule in RULES
    }
    score, is_positive, name = _read_target(predictions, "test", positive)
    at = np.array(list(thresholds.values()))
    reach = score[:, None] >= at  # (N, T); nothing reaches NaN
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    weights = [np.ones((1, len(score))), *draw_counts(len(score), replicates, cluster=clusters)]
    read = np.concatenate(
        [_read(*_count(reach, is_positive, part), cost_miss, cost_false_alarm) for part in weights]
    )
    cost = read[:, :, [READINGS.index("cost")]]
    read = np.concatenate([read, cost[:, :1] - cost], axis=2)  # (1 + R, T, 7)
    value, replicate = read[0], read[1:]
    flat = replicate.reshape(len(replicate), value.size)
    low, high, _ = percentile_interval(flat, estimate=value.ravel())
    low, high = low.reshape(value.shape), high.reshape(value.shape)
    value[np.isnan(at)] = value[0, -1] = np.nan
    low[np.isnan(value)] = high[np.isnan(value)] = np.nan
    table = {"rule": list(thresholds), "threshold": at}
    for place, reading in enumerate((*READINGS, "saved")):
        table |= {
            reading: value[:, place],
            f"{reading}_low": low[:, place],
            f"{reading}_high": high[:, place],
        }
    return pd.DataFrame(
        {**table, "note": [_explain(t, reach[:, i], is_positive, name) for i, t in enumerate(at)]}
    )


def _check_costs(*costs: float) -> None:
    if not all(0 <= cost < np.inf for cost in costs) or not any(costs):
        raise UserError(
            "costs are finite numbers, not negative and not both 0; got cost_miss,"
            f" cost_false_alarm = {costs}"
        )


def _read_target(predictions, split, positive) -> tuple[np.ndarray, np.ndarray, str]:
    """Scores (N,) of one class, whether each sample is of it (N,), and its name."""
    scores = read_scores(predictions, split)
    target = one_target(scores.classes, positive)
    return scores.prob[:, target], scores.label == target, scores.classes[target]


def _count(
    reach: np.ndarray, is_positive: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Found, false alarms (R, T) and positives, negatives (R, 1) for each row of weights (R, N) and
    column of reach (N, T).
    """
    positives = (weights @ is_positive)[:, None]
    found, alarms = (
        weights @ (reach & is_positive[:, None]),
        weights @ (reach & ~is_positive[:, None]),
    )
    return found, alarms, positives, weights.sum(axis=1)[:, None] - positives


def _read(found, alarms, positives, negatives, cost_miss, cost_false_alarm) -> np.ndarray:
    """READINGS along a new last axis, from counts; NaN where there is nothing to count."""
    total, missed = positives + negatives, positives - found
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = (
            found / (found + alarms),
            found / positives,
            (negatives - alarms) / negatives,
            np.where(positives > 0, 2 * found / (found + alarms + positives), np.nan),
            (cost_miss * missed + cost_false_alarm * alarms) / total,
            (found + alarms) / total,
        )
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def _explain(threshold: float, reach: np.ndarray, is_positive: np.ndarray, name: str) -> str:
    if np.isnan(threshold):
        return f"validation holds no {name}, or nothing else"
    if not is_positive.any() or is_positive.all():
        return f"no {name} in test" if not is_positive.any() else f"only {name} in test"
    return "" if reach.any() else "flags nothing"
