"""What a simple model reaches: logistic regression on features of a pretrained network, by
cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitlab.data.quality import FOLDS, predict_out_of_fold
from vitlab.errors import UserError
from vitlab.evaluation.metrics import metrics_table
from vitlab.schema import DataBundle


@dataclass(frozen=True)
class Probe:
    """predictions: a predictions table of all images, each out of fold, in split test; with a
    column `cluster`. metrics: their `metrics_table`. majority: the share of the largest class.
    """

    predictions: pd.DataFrame
    metrics: pd.DataFrame
    majority: float

    def value(self, metric: str) -> tuple[float, float, float]:
        """Value, low, high of a metric."""
        row = self.metrics.set_index("metric").loc[metric]
        return float(row["value"]), float(row["low"]), float(row["high"])


def can_probe(data: DataBundle, cluster: pd.Series) -> bool:
    """Whether each class has enough clusters for a cross-validation."""
    sizes = pd.Series(np.asarray(cluster)).groupby(data.samples["label"].to_numpy()).nunique()
    return bool((sizes >= FOLDS).all() and len(sizes) > 1)


def probe_data(
    data: DataBundle, embeddings: np.ndarray, cluster: pd.Series, seed: int = 0
) -> Probe:
    """The probe of a data set. Images of one cluster (near-duplicates, or a group) share a fold and
    are drawn together for the intervals.

    embeddings: (N, D), as from `vitlab.training.embed_images`; cluster: of each row of
    `data.samples`. UserError where a class has fewer than 5 clusters."""
    samples = data.samples.reset_index(drop=True)
    cluster = pd.Series(np.asarray(cluster), index=samples.index)
    sizes = cluster.groupby(samples["label"]).nunique()
    few = sizes[sizes < FOLDS]
    if len(few):
        raise UserError(
            f"{data.name} has only {few.iloc[0]} independent images of class {few.index[0]!r};"
            f" {FOLDS} are needed for a cross-validation"
        )
    prob = predict_out_of_fold(embeddings, samples["label"], cluster, seed)
    prob = prob[:, [sorted(data.classes).index(name) for name in data.classes]]
    predictions = predictions_of(samples, prob, data.classes).assign(cluster=cluster)
    majority = samples["label"].value_counts(normalize=True).iloc[0]
    return Probe(predictions, metrics_table(predictions), float(majority))


def predictions_of(samples: pd.DataFrame, prob: np.ndarray, classes: tuple) -> pd.DataFrame:
    """A predictions table of these rows, all in split test, from probabilities (N, classes)."""
    table = samples[["sample_id", "group", "label"]].assign(split="test")
    table["pred"] = np.array(classes)[prob.argmax(axis=1)]
    logits = np.log(np.maximum(prob, 1e-12))
    for number, name in enumerate(classes):
        table[f"logit_{name}"], table[f"prob_{name}"] = logits[:, number], prob[:, number]
    return table
