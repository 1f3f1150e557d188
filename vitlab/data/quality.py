"""What is in the images, and what may be wrong with each: cleanvision for the pixels, cleanlab for
outliers and labels.

cleanvision's Imagelab and cleanlab's Datalab with images need all images as files or as a
`datasets` set; so its measures are called image by image in threads, and the result is equal (a
test holds it). cleanlab's own cross-validation would put copies of an image into different folds,
so the out-of-fold predictions are made here."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitlab.data.duplicates import cluster_table, near_duplicate_table, normalise_rows
from vitlab.data.reading import find_unreadable, map_images
from vitlab.data.sources import NOT_CHOSEN
from vitlab.pictures import to_rgb
from vitlab.schema import DataBundle

PIXEL_ISSUES = ("dark", "light", "blurry", "low_information", "odd_size", "odd_aspect_ratio")
ISSUES = ("unreadable", *PIXEL_ISSUES, "near_duplicate", "outlier", "wrong_label")
UNRELATED_BITS = 128  # of 255, in which the hashes of unrelated images differ
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


def quality_table(
    data: DataBundle,
    embeddings: np.ndarray | None = None,
    *,
    pairs: pd.DataFrame | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row for each image, and two columns for each of ISSUES: `<issue>_score`, 0 (bad) to 1
    (good), and `is_<issue>`.

    Before them: sample_id, label, split; last: `suggested`, the class that out-of-fold predictions
    prefer to a label that is probably wrong. What was not looked at has NaN for a score and is not
    flagged.

    unreadable: images left out because they cannot be decoded have a row too, all else NaN. dark,
    light, blurry, low_information, odd_size, odd_aspect_ratio: scores and thresholds of
    cleanvision. near_duplicate: the distance to the nearest partner in `pairs` (of
    `near_duplicate_table`, found here by default), bits as a part of 128, cosine distance as it is;
    1 without a partner, flagged with one. outlier: cleanlab's score from the mean distance to the
    10 nearest neighbours in the space of `embeddings` (N, D). wrong_label: cleanlab's confident
    learning (arXiv 1911.00068) from out-of-fold predictions of a logistic regression on
    `embeddings`. Near-duplicates share a fold, so that no copy of an image confirms its label.
    Classes with fewer than 5 images are not scored."""
    samples = data.samples.reset_index(drop=True)
    vectors = None if embeddings is None else normalise_rows(embeddings, len(samples))
    if pairs is None:
        pairs = near_duplicate_table(data, embeddings=vectors)
    table = samples[["sample_id", "label", "split"]].assign(unreadable_score=1.0)
    parts = [_score_pixels(data), _score_nearness(samples, pairs)]
    if vectors is not None:
        parts += [
            _score_outliers(samples, vectors),
            _score_labels(samples, vectors, cluster_table(samples, pairs)["cluster"], seed),
        ]
    table = pd.concat([pd.concat([table, *parts], axis=1), _list_unreadable(data)])
    columns = [name for issue in ISSUES for name in (f"{issue}_score", f"is_{issue}")]
    table = table.reindex(columns=["sample_id", "label", "split", *columns, "suggested"])
    flags = [f"is_{issue}" for issue in ISSUES]
    table[flags] = table[flags].eq(True)
    return table.fillna({"suggested": ""}).reset_index(drop=True)


def quality_summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each issue: issue, images (that were looked at), flagged, share (flagged of those),
    worst (sample_id), score (of that).
    """
    rows = []
    for issue in ISSUES:
        score = table[f"{issue}_score"].dropna()
        flagged = int(table[f"is_{issue}"].sum())
        share = flagged / len(score) if len(score) else np.nan
        worst, lowest = "", np.nan
        if len(score) and score.min() < 1:
            worst, lowest = table.loc[score.idxmin(), "sample_id"], score.min()
        rows.append((issue, len(score), flagged, share, worst, lowest))
    return pd.DataFrame(rows, columns=["issue", "images", "flagged", "share", "worst", "score"])


def worst_images(table: pd.DataFrame, issues: Sequence[str] = ISSUES, n: int = 10) -> pd.DataFrame:
    """The n lowest scores of each issue, the worst first: columns issue, sample_id, label, split,
    score, flagged, suggested. Images with a score of 1 are not listed.
    """
    tables = []
    for issue in issues:
        names = {f"{issue}_score": "score", f"is_{issue}": "flagged"}
        rows = table.rename(columns=names).assign(issue=issue)
        rows = rows[["issue", "sample_id", "label", "split", "score", "flagged", "suggested"]]
        tables.append(rows[rows["score"] < 1].sort_values(["score", "sample_id"]).head(n))
    return pd.concat(tables, ignore_index=True)


def predict_out_of_fold(
    embeddings: np.ndarray, labels: Sequence[str], groups: Sequence[str], seed: int = 0
) -> np.ndarray:
    """(N, classes) probabilities, classes sorted, of a logistic regression that has not seen the
    sample's group.
    """
    return cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=1000)),
        embeddings,
        labels,
        groups=groups,
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
        method="predict_proba",
    )


def _score_pixels(data: DataBundle) -> pd.DataFrame:
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
    return manager.issues.rename(
        columns={f"is_{issue}_issue": f"is_{issue}" for issue in PIXEL_ISSUES}
    )


def _score_nearness(samples: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    distance = pairs["distance"] / UNRELATED_BITS
    if "cosine_distance" in pairs:
        distance = np.minimum(distance, pairs["cosine_distance"])
    nearest = pd.concat(
        [distance.groupby(pairs[side]).min() for side in ("sample_id_a", "sample_id_b")]
    )
    nearest = samples["sample_id"].map(nearest.groupby(level=0).min())
    return pd.DataFrame(
        {
            "near_duplicate_score": nearest.fillna(1.0).clip(0, 1),
            "is_near_duplicate": nearest.notna(),
        }
    )


def _score_outliers(samples: pd.DataFrame, vectors: np.ndarray) -> pd.DataFrame:
    if len(samples) <= NEIGHBOURS:
        return pd.DataFrame(index=samples.index)
    found = _ask_cleanlab({"outlier": {"k": NEIGHBOURS}}, samples["label"], features=vectors)
    return found[["outlier_score"]].assign(is_outlier=found["is_outlier_issue"])


def _score_labels(
    samples: pd.DataFrame, vectors: np.ndarray, cluster: pd.Series, seed: int
) -> pd.DataFrame:
    sizes = cluster.groupby(samples["label"]).nunique()
    rows = samples.index[samples["label"].isin(sizes.index[sizes >= FOLDS])]
    labels = samples.loc[rows, "label"]
    if labels.nunique() < 2:
        return pd.DataFrame(index=samples.index)
    prob = predict_out_of_fold(vectors[rows], labels, cluster[rows], seed)
    found = _ask_cleanlab({"label": {}}, labels, pred_probs=prob).set_index(rows)
    table = pd.DataFrame({"wrong_label_score": found["label_score"]})
    table["is_wrong_label"] = found["is_label_issue"]
    table["suggested"] = found["predicted_label"].where(found["is_label_issue"], "")
    return table


def _ask_cleanlab(issue: dict, labels: pd.Series, **inputs: np.ndarray) -> pd.DataFrame:
    from cleanlab import Datalab  # takes seconds to import

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        lab = Datalab({"label": labels.tolist()}, label_name="label", verbosity=0)
        lab.find_issues(**inputs, issue_types=issue)
    return lab.get_issues(*issue)


def _list_unreadable(data: DataBundle) -> pd.DataFrame:
    tried = data.excluded[data.excluded["reason"] != NOT_CHOSEN]
    broken = find_unreadable(data.read, tried)
    # other files of a folder are no images
    broken = broken[~broken["reason"].astype("str").str.contains("unknown sample_id")]
    return broken[["sample_id"]].assign(
        label="", split="", unreadable_score=0.0, is_unreadable=True, suggested=""
    )
