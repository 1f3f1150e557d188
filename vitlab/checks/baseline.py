"""What a simple model reaches: logistic regression on features of a pretrained network, by
cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitlab.data.quality import FOLDS, cluster_table, predict_out_of_fold
from vitlab.data.sources import MIN_GROUPS
from vitlab.errors import UserError
from vitlab.evaluation.metrics import metrics_table
from vitlab.schema import DataBundle


@dataclass(frozen=True)
class Probe:
    """predictions: a predictions table of the images, each out of fold, in split test; with a
    column `cluster`; classes that are too rare are left out. metrics: their `metrics_table`.
    majority: the share of the largest class.
    """

    predictions: pd.DataFrame
    metrics: pd.DataFrame
    majority: float

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that the model knows, in the order of its columns."""
        names = [name for name in self.predictions if name.startswith("prob_")]
        return tuple(name.removeprefix("prob_") for name in names)

    def value(self, metric: str) -> tuple[float, float, float]:
        """Value, low, high of a metric."""
        row = self.metrics.set_index("metric").loc[metric]
        return float(row["value"]), float(row["low"]), float(row["high"])


def cluster_images(samples: pd.DataFrame, pairs: pd.DataFrame, group: str = "group") -> pd.Series:
    """The cluster of each image: near-duplicates, and images of one patient, module, or other value
    of the column `group`, where it has at least 10 values.

    >>> samples = pd.DataFrame({"sample_id": ["a", "b", "c"], "split": "test", "group": "one"})
    >>> pairs = pd.DataFrame({"sample_id_a": ["a"], "sample_id_b": ["b"]})
    >>> cluster_images(samples, pairs).tolist()
    ['a', 'a', 'c']
    """
    pairs = pairs[["sample_id_a", "sample_id_b"]]
    if samples[group].nunique() >= MIN_GROUPS:
        first = samples.groupby(group)["sample_id"].transform("first")
        links = pd.DataFrame({"sample_id_a": first, "sample_id_b": samples["sample_id"]})
        pairs = pd.concat([pairs, links])
    return cluster_table(samples, pairs)["cluster"]


def can_probe(data: DataBundle, cluster: pd.Series) -> bool:
    """Whether each class has enough clusters for a cross-validation."""
    return len(data.classes) > 1 and len(_common_classes(data, cluster)) == len(data.classes)


def _common_classes(data: DataBundle, cluster: pd.Series) -> tuple[str, ...]:
    sizes = pd.Series(np.asarray(cluster)).groupby(data.samples["label"].to_numpy()).nunique()
    return tuple(name for name in data.classes if sizes.get(name, 0) >= FOLDS)


def probe_data(
    data: DataBundle, embeddings: np.ndarray, cluster: pd.Series, seed: int = 0
) -> Probe:
    """The probe of a data set. Images of one cluster (near-duplicates, or a group) share a fold and
    are drawn together for the intervals. Classes with fewer than 5 clusters are left out.

    embeddings: (N, D), as from `vitlab.training.embed_images`; cluster: of each row of
    `data.samples`. UserError where fewer than two classes are left."""
    classes = _common_classes(data, cluster)
    if len(classes) < 2:
        raise UserError(
            f"{data.name} has too few images: a cross-validation needs two classes with {FOLDS}"
            " independent images each"
        )
    kept = data.samples["label"].isin(classes).to_numpy()
    samples = data.samples[kept].reset_index(drop=True)
    cluster = np.asarray(cluster)[kept]
    prob = predict_out_of_fold(embeddings[kept], samples["label"], cluster, seed)
    prob = prob[:, [sorted(classes).index(name) for name in classes]]
    predictions = predictions_of(samples, prob, classes).assign(cluster=cluster)
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
