"""What may be wrong with each image, as one table: cleanvision for the pixels, cleanlab for
outliers and labels.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitlab.data.clusters import cluster_table
from vitlab.data.duplicates import MAX_COSINE, near_duplicate_table, normalise_rows
from vitlab.data.folds import draw_folds
from vitlab.data.quality import find_unreadable
from vitlab.data.reading import map_images
from vitlab.data.sources import NOT_CHOSEN
from vitlab.errors import UserError
from vitlab.pictures import to_rgb
from vitlab.registry import unknown
from vitlab.schema import DataBundle

PIXEL_ISSUES = ("dark", "light", "blurry", "low_information", "odd_size", "odd_aspect_ratio")
ISSUES = ("unreadable", *PIXEL_ISSUES, "near_duplicate", "outlier", "wrong_label")
UNRELATED_BITS = 128  # of 255, in which the hashes of unrelated images differ
FOLDS = 5
NEIGHBOURS = 10  # to whom the distance tells an outlier
# C of the logistic regression; of 1e-4, 1e-3 and 1e-2 the most accurate out of fold on ELPV
REGULARISATION = 0.01


def quality_table(
    data: DataBundle,
    embeddings: np.ndarray | None = None,
    *,
    pairs: pd.DataFrame | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row an image, and two columns an issue of ISSUES: `<issue>_score`, 0 (bad) to 1 (good),
    and `is_<issue>`.

    Before them: sample_id, label, split; last: `suggested`, the class that out-of-fold predictions
    find likelier than the label of a probably wrong one. What was not looked at has NaN for a score
    and is not flagged.

    unreadable: images that were left out because they cannot be decoded; they have a row too, all
    else NaN. dark, light, blurry, low_information, odd_size, odd_aspect_ratio: scores and
    thresholds of cleanvision. near_duplicate: the distance to the nearest partner in `pairs` (as of
    near_duplicate_table, found here by default), bits as a
        part of 128, cosine distance as it is; 1 without a partner, flagged with one.
    outlier: cleanlab's score from the mean distance to the 10 nearest neighbours in the space of
    `embeddings` (N, D). wrong_label: cleanlab's confident learning (arXiv 1911.00068) from
    out-of-fold predictions of a logistic regression on
        `embeddings`. Near-duplicates share a fold, so that no copy of an image vouches for its
        label. Classes with fewer than 5 images are not judged.
    limit: look at the pixels of at most so many images, evenly spread; all else is done for all.
    """
    samples = data.samples
    vectors = None if embeddings is None else normalise_rows(embeddings, len(samples))
    if pairs is None:
        pairs = near_duplicate_table(data, embeddings=vectors, max_cosine=MAX_COSINE)
    table = (
        samples[["sample_id", "label", "split"]]
        .reset_index(drop=True)
        .assign(unreadable_score=1.0, is_unreadable=False)
    )
    parts = [
        _judge_pixels(data, limit),
        _judge_nearness(samples, pairs),
        _judge_vectors(samples, vectors, pairs, seed),
    ]
    table = pd.concat([table, *(part.reset_index(drop=True) for part in parts)], axis=1)
    broken = _list_unreadable(data)
    table = pd.concat([table, broken], ignore_index=True) if len(broken) else table
    flags = [f"is_{issue}" for issue in ISSUES]
    table[flags] = table[flags].eq(True)
    columns = [name for issue in ISSUES for name in (f"{issue}_score", f"is_{issue}")]
    return table[["sample_id", "label", "split", *columns, "suggested"]]


def quality_summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row an issue: issue, images (that were looked at), flagged, share (flagged of those), worst
    (sample_id), score (its).
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


def worst_images(
    table: pd.DataFrame, issues: str | Sequence[str] = ISSUES, n: int = 10
) -> pd.DataFrame:
    """The n lowest scores of each issue, the worst first: columns issue, sample_id, label, split,
    score, flagged, suggested.

    Images with a score of 1 are not listed: nothing speaks against them.
    """
    issues = [issues] if isinstance(issues, str) else list(issues)
    tables = []
    for issue in issues:
        if issue not in ISSUES:
            raise UserError(unknown("issue", issue, list(ISSUES)))
        rows = (
            table[table[f"{issue}_score"] < 1].sort_values([f"{issue}_score", "sample_id"]).head(n)
        )
        rows = rows.rename(columns={f"{issue}_score": "score", f"is_{issue}": "flagged"}).assign(
            issue=issue
        )
        tables.append(
            rows[["issue", "sample_id", "label", "split", "score", "flagged", "suggested"]]
        )
    return pd.concat(tables, ignore_index=True)


def predict_out_of_fold(
    embeddings: np.ndarray,
    samples: pd.DataFrame,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Probabilities (a column a class, sorted; the index of `samples`) of a logistic regression
    that has not seen the sample.
    """
    fold = draw_folds(samples, folds, seed=seed, groups=groups)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=1000))
    prob = cross_val_predict(
        model,
        embeddings,
        samples["label"],
        groups=fold,
        cv=LeaveOneGroupOut(),
        method="predict_proba",
    )
    return pd.DataFrame(prob, samples.index, sorted(samples["label"].unique()))


def _judge_pixels(data: DataBundle, limit: int | None) -> pd.DataFrame:
    """cleanvision's measures, scores and thresholds, on images as `data.read` gives them; its
    Imagelab knows files only.
    """
    from cleanvision.issue_managers.image_property_issue_manager import (
        ImagePropertyIssueManager,
        compute_scores,
    )

    manager = ImagePropertyIssueManager()
    # which has the same measures as dark
    measured = [issue for issue in PIXEL_ISSUES if issue != "light"]
    ids = data.samples["sample_id"].reset_index(drop=True)
    chosen = ids
    if limit is not None and limit < len(ids):
        chosen = ids.iloc[np.linspace(0, len(ids) - 1, limit).round().astype(int)]

    def measure(sample_id: str) -> dict:
        image = data.read(sample_id)
        image = image if image.mode in ("L", "RGB") else to_rgb(image)
        return compute_scores(0, [image], measured, manager.image_properties)

    measures = pd.DataFrame(
        map_images(measure, chosen.tolist(), "judging images"), index=chosen.index
    )
    manager.issues = pd.DataFrame(index=measures.index)
    manager.update_issues(measures, list(PIXEL_ISSUES))
    found = manager.issues.rename(
        columns={f"is_{issue}_issue": f"is_{issue}" for issue in PIXEL_ISSUES}
    )
    return found.reindex(ids.index)


def _judge_nearness(samples: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
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


def _judge_vectors(
    samples: pd.DataFrame, vectors: np.ndarray | None, pairs: pd.DataFrame, seed: int
) -> pd.DataFrame:
    samples = samples.reset_index(drop=True)
    names = ["outlier_score", "is_outlier", "wrong_label_score", "is_wrong_label", "suggested"]
    judged = pd.DataFrame(
        dict(zip(names, (np.nan, False, np.nan, False, ""), strict=True)), index=samples.index
    )
    if vectors is None:
        return judged
    if len(samples) > NEIGHBOURS:
        outlier = _ask_cleanlab({"outlier": {"k": NEIGHBOURS}}, samples["label"], features=vectors)
        judged["outlier_score"] = outlier["outlier_score"].to_numpy()
        judged["is_outlier"] = outlier["is_outlier_issue"].to_numpy()
    cluster = cluster_table(samples, pairs)["cluster"]
    sizes = cluster.groupby(samples["label"]).nunique()
    common = samples["label"].isin(sizes.index[sizes >= FOLDS])
    rows = samples.index[common]
    if samples.loc[rows, "label"].nunique() < 2:
        return judged
    prob = predict_out_of_fold(vectors[rows], samples.loc[rows], seed=seed, groups=cluster[rows])
    wrong = _ask_cleanlab({"label": {}}, samples.loc[rows, "label"], pred_probs=prob.to_numpy())
    judged.loc[rows, "wrong_label_score"] = wrong["label_score"].to_numpy()
    judged.loc[rows, "is_wrong_label"] = wrong["is_label_issue"].to_numpy()
    judged.loc[rows, "suggested"] = (
        wrong["predicted_label"].where(wrong["is_label_issue"], "").to_numpy()
    )
    return judged


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
    # other files of a folder
    no_image = broken["reason"].astype("str").str.contains("unknown sample_id")
    broken = broken[~no_image]
    return broken[["sample_id"]].assign(
        label="", split="", unreadable_score=0.0, is_unreadable=True, suggested=""
    )
