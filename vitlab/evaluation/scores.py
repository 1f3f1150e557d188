"""The predictions of one split as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import check_predictions


@dataclass(frozen=True)
class Scores:
    """The predictions of one split as arrays. Class indices follow the order of `classes`."""

    classes: tuple[str, ...]
    label: np.ndarray  # (N,) class index
    pred: np.ndarray  # (N,) class index
    prob: np.ndarray  # (N, C)

    def take(self, rows: np.ndarray) -> Scores:
        """Some of the samples, by position or mask."""
        return Scores(self.classes, self.label[rows], self.pred[rows], self.prob[rows])


def select_split(predictions: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split; UserError that names the splits of the table when there are none."""
    rows = predictions[predictions["split"] == split]
    if rows.empty:
        there = sorted(predictions["split"].astype(str).unique())
        raise UserError(
            f"the predictions hold no sample of split {split!r}; they have"
            f" {', '.join(there) or 'no rows at all'}"
        )
    return rows


def read_scores(predictions: pd.DataFrame, split: str) -> Scores:
    """The checked predictions of one split as arrays."""
    classes = check_predictions(predictions)
    rows = select_split(predictions, split)
    index = pd.Index(classes)
    return Scores(
        classes=classes,
        label=index.get_indexer(rows["label"].astype(str)),
        pred=index.get_indexer(rows["pred"].astype(str)),
        prob=rows[[f"prob_{name}" for name in classes]].to_numpy(float),
    )


def target_classes(classes: tuple[str, ...], positive: str | None = None) -> list[int]:
    """Indices of the classes that a metric is about: `positive`; else the last of two classes; else
    all of them."""
    if positive is None:
        return [1] if len(classes) == 2 else list(range(len(classes)))
    if positive not in classes:
        raise UserError(unknown("class", positive, list(classes)))
    return [classes.index(positive)]
