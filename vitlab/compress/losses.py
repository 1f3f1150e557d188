"""What was lost where: a model before and after compression on the same images, by class, by group,
and image by image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, percentile_interval
from vitlab.evaluation.calibration import binned_error, confidence_of, wilson_interval
from vitlab.evaluation.paired import read_pair
from vitlab.evaluation.scores import Scores
from vitlab.evaluation.slices import MIN_IMAGES, describe_few, split_slices

NAMES = ("before", "after")


def drop_table(
    before: pd.DataFrame,
    after: pd.DataFrame,
    by: Sequence[str] = ("label", "group"),
    split: str = "test",
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    least: int = MIN_IMAGES,
) -> pd.DataFrame:
    """Change of the accuracy, of all images and of each value of the columns `by`, with paired
    bootstrap intervals.

    before, after: predictions tables of the same images, else ValueError. The accuracy within one
    class is its recall. Columns: column, slice, n, before, after, change (after minus before), low,
    high, lost and gained (images right only before, or only after), note. Where no image changed
    sides, every replicate is 0; the ends are then those of a share of which none was seen among n
    (Clopper and Pearson, 1934). Slices of fewer than `least` images have no numbers, and the note
    says so."""
    if isinstance(by, str):
        raise UserError(f"by takes a list of columns: write by=[{by!r}]")
    scores_before, scores_after, rows = read_pair(before, after, NAMES, split)
    # (2, N)
    right = np.stack(
        [scores.pred == scores.label for scores in (scores_before, scores_after)]
    ).astype(float)
    _, parts = split_slices(before, by, split)
    everything = np.ones(len(rows), dtype=bool)
    table = []
    for (column, name), inside in {("", "all"): everything, **parts}.items():
        row = {"column": column, "slice": name, "n": int(inside.sum())}
        few = column and inside.sum() < least
        found = dict.fromkeys(
            ("before", "after", "change", "low", "high", "lost", "gained"), np.nan
        )
        found = found if few else _measure_change(right[:, inside], replicates, seed, confidence)
        table.append(row | found | {"note": describe_few(inside) if few else ""})
    return pd.DataFrame(table)


def _measure_change(
    right: np.ndarray, replicates: int, seed: int, confidence: float
) -> dict[str, float]:
    """right: (2, n) of ones and zeros."""
    change = right[1] - right[0]  # (n,) of -1, 0, 1
    count = len(change)
    drawn = bootstrap(lambda weights: (weights @ change)[:, None] / count, count, replicates, seed)
    (low,), (high,), _ = percentile_interval(drawn, confidence)
    if not change.any():
        high = 1 - ((1 - confidence) / 2) ** (1 / count)
        low = -high
    shares = {
        "before": right[0].mean(),
        "after": right[1].mean(),
        "change": change.mean(),
        "low": low,
        "high": high,
    }
    return shares | {"lost": int((change < 0).sum()), "gained": int((change > 0).sum())}


def lost_images(before: pd.DataFrame, after: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Images right before and wrong after ("lost"), then those wrong before and right after
    ("gained").

    Columns: kind, sample_id, group, label, pred_before, pred_after, prob_before, prob_after (of the
    true class), change. Of each kind, those whose true class has lost, or won, most probability
    come first."""
    scores_before, scores_after, rows = read_pair(before, after, NAMES, split)
    classes = np.array(scores_before.classes)
    own = [
        np.take_along_axis(scores.prob, scores.label[:, None], axis=1)[:, 0]
        for scores in (scores_before, scores_after)
    ]
    table = rows[["sample_id", "group", "label"]].reset_index(drop=True)
    table["pred_before"], table["pred_after"] = (
        classes[scores_before.pred],
        classes[scores_after.pred],
    )
    table["prob_before"], table["prob_after"] = own
    table["change"] = own[1] - own[0]
    right = [scores.pred == scores.label for scores in (scores_before, scores_after)]
    lost = table[right[0] & ~right[1]].sort_values("change", kind="stable")
    gained = table[~right[0] & right[1]].sort_values("change", ascending=False, kind="stable")
    found = pd.concat([lost.assign(kind="lost"), gained.assign(kind="gained")], ignore_index=True)
    return found[["kind", *table.columns]]


def measure_agreement(
    before: pd.DataFrame, after: pd.DataFrame, split: str = "test"
) -> tuple[float, float, float]:
    """Share of the images on which both give the same class, right or wrong, with its 95 % Wilson
    interval.
    """
    scores_before, scores_after, rows = read_pair(before, after, NAMES, split)
    share = np.mean(scores_before.pred == scores_after.pred)
    low, high = wilson_interval(share, np.array(len(rows)))
    return float(share), float(low), float(high)


def loss_p_value(
    before: pd.DataFrame, after: pd.DataFrame, margin: float, split: str = "test"
) -> float:
    """One-sided p value of a loss of balanced accuracy of at least `margin`; a small one rules it
    out.

    A score test of non-inferiority on paired images (Tango, 1998, Statistics in Medicine 17:891)
    with the classes as strata. The variance is that of a model that loses the margin, in all
    classes or in one, whichever is larger: few images without a change are not proof. Images count
    as independent."""
    scores_before, scores_after, _ = read_pair(before, after, NAMES, split)
    right = [(scores.pred == scores.label).astype(int) for scores in (scores_before, scores_after)]
    return _score_test(right[1] - right[0], scores_before.label, margin)


def _score_test(change: np.ndarray, label: np.ndarray, margin: float) -> float:
    """change: (N,) of -1 (lost), 0, 1 (gained); label: (N,)."""
    parts = [change[label == one] for one in np.unique(label)]
    count = len(parts)
    in_one = min(count * margin, 0.5)
    allocations = [np.full(count, margin), *(in_one * np.eye(count))]  # the loss of each class
    error = max(
        np.sqrt(sum(_null_variance(part, loss) for part, loss in zip(parts, losses, strict=True)))
        for losses in allocations
    )
    mean = np.mean([part.mean() for part in parts])
    return float(norm.sf((mean + margin) / (error / count)))


def _null_variance(change: np.ndarray, loss: float) -> float:
    """Variance of the mean change where its true value is -loss: the maximum likelihood under this
    constraint.
    """
    n, lost, gained = len(change), (change < 0).sum(), (change > 0).sum()
    half = (lost + gained) * (1 - loss) - 2 * loss * (n - lost)
    share_gained = (half + np.sqrt(half**2 + 8 * n * gained * loss * (1 - loss))) / (4 * n)
    return (2 * share_gained + loss - loss**2) / n


def measure_miscalibration(
    before: pd.DataFrame,
    after: pd.DataFrame,
    split: str = "test",
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Expected calibration error after, and its change with a paired bootstrap interval: ece,
    change, low, high.

    Replicates are shifted to have the change as their mean: drawing images again adds to either
    error, and not equally."""
    pair = read_pair(before, after, NAMES, split)[:2]
    measures = [_prepare_error(scores) for scores in pair]
    count = len(pair[0].label)

    def measure(weights: np.ndarray) -> np.ndarray:
        return (measures[1](weights) - measures[0](weights))[:, None]

    once = np.ones((1, count))
    change = float(measure(once)[0, 0])
    drawn = bootstrap(measure, count, replicates, seed)
    (low,), (high,), _ = percentile_interval(
        drawn - drawn.mean() + change if len(drawn) else drawn, confidence
    )
    return {
        "ece": float(measures[1](once)[0]),
        "change": change,
        "low": float(low),
        "high": float(high),
    }


def _prepare_error(scores: Scores):
    probability, hit = confidence_of(scores)
    return lambda weights: binned_error(probability, hit, weights)
