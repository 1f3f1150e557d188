"""Where it goes wrong: the metrics for parts of the data, and the single images that were mistaken
with most confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import read_clusters, renumber
from vitlab.evaluation.metrics import METRICS, measure
from vitlab.evaluation.scores import Scores, read_scores, select_split, target_classes
from vitlab.registry import unknown
from vitlab.schema import check_predictions

LEAST = 10  # samples in a slice; a metric of fewer says next to nothing


def slice_table(
    predictions: pd.DataFrame,
    by: str | Sequence[str] = "group",
    split: str = "test",
    metrics: Sequence[str] = ("balanced_accuracy", "precision", "recall", "roc_auc"),
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    bins: int = 4,
    least: int = LEAST,
    cluster=None,
) -> pd.DataFrame:
    """The metrics of all samples, then of each value of the column `by` if it has several.

    Columns: the one named by `by`, n, metric, value, low, high, note; for several columns, given as
    a list, `column` and `slice` in place of the one. Numbers are cut into `bins` slices of about
    equal size (see bin_column). A slice of fewer than `least` samples has NaN and a note with their
    number. One that lacks a class has NaN for the metrics that need it, and the note says which
    class that is. cluster: as in `metrics_table`."""
    columns = [by] if isinstance(by, str) else list(by)
    for name in metrics:
        if name not in METRICS:
            raise UserError(unknown("metric", name, list(METRICS)))
    scores, parts = cut_slices(predictions, columns, split, bins)
    targets = target_classes(scores.classes, positive)
    clusters = read_clusters(select_split(predictions, split), cluster)
    everything = np.ones(len(scores.label), dtype=bool)
    tables = []
    for (column, name), rows in {("", "all"): everything, **parts}.items():
        if column and rows.sum() < least:
            table = pd.DataFrame(
                {
                    "metric": METRICS,
                    "value": np.nan,
                    "low": np.nan,
                    "high": np.nan,
                    "note": describe_few(rows),
                }
            )
        else:
            table = measure(
                scores.take(rows), targets, replicates, seed, confidence, renumber(clusters, rows)
            )
        chosen = table.set_index("metric").loc[list(metrics)].reset_index()
        for place, (header, value) in enumerate(
            {"column": column, "slice": name, "n": int(rows.sum())}.items()
        ):
            chosen.insert(place, header, value)
        tables.append(chosen)
    table = pd.concat(tables, ignore_index=True)
    return (
        table
        if not isinstance(by, str)
        else table.drop(columns="column").rename(columns={"slice": by})
    )


def cut_slices(
    predictions: pd.DataFrame, columns: Sequence[str], split: str = "test", bins: int = 4
) -> tuple[Scores, dict[tuple[str, str], np.ndarray]]:
    """The scores of a split, and for each column and each of its values which samples (N,) have it;
    none for a single value.
    """
    scores = read_scores(predictions, split)
    parts = {}
    for column in columns:
        if column not in predictions.columns:
            there = [
                name for name in predictions.columns if not name.startswith(("logit_", "prob_"))
            ]
            raise UserError(
                unknown("column", column, there, "add_columns brings in those of another table.")
            )
        labels = bin_column(select_split(predictions, split)[column], bins)
        if len(labels.cat.categories) > 1:
            parts |= {(column, name): (labels == name).to_numpy() for name in labels.cat.categories}
    return scores, parts


def bin_column(values: pd.Series | Sequence, bins: int = 4) -> pd.Series:
    """Each value's slice, as an ordered category: numbers in up to `bins` bins of about equal size,
    all else as it is, sorted.

    The name of a bin says where it begins and ends, such as "0.21 to 0.35"; a value on a border is
    in the lower bin. Numbers of which there are no more than `bins` different ones are not cut, nor
    are truth values. What is missing is "(none)"."""
    if bins < 2:
        raise UserError(f"bins must be at least 2, got {bins}")
    values = pd.Series(values).reset_index(drop=True)
    known = (
        values.replace([np.inf, -np.inf], np.nan) if pd.api.types.is_float_dtype(values) else values
    )
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if not numeric or known.nunique() <= bins:
        if isinstance(values.dtype, pd.CategoricalDtype):
            order = list(values.cat.categories)
        else:
            order = sorted(known.dropna().unique(), key=None if numeric else str)
        names = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in order]
        labels = (
            known.astype(object)
            .map(dict(zip(order, names, strict=True)), na_action="ignore")
            .replace("", pd.NA)
        )
    else:
        edges = np.unique(np.quantile(known.dropna().astype(float), np.linspace(0, 1, bins + 1)))
        names = name_bins(edges)
        place = np.clip(
            np.searchsorted(edges, known.astype(float), side="left") - 1, 0, len(names) - 1
        )
        labels = pd.Series(np.array(names, dtype=object)[place]).where(
            known.notna().to_numpy(), pd.NA
        )
    names = list(dict.fromkeys(name for name in names if (labels == name).any()))
    names += ["(none)"] * bool(labels.isna().any())
    return pd.Series(pd.Categorical(labels.fillna("(none)"), categories=names, ordered=True))


def name_bins(edges: np.ndarray) -> list[str]:
    """Bins named by their ends, with three digits, or as many as tell the ends apart."""
    texts = next(
        texts
        for digits in range(3, 18)
        if len(set(texts := [f"{e:.{digits}g}" for e in edges])) == len(edges)
    )
    return [f"{float(low):,g} to {float(high):,g}" for low, high in pairwise(texts)]


def add_columns(
    predictions: pd.DataFrame, table: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """The predictions with columns of another table beside them, joined by sample_id: brightness of
    `image_table`, say.

    ValueError where the table lacks a column, names a sample twice or lacks one, or where the
    predictions have such a column."""
    for name in ("sample_id", *columns):
        if name not in table.columns:
            raise UserError(unknown("column", name, list(table.columns)))
    double = [name for name in columns if name in predictions.columns]
    if double:
        raise UserError(
            f"the predictions have a column {double[0]!r} already; rename it in the table:"
            " rename(columns=...)"
        )
    repeated = table["sample_id"][table["sample_id"].duplicated()]
    if len(repeated):
        raise UserError(
            f"the table has several rows for sample_id {repeated.iloc[0]!r}; it must have one for"
            " each"
        )
    absent = predictions["sample_id"][~predictions["sample_id"].isin(table["sample_id"])]
    if len(absent):
        raise UserError(
            f"the table has no row for {len(absent)} of {len(predictions)} samples, the first is"
            f" {absent.iloc[0]!r}; make it of all samples of the predictions"
        )
    return predictions.merge(
        table[["sample_id", *columns]], on="sample_id", how="left", validate="many_to_one"
    )


def describe_few(rows: np.ndarray) -> str:
    """How many samples a slice has that is too small for a number."""
    count = int(rows.sum())
    return f"{count} image{'s' * (count != 1)} only"


def mistakes_table(predictions: pd.DataFrame, n: int = 12, split: str = "test") -> pd.DataFrame:
    """The n mistakes made with most confidence: columns sample_id, group, label, pred, confidence,
    prob_label.

    confidence: probability given to the wrong class; prob_label: to the right one.
    """
    check_predictions(predictions)
    rows = select_split(predictions, split)
    wrong = rows[rows["label"].astype(str) != rows["pred"].astype(str)]
    table = wrong[["sample_id", "group", "label", "pred"]].assign(
        confidence=[row[f"prob_{row['pred']}"] for _, row in wrong.iterrows()],
        prob_label=[row[f"prob_{row['label']}"] for _, row in wrong.iterrows()],
    )
    return (
        table.sort_values("confidence", ascending=False, kind="stable")
        .head(n)
        .reset_index(drop=True)
    )
