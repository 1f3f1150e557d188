"""Images to look at, chosen by a rule: explanations of hand-picked images can show anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.scores import read_scores, select_split
from vitlab.schema import check_predictions


def choose_examples(
    predictions: pd.DataFrame, each: int = 2, threshold: float = 0.5
) -> pd.DataFrame:
    """Up to `each` test images of each kind: sure and right, sure and wrong, near the threshold;
    then one of each group.

    Sure means a high probability of the predicted class. Near the threshold: with two classes by
    the probability of the last one, with more by the lead of the most probable class. The one of a
    group has the group's median confidence. No image comes twice; a kind without images is left
    out. Columns: those of the predictions, kind, confidence."""
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold={threshold} is not a probability; write a number from 0 to 1")
    scores = read_scores(predictions, "test")
    rows = select_split(predictions, "test").assign(confidence=scores.confidence)
    if len(scores.classes) == 2:
        distance = pd.Series(np.abs(scores.prob[:, 1] - threshold), index=rows.index)
    else:
        ordered = np.sort(scores.prob, axis=1)
        distance = pd.Series(ordered[:, -1] - ordered[:, -2], index=rows.index)
    kinds = [
        rows[scores.right].nlargest(each, "confidence").assign(kind="sure and right"),
        rows[~scores.right].nlargest(each, "confidence").assign(kind="sure and wrong"),
        rows.loc[distance.nsmallest(each).index].assign(kind="near the threshold"),
    ]
    taken = set(pd.concat(kinds)["sample_id"])
    for group, part in rows.groupby("group"):
        part = part[~part["sample_id"].isin(taken)]
        middle = (part["confidence"] - part["confidence"].median()).abs().nsmallest(1).index
        kinds.append(part.loc[middle].assign(kind=f"typical {group}"))
    return pd.concat(kinds).drop_duplicates("sample_id").reset_index(drop=True)


def draw_findings(predictions: pd.DataFrame, count: int, seed: int = 0) -> pd.DataFrame:
    """Up to `count` correctly predicted test images, drawn at random, to test explanations on; with
    two classes, of the last one only.

    Of two classes the first is often the absence of what marks the last (no defect, no disease),
    and no map can mark an absence. If no prediction is correct, images are drawn from the whole
    split."""
    classes = check_predictions(predictions)
    rows = select_split(predictions, "test")
    wanted = rows["label"] == rows["pred"]
    if len(classes) == 2:
        wanted &= rows["label"] == classes[-1]
    pool = rows[wanted] if wanted.any() else rows
    return pool.sample(min(count, len(pool)), random_state=seed)


def mistakes_table(predictions: pd.DataFrame, n: int = 12) -> pd.DataFrame:
    """The n most confident mistakes on the test split: columns sample_id, group, label, pred,
    confidence (the probability of the wrong class)."""
    scores = read_scores(predictions, "test")
    rows = select_split(predictions, "test").assign(confidence=scores.confidence)
    wrong = rows.loc[~scores.right, ["sample_id", "group", "label", "pred", "confidence"]]
    ordered = wrong.sort_values("confidence", ascending=False, kind="stable")
    return ordered.head(n).reset_index(drop=True)


def neighbour_table(
    vectors: np.ndarray, samples: pd.DataFrame, sample_ids: Sequence[str], count: int = 3
) -> pd.DataFrame:
    """The images whose vectors are nearest to those of some images, nearest first: columns
    sample_id, neighbour, label (of the neighbour), distance (cosine, 0 to 2).

    vectors: (N, D), a row for each of `samples`. The image itself is left out, a copy of it is not.
    Neighbours look alike to the network that made the vectors; they are not the reason for a
    prediction.

    >>> samples = pd.DataFrame({"sample_id": ["a", "b", "c"], "label": ["x", "x", "y"]})
    >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> neighbour_table(vectors, samples, ["c"], count=1)["neighbour"].tolist()
    ['b']
    """
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    rows = pd.Index(samples["sample_id"]).get_indexer(sample_ids)
    if (rows < 0).any():
        missing = np.asarray(sample_ids)[rows < 0][0]
        raise UserError(f"'{missing}' is not a sample_id of the table")
    distance = 1 - vectors[rows] @ vectors.T
    distance[np.arange(len(rows)), rows] = np.inf
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :count]
    table = samples.iloc[nearest.ravel()][["sample_id", "label"]].reset_index(drop=True)
    table = table.rename(columns={"sample_id": "neighbour"})
    table.insert(0, "sample_id", np.repeat(np.asarray(sample_ids), nearest.shape[1]))
    return table.assign(distance=np.take_along_axis(distance, nearest, axis=1).ravel())
