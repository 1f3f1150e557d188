"""Clusters of near-duplicates: images that must stay on one side of a split, and test images that
have none in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vitlab.data.duplicates import near_duplicate_table
from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import SPLITS, DataBundle


def cluster_table(samples: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Which images hang together through near-duplicate pairs: columns sample_id, cluster, size,
    splits; a row a sample.

    cluster: the first sample_id, in alphabetical order, of those in it; an image without a
    near-duplicate is its own cluster. splits: the splits that the cluster's images lie in, such as
    "test train". Images that are linked by a chain of pairs are one cluster, even where its ends
    look less alike."""
    ids = samples["sample_id"].to_numpy(dtype=object)
    ends = [pd.Index(ids).get_indexer(pairs[column]) for column in ("sample_id_a", "sample_id_b")]
    for column, rows in zip(("sample_id_a", "sample_id_b"), ends, strict=True):
        if (rows < 0).any():
            raise UserError(
                f"{column} {pairs[column].iloc[int((rows < 0).argmax())]!r} of the pairs is not"
                " among the samples"
            )
    graph = coo_array((np.ones(len(pairs)), (ends[0], ends[1])), shape=(len(ids), len(ids)))
    component = connected_components(graph, directed=False)[1]
    table = pd.DataFrame({"sample_id": ids})
    grouped = table["sample_id"].groupby(component)
    table["cluster"], table["size"] = grouped.transform("min"), grouped.transform("size")
    splits = samples["split"].astype(str).groupby(component) if "split" in samples else None
    table["splits"] = (
        ""
        if splits is None
        else splits.transform(lambda part: " ".join(sorted(set(part)))).to_numpy()
    )
    return table


def cluster_test_images(data: DataBundle, split_by: str = "") -> pd.Series:
    """The cluster of each test image, with sample_ids as index: what evaluation has to draw
    together.

    split_by: that of the run. Where it names a column (a patient, a module), images of one value
    are a cluster, as other values are what the result should hold for; otherwise near-duplicates
    are."""
    tested = replace(data, samples=data.split("test"))
    if split_by not in ("", "cluster"):
        return tested.samples.set_index("sample_id")[split_by]
    return cluster_table(tested.samples, near_duplicate_table(tested)).set_index("sample_id")[
        "cluster"
    ]


def clean_test_ids(
    samples: pd.DataFrame, pairs: pd.DataFrame, against: Sequence[str] = ("train",)
) -> list[str]:
    """The sample_ids of the test images that are in no near-duplicate pair with an image of the
    splits in `against`.

    samples: sample_id and split, such as a run's splits.csv; pairs: of `near_duplicate_table`,
    whatever its splits were."""
    for name in against:
        if name not in SPLITS or name == "test":
            raise UserError(
                unknown("split to hold the test images against", name, ["train", "val"])
            )
    split = samples.set_index("sample_id")["split"]
    touched = set()
    for one, other in (("sample_id_a", "sample_id_b"), ("sample_id_b", "sample_id_a")):
        touched |= set(pairs.loc[pairs[other].map(split).isin(against).to_numpy(), one])
    test = samples.loc[samples["split"] == "test", "sample_id"]
    return test[~test.isin(touched)].tolist()
