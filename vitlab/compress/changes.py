"""What compression changes: a model before and after, on the same images, as a whole, by class, by
group and image by image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from vitlab.evaluation.inference import bootstrap, percentile_interval
from vitlab.evaluation.pairwise import read_pair
from vitlab.evaluation.scores import Scores
from vitlab.evaluation.slices import MIN_IMAGES, describe_few, split_slices

NAMES = ("before", "after")
ROUNDING = 1e-3  # of the largest logit: what the gate of an export allows


def change_table(
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
    right = np.stack([_find_right(scores_before), _find_right(scores_after)])  # (2, N)
    parts = split_slices(before, by)
    everything = np.ones(len(rows), dtype=bool)
    table = []
    for (column, name), inside in {("", "all"): everything, **parts}.items():
        row = {"column": column, "slice": name, "n": int(inside.sum()), "note": ""}
        if column and inside.sum() < MIN_IMAGES:
            row["note"] = describe_few(inside)
        else:
            row |= _measure_change(right[:, inside], replicates)
        table.append(row)
    return pd.DataFrame(table)


def changed_images(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Test images right before and wrong after ("lost"), then those wrong before and right after
    ("gained").

    Columns: kind, sample_id, group, label, pred_before, pred_after, prob_before, prob_after (of the
    true class), change. Of each kind, the largest changes come first."""
    scores_before, scores_after, rows = read_pair(before, after, NAMES, "test")
    table = rows[["sample_id", "group", "label"]].reset_index(drop=True)
    classes, images = np.array(scores_before.classes), np.arange(len(rows))
    table["pred_before"] = classes[scores_before.pred]
    table["pred_after"] = classes[scores_after.pred]
    table["prob_before"] = scores_before.prob[images, scores_before.label]
    table["prob_after"] = scores_after.prob[images, scores_after.label]
    table["change"] = table["prob_after"] - table["prob_before"]
    gained = _find_right(scores_after) - _find_right(scores_before)  # (N,) of -1, 0, 1
    table.insert(0, "kind", np.select([gained < 0, gained > 0], ["lost", "gained"], ""))
    lost = table[gained < 0].sort_values("change", kind="stable")
    won = table[gained > 0].sort_values("change", ascending=False, kind="stable")
    return pd.concat([lost, won], ignore_index=True)


def measure_agreement(before: pd.DataFrame, after: pd.DataFrame, split: str = "test") -> float:
    """Share of the images on which both predict the same class, right or wrong."""
    scores_before, scores_after, _ = read_pair(before, after, NAMES, split)
    return float(np.mean(scores_before.pred == scores_after.pred))


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
    gained = _find_right(scores_after) - _find_right(scores_before)
    return score_test(gained, scores_before.label, margin)


def score_test(change: np.ndarray, label: np.ndarray, margin: float) -> float:
    """The p value of `loss_p_value`. change: (N,) of -1 (lost), 0, 1 (gained); label: (N,)."""
    parts = [change[label == one] for one in np.unique(label)]
    count = len(parts)
    in_one = min(count * margin, 0.5)
    allocations = [np.full(count, margin), *(in_one * np.eye(count))]  # the loss of each class
    errors = []
    for losses in allocations:
        variances = [_null_variance(part, loss) for part, loss in zip(parts, losses, strict=True)]
        errors.append(np.sqrt(sum(variances)) / count)
    mean = np.mean([part.mean() for part in parts])
    return float(norm.sf((mean + margin) / max(errors)))


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


def _find_right(scores: Scores) -> np.ndarray:
    """Whether each prediction is right: (N,) of ones and zeros."""
    return (scores.pred == scores.label).astype(int)


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
