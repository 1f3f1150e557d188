"""Images to be looked at, chosen by a rule: explanations of hand-picked images can show
anything.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.schema import check_predictions


def choose_examples(
    predictions: pd.DataFrame, each: int = 2, threshold: float = 0.5, split: str = "test"
) -> pd.DataFrame:
    """Up to `each` images that are sure and right, sure and wrong, and near the threshold, then one
    of each group.

    Sure is a high probability of the predicted class. Near the threshold: with two classes by the
    probability of the last one, with more by how little the likeliest class is ahead of the next.
    The one of a group has the group's median confidence. No image comes twice, and a kind that has
    no images (no mistakes, say) is left out. Columns: those of the predictions and kind,
    confidence. ValueError for a split without predictions, and for a threshold that is no
    probability."""
    classes = check_predictions(predictions)
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold={threshold} is no probability; write a number from 0 to 1")
    rows = predictions[predictions["split"] == split]
    if rows.empty:
        raise UserError(
            f"there are no predictions of the split {split!r}; it has"
            f" {', '.join(predictions['split'].unique())}"
        )
    prob = np.sort(rows[[f"prob_{name}" for name in classes]].to_numpy(float), axis=1)
    rows = rows.assign(confidence=prob[:, -1])
    last = rows[f"prob_{classes[-1]}"]
    distance = (
        (last - threshold).abs()
        if len(classes) == 2
        else pd.Series(prob[:, -1] - prob[:, -2], index=rows.index)
    )
    right = rows["label"] == rows["pred"]
    kinds = [
        rows[right].nlargest(each, "confidence").assign(kind="sure and right"),
        rows[~right].nlargest(each, "confidence").assign(kind="sure and wrong"),
        rows.loc[distance.nsmallest(each).index].assign(kind="near the threshold"),
    ]
    taken = set(pd.concat(kinds)["sample_id"])
    for group, part in rows.groupby("group"):
        part = part[~part["sample_id"].isin(taken)]
        middle = (part["confidence"] - part["confidence"].median()).abs().nsmallest(1).index
        kinds.append(part.loc[middle].assign(kind=f"typical {group}"))
    return pd.concat(kinds).drop_duplicates("sample_id").reset_index(drop=True)


def draw_findings(
    predictions: pd.DataFrame, count: int, seed: int = 0, split: str = "test"
) -> pd.DataFrame:
    """Up to `count` rightly predicted images drawn by `seed`, to test explanations on; with two
    classes, of the last one only.

    Of two classes the first is often the absence of what marks the last (no defect, no disease).
    Absence lies at no place, so no map can mark it. Where the model is never right, images are
    drawn from all of the split."""
    classes = check_predictions(predictions)
    rows = predictions[predictions["split"] == split]
    wanted = rows["label"] == rows["pred"]
    if len(classes) == 2:
        wanted &= rows["label"] == classes[-1]
    pool = rows[wanted] if wanted.any() else rows
    return pool.sample(min(count, len(pool)), random_state=seed)
