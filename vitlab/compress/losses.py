"""What compression changes: a model before and after, on the same images, as a whole, by class, by
group and image by image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from vitlab.evaluation.bootstrap import bootstrap, percentile_interval
from vitlab.evaluation.calibration import binned_error
from vitlab.evaluation.inference import wilson_interval
from vitlab.evaluation.pairwise import read_pair
from vitlab.evaluation.scores import Scores
from vitlab.evaluation.slices import MIN_IMAGES, describe_few, split_slices

NAMES = ("before", "after")
ROUNDING = 1e-3  # of the largest logit: what the gate of an export allows


def drop_table(
    before: pd.DataFrame,
    after: pd.DataFrame,
    by: Sequence[str] = ("label", "group"),
    replicates: int = 1000,
) -> pd.DataFrame:
    """Change of the accuracy on the test split, of all images and of each value of the columns
    `by`, with paired 95 % bootstrap intervals.

    before, after: predictions tables of the same images. The accuracy within one class is its
    recall. Columns: column, slice, n, before, after, change (after minus before), low, high, lost
    and gained (images right only before, or only after), note. Where no image is lost or gained,
    the ends are those of a share of which none was seen among n (Clopper and Pearson, 1934). Slices
    of fewer than 10 images have no numbers, and the note says so."""
    scores_before, scores_after, rows = read_pair(before, after, NAMES, "test")
    right = _find_right(scores_before, scores_after)
    parts = split_slices(before, by)
    everything = np.ones(len(rows), dtype=bool)
    table = []
    for (column, name), inside in {("", "all"): everything, **parts}.items():
        row = {"column": column, "slice": name, "n": int(inside.sum())}
        few = column and inside.sum() < MIN_IMAGES
        if not few:
            row |= _measure_change(right[:, inside], replicates)
        table.append(row | {"note": describe_few(inside) if few else ""})
    return pd.DataFrame(table)


def lost_images(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Test images right before and wrong after ("lost"), then those wrong before and right after
    ("gained").

    Columns: kind, sample_id, group, label, pred_before, pred_after, prob_before, prob_after (of the
    true class), change. Of each kind, the largest changes come first."""
    scores_before, scores_after, rows = read_pair(before, after, NAMES, "test")
    classes = np.array(scores_before.classes)
    table = rows[["sample_id", "group", "label"]].reset_index(drop=True)
    for name, scores in zip(NAMES, (scores_before, scores_after), strict=True):
        table[f"pred_{name}"] = classes[scores.pred]
    for name, scores in zip(NAMES, (scores_before, scores_after), strict=True):
        table[f"prob_{name}"] = scores.prob[np.arange(len(rows)), scores.label]
    table["change"] = table["prob_after"] - table["prob_before"]
    right = _find_right(scores_before, scores_after)
    lost = table[right[0] > right[1]].sort_values("change", kind="stable")
    gained = table[right[0] < right[1]].sort_values("change", ascending=False, kind="stable")
    found = pd.concat([lost.assign(kind="lost"), gained.assign(kind="gained")], ignore_index=True)
    return found[["kind", *table.columns]]


def measure_agreement(
    before: pd.DataFrame, after: pd.DataFrame, split: str = "test"
) -> tuple[float, float, float]:
    """Share of the images on which both predict the same class, right or wrong, with its 95 %
    Wilson interval.
    """
    scores_before, scores_after, rows = read_pair(before, after, NAMES, split)
    share = np.mean(scores_before.pred == scores_after.pred)
    low, high = wilson_interval(share, np.array(len(rows)))
    return float(share), float(low), float(high)


def measure_miscalibration(
    before: pd.DataFrame, after: pd.DataFrame, split: str = "test", replicates: int = 1000
) -> dict[str, float]:
    """Expected calibration error after, and its change with a paired 95 % bootstrap interval: ece,
    change, low, high.

    Replicates are shifted to have the change as their mean, because resampling inflates both errors
    by different amounts."""
    first, second = (
        (scores.confidence, scores.right) for scores in read_pair(before, after, NAMES, split)[:2]
    )
    count = len(first[0])

    def measure(weights: np.ndarray) -> np.ndarray:
        return (binned_error(*second, weights) - binned_error(*first, weights))[:, None]

    once = np.ones((1, count))
    change = float(measure(once)[0, 0])
    drawn = bootstrap(measure, count, replicates)
    if len(drawn):
        drawn = drawn - drawn.mean() + change
    (low,), (high,), _ = percentile_interval(drawn)
    ece = float(binned_error(*second, once)[0])
    return {"ece": ece, "change": change, "low": float(low), "high": float(high)}


def loss_p_value(
    before: pd.DataFrame, after: pd.DataFrame, margin: float, split: str = "test"
) -> float:
    """One-sided p value of a loss of balanced accuracy of at least `margin`; a small one rules it
    out.

    A score test of non-inferiority on paired images (Tango, 1998, Statistics in Medicine 17:891)
    with the classes as strata. The variance is that of a model that loses the margin, in all
    classes or in one, whichever is larger: few images without a change are not proof. Images count
    as independent. 0 where all logits are the same up to rounding, as those of a float ONNX file:
    that is the same model, and needs no sample of images."""
    scores_before, scores_after, _ = read_pair(before, after, NAMES, split)
    if _have_same_logits(before, after, split):
        return 0.0
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


def _have_same_logits(before: pd.DataFrame, after: pd.DataFrame, split: str) -> bool:
    first, second = (
        table[table["split"] == split].set_index("sample_id").filter(regex="^logit_")
        for table in (before, after)
    )
    difference = (first - second.loc[first.index]).abs().to_numpy().max()
    return bool(difference <= ROUNDING * first.abs().to_numpy().max())


def _find_right(before: Scores, after: Scores) -> np.ndarray:
    """Whether each prediction is right: (2, N) of ones and zeros."""
    return np.stack([scores.pred == scores.label for scores in (before, after)]).astype(float)


def _measure_change(right: np.ndarray, replicates: int) -> dict[str, float]:
    """right: (2, n) of ones and zeros."""
    change = right[1] - right[0]  # (n,) of -1, 0, 1
    count = len(change)
    drawn = bootstrap(lambda weights: (weights @ change)[:, None] / count, count, replicates)
    (low,), (high,), _ = percentile_interval(drawn)
    if not change.any():
        high = 1 - 0.025 ** (1 / count)
        low = -high
    found = {"before": right[0].mean(), "after": right[1].mean(), "change": change.mean()}
    found |= {"low": low, "high": high}
    return found | {"lost": int((change < 0).sum()), "gained": int((change > 0).sum())}
