"""The predictions of one split as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.schema import check_predictions


@dataclass(frozen=True)
class Scores:
    """The predictions of one split as arrays. Class indices follow the order of `classes`.

    cluster: number of each image's cluster, from 0 on. None: each image is independent."""

    classes: tuple[str, ...]
    label: np.ndarray  # (N,) class index
    pred: np.ndarray  # (N,) class index
    prob: np.ndarray  # (N, C)
    cluster: np.ndarray | None = None  # (N,)

    @property
    def units(self) -> int:
        """Number of independent images, or of clusters."""
        return len(self.label) if self.cluster is None else int(self.cluster.max()) + 1

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is correct (N,)."""
        return self.pred == self.label

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class (N,)."""
        return np.take_along_axis(self.prob, self.pred[:, None], axis=1)[:, 0]

    @property
    def label_prob(self) -> np.ndarray:
        """Probability of the true class (N,)."""
        return np.take_along_axis(self.prob, self.label[:, None], axis=1)[:, 0]

    def take(self, rows: np.ndarray) -> Scores:
        """Some of the images, by position or mask."""
        cluster = self.cluster
        if cluster is not None:
            cluster = np.unique(cluster[rows], return_inverse=True)[1]
        return Scores(self.classes, self.label[rows], self.pred[rows], self.prob[rows], cluster)


def select_split(predictions: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one split; UserError that lists the splits of the table if there are none."""
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
        cluster=number_clusters(rows),
    )


def number_clusters(rows: pd.DataFrame) -> np.ndarray | None:
    """Cluster numbers (N,) from the column `cluster`; None without this column.

    An image without a cluster (None, NaN) is a cluster of its own."""
    if "cluster" not in rows:
        return None
    numbers, names = pd.factorize(rows["cluster"])
    alone = numbers < 0
    numbers[alone] = len(names) + np.arange(alone.sum())
    return numbers


def target_classes(classes: tuple[str, ...]) -> list[int]:
    """Indices of the classes that a metric is about: the last of two, or all of more than two."""
    return [1] if len(classes) == 2 else list(range(len(classes)))
