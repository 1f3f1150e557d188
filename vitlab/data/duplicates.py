"""Near-duplicates: pairs of images that look the same, the clusters that they form, and the test
images that have none in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array, triu
from scipy.sparse.csgraph import connected_components

from vitlab.data.reading import map_images
from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.schema import DataBundle

THUMBNAIL = 64  # pixels a side
FREQUENCIES = 16  # lowest ones kept along each side: 255 bits without the constant one
MAX_COSINE = 0.007  # see near_duplicate_table


def near_duplicate_table(
    data: DataBundle,
    max_distance: int = 16,
    *,
    embeddings: np.ndarray | None = None,
    max_cosine: float = MAX_COSINE,
) -> pd.DataFrame:
    """Pairs of images whose perceptual hashes differ in at most `max_distance` of 255 bits, the
    most alike first.

    Columns: sample_id_a, sample_id_b, distance, same_label, crosses_split. The hash is the DCT hash
    of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), with
    16 instead of 8 frequencies a side. It ignores blur, exposure and size, not flips and rotations.
    Unrelated images differ in about 128 bits.

    embeddings: (N, D), a vector for each row of `data.samples` (`vitlab.training.embed_images`).
    Pairs whose vectors have a cosine distance (1 - cosine, 0 to 2) of at most `max_cosine` then
    count too, and there are two more columns: cosine_distance, and found_by ("hash", "embedding" or
    "both"). Both distances are given for every pair. The default suits the vectors of
    efficientnet_lite0: a copy of an ELPV cell in another size or exposure is 0.003 to 0.008 away, a
    flipped one 0.014, but from 0.008 on half of the pairs are different cells of one type. Where
    images differ more, as photographs do, 0.05 finds flips as well. Look at the pairs before you
    trust a threshold."""
    hashes = hash_images(data)
    bits = hashes.shape[1]
    signs = np.where(hashes, 1, -1).astype(np.float32) / np.sqrt(bits, dtype=np.float32)
    # d different bits of D are a cosine distance of 2 d / D
    pairs = _find_close(signs, 2 * (max_distance + 0.5) / bits)
    if embeddings is not None:
        vectors = normalise_rows(embeddings, len(hashes))
        # float32 leaves copies 1e-7 apart
        pairs = np.unique(np.vstack([pairs, _find_close(vectors, max_cosine + 1e-6)]), axis=0)
    first, second = pairs.T
    ids, label, split = (
        data.samples[name].to_numpy(dtype=object) for name in ("sample_id", "label", "split")
    )
    table = pd.DataFrame({"sample_id_a": ids[first], "sample_id_b": ids[second]})
    table["distance"] = (hashes[first] != hashes[second]).sum(axis=1)
    if embeddings is not None:
        cosine = (vectors[first] * vectors[second]).sum(axis=1)
        table["cosine_distance"] = np.maximum(1 - cosine, 0).astype(float)
        by_hash = table["distance"] <= max_distance
        by_cosine = table["cosine_distance"] <= max_cosine
        table["found_by"] = np.select([by_hash & by_cosine, by_hash], ["both", "hash"], "embedding")
    table["same_label"] = label[first] == label[second]
    table["crosses_split"] = split[first] != split[second]
    return table.sort_values(["distance", "sample_id_a", "sample_id_b"], ignore_index=True)


def cluster_table(samples: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The clusters that near-duplicate pairs form: columns sample_id, cluster, size, splits; a row
    for each sample.

    cluster: the first sample_id in it, in alphabetical order; an image without a near-duplicate is
    its own cluster. splits: those of the cluster's images, such as "test train". Images linked by a
    chain of pairs are one cluster, even where its ends look less alike.

    >>> samples = pd.DataFrame({"sample_id": ["a", "b", "c"], "split": ["train", "test", "test"]})
    >>> pairs = pd.DataFrame({"sample_id_a": ["b"], "sample_id_b": ["a"]})
    >>> cluster_table(samples, pairs)["cluster"].tolist()
    ['a', 'a', 'c']
    """
    ids = pd.Index(samples["sample_id"])
    ends = [ids.get_indexer(pairs[column]) for column in ("sample_id_a", "sample_id_b")]
    for column, rows in zip(("sample_id_a", "sample_id_b"), ends, strict=True):
        if (rows < 0).any():
            strange = pairs[column].iloc[int((rows < 0).argmax())]
            raise UserError(f"{column} {strange!r} of the pairs is not among the samples")
    graph = coo_array((np.ones(len(pairs)), ends), shape=(len(ids), len(ids)))
    component = connected_components(graph, directed=False)[1]
    table = samples[["sample_id", "split"]].reset_index(drop=True)
    grouped = table.groupby(component)
    table["cluster"] = grouped["sample_id"].transform("min")
    table["size"] = grouped["sample_id"].transform("size")
    table["splits"] = grouped["split"].transform(lambda part: " ".join(sorted(set(part))))
    return table.drop(columns="split")


def cluster_test_images(data: DataBundle, split_by: str = "") -> pd.Series:
    """The cluster of each test image, with sample_ids as index: what evaluation resamples together.

    split_by: that of the run. Where it names a column (a patient, a module), images of one value
    are a cluster; otherwise near-duplicates are."""
    tested = replace(data, samples=data.split("test"))
    if split_by not in ("", "cluster"):
        return tested.samples.set_index("sample_id")[split_by]
    clusters = cluster_table(tested.samples, near_duplicate_table(tested))
    return clusters.set_index("sample_id")["cluster"]


def clean_test_ids(
    samples: pd.DataFrame, pairs: pd.DataFrame, against: Sequence[str] = ("train",)
) -> list[str]:
    """The sample_ids of the test images that are in no near-duplicate pair with an image of the
    splits in `against`.

    samples: sample_id and split, such as a run's splits.csv; pairs: of `near_duplicate_table`,
    whatever its splits were."""
    split = samples.set_index("sample_id")["split"]
    touched = set()
    for one, other in (("sample_id_a", "sample_id_b"), ("sample_id_b", "sample_id_a")):
        touched |= set(pairs.loc[pairs[other].map(split).isin(against).to_numpy(), one])
    test = samples.loc[samples["split"] == "test", "sample_id"]
    return test[~test.isin(touched)].tolist()


def hash_images(data: DataBundle) -> np.ndarray:
    """(N, 255) bits, the perceptual hash of each row of `data.samples`: which of the low
    frequencies are above the image's median one.
    """
    ids = data.samples["sample_id"].tolist()
    thumbnails = map_images(lambda name: _make_thumbnail(data.read(name)), ids, "comparing images")
    grey = np.stack(thumbnails).astype(np.float32)  # (N, 64, 64)
    frequencies = dctn(grey, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    frequencies = frequencies.reshape(len(grey), -1)[:, 1:]
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


def normalise_rows(embeddings: np.ndarray, rows: int) -> np.ndarray:
    """The vectors at length 1; UserError where there is not one finite, non-zero vector for each of
    `rows` samples.
    """
    vectors = np.asarray(embeddings, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise UserError(
            f"embeddings of shape {vectors.shape} do not fit {rows} samples; expected ({rows}, D)"
        )
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~np.isfinite(length[:, 0]) | (length[:, 0] == 0)
    if bad.any():
        raise UserError(
            f"{bad.sum()} embeddings are zero, NaN or infinite, the first in row {bad.argmax()}"
        )
    return vectors / length


def _make_thumbnail(image: Image.Image) -> np.ndarray:
    size = (THUMBNAIL, THUMBNAIL)
    return np.asarray(to_rgb(image).convert("L").resize(size, Image.Resampling.BILINEAR))


def _find_close(vectors: np.ndarray, max_distance: float) -> np.ndarray:
    """(pairs, 2): rows i < j of unit vectors (N, D) within this cosine distance."""
    from sklearn.neighbors import radius_neighbors_graph

    graph = radius_neighbors_graph(vectors, max_distance, mode="connectivity", metric="cosine")
    return np.stack(triu(graph, k=1).nonzero(), axis=1)
