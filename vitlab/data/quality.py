"""What is in the images, and what may be wrong with them: near-duplicates and their clusters;
cleanvision for the pixels, cleanlab for outliers and labels.

cleanvision's Imagelab and cleanlab's Datalab want all images as files or as a `datasets` set, so
their measures are called image by image; the result is equal. cleanlab's own cross-validation would
put copies of an image into different folds, so the out-of-fold predictions are made here."""

from __future__ import annotations

import contextlib
import io
import warnings
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
UNRELATED_BITS = 128  # of 255, in which the hashes of unrelated images differ
MAX_COSINE = 0.007  # see near_duplicate_table
PIXEL_ISSUES = ("dark", "light", "blurry", "low_information", "odd_size", "odd_aspect_ratio")
ISSUES = (*PIXEL_ISSUES, "near_duplicate", "outlier", "wrong_label")
FOLDS = 5
NEIGHBOURS = 10  # whose mean distance shows an outlier
# C of the logistic regression; of 1e-4, 1e-3 and 1e-2 the most accurate out of fold on ELPV
REGULARISATION = 0.01


def image_table(data: DataBundle) -> pd.DataFrame:
    """One row for each image: sample_id; width and height in pixels; mean and std of its grey
    values in 0..1.
    """

    def measure(sample_id: str) -> tuple:
        image = data.read(sample_id)
        grey = np.asarray(to_rgb(image).convert("L")) / 255
        return sample_id, image.width, image.height, grey.mean(), grey.std()

    rows = map_images(measure, data.samples["sample_id"].tolist(), "measuring images")
    return pd.DataFrame(rows, columns=["sample_id", "width", "height", "mean", "std"])


# near-duplicates


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
    "both"). The default suits efficientnet_lite0 and images that are all similar, as cells of one
    type are; for photographs, 0.05 finds flips as well. Look at the pairs before you trust it."""
    hashes = _hash_images(data)
    bits = hashes.shape[1]
    signs = np.where(hashes, 1, -1).astype(np.float32) / np.sqrt(bits, dtype=np.float32)
    # d different bits of D are a cosine distance of 2 d / D
    pairs = find_close(signs, 2 * (max_distance + 0.5) / bits)
    if embeddings is not None:
        vectors = _normalise_rows(embeddings, len(hashes))
        # float32 leaves copies 1e-7 apart
        pairs = np.unique(np.vstack([pairs, find_close(vectors, max_cosine + 1e-6)]), axis=0)
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
    ends = np.stack([ids.get_indexer(pairs[name]) for name in ("sample_id_a", "sample_id_b")])
    if (ends < 0).any():
        raise UserError("the pairs hold sample_ids that are not among the samples")
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

    A cluster is a value of the column that the run was split by, or of the data set's
    `group_column`; where there is neither, near-duplicates form clusters."""
    tested = replace(data, samples=data.split("test"))
    column = split_by if split_by not in ("", "cluster", "image") else data.group_column
    if column:
        return tested.samples.set_index("sample_id")[column]
    clusters = cluster_table(tested.samples, near_duplicate_table(tested))
    return clusters.set_index("sample_id")["cluster"]


def clean_test_ids(samples: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """The sample_ids of the test images that are in no near-duplicate pair with a training image.

    samples: sample_id and split, such as a run's splits.csv; pairs: of `near_duplicate_table`,
    whatever its splits were."""
    split = samples.set_index("sample_id")["split"]
    touched = set()
    for one, other in (("sample_id_a", "sample_id_b"), ("sample_id_b", "sample_id_a")):
        touched |= set(pairs.loc[(pairs[other].map(split) == "train").to_numpy(), one])
    test = samples.loc[samples["split"] == "test", "sample_id"]
    return test[~test.isin(touched)].tolist()


def find_close(vectors: np.ndarray, max_distance: float) -> np.ndarray:
    """(pairs, 2): rows i < j of unit vectors (N, D) within this cosine distance."""
    import sklearn
    from sklearn.neighbors import radius_neighbors_graph

    with sklearn.config_context(working_memory=128):  # MB; the default of 1,024 is no faster
        graph = radius_neighbors_graph(vectors, max_distance, mode="connectivity", metric="cosine")
    return np.stack(triu(graph, k=1).nonzero(), axis=1)


def _hash_images(data: DataBundle) -> np.ndarray:
    """(N, 255) bits, the perceptual hash of each row of `data.samples`: which of the low
    frequencies are above the image's median one.
    """
    size = (THUMBNAIL, THUMBNAIL)

    def shrink(sample_id: str) -> np.ndarray:
        image = to_rgb(data.read(sample_id)).convert("L")
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

    thumbnails = map_images(shrink, data.samples["sample_id"].tolist(), "comparing images")
    grey = np.stack(thumbnails).astype(np.float32)  # (N, 64, 64)
    frequencies = dctn(grey, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    frequencies = frequencies.reshape(len(grey), -1)[:, 1:]
    return frequencies > np.median(frequencies, axis=1, keepdims=True)


def _normalise_rows(embeddings: np.ndarray, rows: int) -> np.ndarray:
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


# possible issues of each image


def quality_table(
    data: DataBundle, embeddings: np.ndarray, pairs: pd.DataFrame, seed: int = 0
) -> pd.DataFrame:
    """One row for each of ISSUES and each image: issue, sample_id, label, split, score from 0 (bad)
    to 1 (good), flagged, suggested.

    embeddings: (N, D), a vector for each row of `data.samples`; pairs: of `near_duplicate_table`.

    dark, light, blurry, low_information, odd_size, odd_aspect_ratio: scores and thresholds of
    cleanvision. near_duplicate: the distance to the nearest partner in `pairs`, bits as a part of
    128, cosine distance as it is; 1 without a partner, flagged with one. outlier: cleanlab's score
    from the mean distance to the 10 nearest neighbours in the space of `embeddings`. wrong_label:
    cleanlab's confident learning (arXiv 1911.00068) from out-of-fold predictions of a logistic
    regression on `embeddings`; `suggested` is the class that it prefers. Near-duplicates share a
    fold, so that no copy of an image confirms its label. An image without a row for an issue was
    not scored: labels of classes with fewer than 5 images, outliers among 10 images or fewer."""
    samples = data.samples.reset_index(drop=True)
    vectors = _normalise_rows(embeddings, len(samples))
    scores = _score_pixels(data)
    scores["near_duplicate"] = _score_nearness(samples, pairs)
    scores["outlier"] = _score_outliers(samples, vectors)
    scores["wrong_label"] = _score_labels(
        samples, vectors, cluster_table(samples, pairs)["cluster"], seed
    )
    tables = []
    for issue in ISSUES:
        found = samples[["sample_id", "label", "split"]].join(scores[issue], how="inner")
        found.insert(0, "issue", issue)
        tables.append(found)
    return pd.concat(tables, ignore_index=True).fillna({"suggested": ""})


def quality_summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each issue: issue, images (that were looked at), flagged, share (flagged of those),
    worst (sample_id), score (of that; the last two are empty where all scores are 1).
    """
    rows = []
    for issue, part in table.groupby("issue", sort=False):
        worst = part.loc[part["score"].idxmin()]
        shown = (worst["sample_id"], worst["score"]) if worst["score"] < 1 else ("", np.nan)
        rows.append((issue, len(part), part["flagged"].sum(), part["flagged"].mean(), *shown))
    return pd.DataFrame(rows, columns=["issue", "images", "flagged", "share", "worst", "score"])


def worst_images(table: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """The rows of the n lowest scores of each issue, the worst first; scores of 1 are left out."""
    below = table[table["score"] < 1].sort_values(["score", "sample_id"])
    worst = below.groupby("issue").head(n)
    order = worst["issue"].map(ISSUES.index).sort_values(kind="stable")
    return worst.loc[order.index].reset_index(drop=True)


def logistic_head():
    """scikit-learn's logistic regression on standardised features, as a linear head would be."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=1000))


def predict_out_of_fold(
    embeddings: np.ndarray, labels: Sequence[str], groups: Sequence[str], seed: int = 0
) -> np.ndarray:
    """(N, classes) probabilities, classes sorted, of a logistic regression that has not seen the
    sample's group.
    """
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    return cross_val_predict(
        logistic_head(),
        embeddings,
        labels,
        groups=groups,
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
        method="predict_proba",
    )


def _score_pixels(data: DataBundle) -> dict[str, pd.DataFrame]:
    from cleanvision.issue_managers.image_property_issue_manager import (
        ImagePropertyIssueManager,
        compute_scores,
    )

    manager = ImagePropertyIssueManager()
    # which has the same measures as dark
    measured = [issue for issue in PIXEL_ISSUES if issue != "light"]

    def measure(sample_id: str) -> dict:
        image = data.read(sample_id)
        image = image if image.mode in ("L", "RGB") else to_rgb(image)
        return compute_scores(0, [image], measured, manager.image_properties)

    ids = data.samples["sample_id"].tolist()
    measures = pd.DataFrame(map_images(measure, ids, "scoring images"))
    manager.issues = pd.DataFrame(index=measures.index)
    manager.update_issues(measures, list(PIXEL_ISSUES))
    return {issue: _take_issue(manager.issues, issue) for issue in PIXEL_ISSUES}


def _take_issue(issues: pd.DataFrame, name: str) -> pd.DataFrame:
    """Columns score and flagged, from a table as cleanvision and cleanlab make it."""
    return pd.DataFrame({"score": issues[f"{name}_score"], "flagged": issues[f"is_{name}_issue"]})


def _score_nearness(samples: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    distance = pairs["distance"] / UNRELATED_BITS
    if "cosine_distance" in pairs:
        distance = np.minimum(distance, pairs["cosine_distance"])
    nearest = pd.concat(
        [distance.groupby(pairs[side]).min() for side in ("sample_id_a", "sample_id_b")]
    )
    nearest = samples["sample_id"].map(nearest.groupby(level=0).min())
    return pd.DataFrame({"score": nearest.fillna(1.0).clip(0, 1), "flagged": nearest.notna()})


def _score_outliers(samples: pd.DataFrame, vectors: np.ndarray) -> pd.DataFrame:
    if len(samples) <= NEIGHBOURS:
        return pd.DataFrame(columns=["score", "flagged"])
    found = ask_cleanlab({"outlier": {"k": NEIGHBOURS}}, samples["label"], features=vectors)
    return _take_issue(found, "outlier")


def _score_labels(
    samples: pd.DataFrame, vectors: np.ndarray, cluster: pd.Series, seed: int
) -> pd.DataFrame:
    sizes = cluster.groupby(samples["label"]).nunique()
    rows = samples.index[samples["label"].isin(sizes.index[sizes >= FOLDS])]
    labels = samples.loc[rows, "label"]
    if labels.nunique() < 2:
        return pd.DataFrame(columns=["score", "flagged"])
    prob = predict_out_of_fold(vectors[rows], labels, cluster[rows], seed)
    found = ask_cleanlab({"label": {}}, labels, pred_probs=prob).set_index(rows)
    suggested = found["predicted_label"].where(found["is_label_issue"], "")
    return _take_issue(found, "label").assign(suggested=suggested)


def ask_cleanlab(issue: dict, labels: pd.Series, **inputs: np.ndarray) -> pd.DataFrame:
    """The columns that cleanlab's Datalab gives for one kind of issue. For labels, `inputs` are
    pred_probs (N, classes), classes sorted.
    """
    from cleanlab import Datalab  # takes seconds to import

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        lab = Datalab({"label": labels.tolist()}, label_name="label", verbosity=0)
        lab.find_issues(**inputs, issue_types=issue)
    return lab.get_issues(*issue)
