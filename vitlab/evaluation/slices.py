"""Metrics for parts of the test images: by group, by any other column, without near-duplicates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import read_clusters, renumber
from vitlab.evaluation.metrics import METRICS, check_metrics, measure
from vitlab.evaluation.scores import Scores, read_scores, select_split
from vitlab.registry import unknown

MIN_IMAGES = 10  # in a slice that is measured
BINS = 4  # of a column of numbers
CLEAN, TOUCHED = "without near-duplicates", "near-duplicates only"


def slice_table(
    predictions: pd.DataFrame,
    by: str | Sequence[str] = "group",
    metrics: Sequence[str] = ("balanced_accuracy", "precision", "recall", "roc_auc"),
    replicates: int = 1000,
    cluster=None,
) -> pd.DataFrame:
    """Test metrics of all images, then of each value of the column `by` if it has several.

    Columns: the one named by `by`, n, metric, value, low, high (95 % bootstrap interval), note; for
    a list of columns, `column` and `slice` in place of the one. Numbers are cut into quarters (see
    `bin_column`). A slice of fewer than MIN_IMAGES images has NaN and a note; one that lacks a
    class has NaN for the metrics that need it. cluster: as in `metrics_table`."""
    check_metrics(metrics)
    columns = [by] if isinstance(by, str) else list(by)
    scores, parts = split_slices(predictions, columns)
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    everything = np.ones(len(scores.label), dtype=bool)
    tables = []
    for (column, name), rows in {("", "all"): everything, **parts}.items():
        if column and rows.sum() < MIN_IMAGES:
            table = pd.DataFrame({"metric": METRICS, "note": describe_few(rows)})
            table = table.reindex(columns=["metric", "value", "low", "high", "note"])
        else:
            table = measure(scores.take(rows), replicates, renumber(clusters, rows))
        table = table.set_index("metric").loc[list(metrics)].reset_index()
        table.insert(0, "column", column)
        table.insert(1, "slice", name)
        table.insert(2, "n", int(rows.sum()))
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if isinstance(by, str):
        return table.drop(columns="column").rename(columns={"slice": by})
    return table


def leakage_table(predictions: pd.DataFrame, clean_ids: Collection[str]) -> pd.DataFrame:
    """Test metrics of all test images, of those in `clean_ids`, and of the others.

    clean_ids: the test images without a near-duplicate in training (`vitlab.data.clean_test_ids`);
    where they are all or none, there is only the row "all". Columns images ("all", "without
    near-duplicates", "near-duplicates only"), n, metric, value, low, high, note. Near-duplicates
    may also be easier or harder than the rest: a higher score on them is a warning, not a proof."""
    test = select_split(predictions, "test")
    foreign = sorted(set(clean_ids) - set(test["sample_id"]))
    if foreign:
        raise UserError(
            f"{len(foreign)} clean_ids are not test images of these predictions, first"
            f" {foreign[0]!r}"
        )
    images = test["sample_id"].isin(clean_ids).map({True: CLEAN, False: TOUCHED})
    metrics = ("accuracy", "balanced_accuracy", "roc_auc")
    table = slice_table(test.assign(images=images), "images", metrics, replicates=0)
    order = ["all", CLEAN, TOUCHED]
    return table.sort_values(
        "images", key=lambda names: names.map(order.index), kind="stable", ignore_index=True
    )


def split_slices(
    predictions: pd.DataFrame, columns: Sequence[str], split: str = "test"
) -> tuple[Scores, dict[tuple[str, str], np.ndarray]]:
    """The scores of a split, and the members (N,) of each slice, by (column, value); none for a
    column with a single value."""
    scores = read_scores(predictions, split)
    parts = {}
    for column in columns:
        if column not in predictions.columns:
            there = [
                name for name in predictions.columns if not name.startswith(("logit_", "prob_"))
            ]
            hint = "add_columns brings in those of another table."
            raise UserError(unknown("column", column, there, hint))
        labels = bin_column(select_split(predictions, split)[column])
        if len(labels.cat.categories) > 1:
            parts |= {(column, name): (labels == name).to_numpy() for name in labels.cat.categories}
    return scores, parts


def bin_column(values: pd.Series | Sequence) -> pd.Series:
    """The slice of each value, as an ordered category: numbers in up to BINS bins of about equal
    size, everything else as it is, sorted.

    A bin is named by its ends, such as "0.21 to 0.35"; a value on a border is in the lower bin. Up
    to BINS different numbers are not binned, nor are truth values. Missing values are "(none)"."""
    values = pd.Series(values).reset_index(drop=True)
    if pd.api.types.is_float_dtype(values):
        values = values.replace([np.inf, -np.inf], np.nan)
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric and values.nunique() > BINS:
        numbers = values.astype(float)
        edges = np.unique(np.quantile(numbers.dropna(), np.linspace(0, 1, BINS + 1)))
        names = name_bins(edges)
        place = np.clip(np.searchsorted(edges, numbers, side="left") - 1, 0, len(names) - 1)
        labels = pd.Series(np.array(names, dtype=object)[place]).where(values.notna(), pd.NA)
    else:
        if isinstance(values.dtype, pd.CategoricalDtype):
            order = list(values.cat.categories)
        else:
            order = sorted(values.dropna().unique(), key=None if numeric else str)
        names = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in order]
        renamed = dict(zip(order, names, strict=True))
        labels = values.astype(object).map(renamed, na_action="ignore").replace("", pd.NA)
    present = set(labels.dropna())
    names = [name for name in dict.fromkeys(names) if name in present]
    names += ["(none)"] * bool(labels.isna().any())
    return pd.Series(pd.Categorical(labels.fillna("(none)"), categories=names, ordered=True))


def name_bins(edges: np.ndarray) -> list[str]:
    """Names of the bins by their ends, with three digits, or as many as tell the ends apart."""
    for digits in range(3, 18):
        texts = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(texts)) == len(edges):
            break
    return [f"{float(low):,g} to {float(high):,g}" for low, high in pairwise(texts)]


def add_columns(
    predictions: pd.DataFrame, table: pd.DataFrame, columns: Sequence[str]
) -> pd.DataFrame:
    """The predictions with columns of another table, joined by sample_id: brightness of
    `image_table`, say.

    Raises UserError where the table lacks a column or an image, has an image twice, or where the
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
        raise UserError(f"the table has several rows for sample_id {repeated.iloc[0]!r}; keep one")
    absent = predictions["sample_id"][~predictions["sample_id"].isin(table["sample_id"])]
    if len(absent):
        raise UserError(
            f"the table has no row for {len(absent)} of {len(predictions)} images, first"
            f" {absent.iloc[0]!r}; make it of all images of the predictions"
        )
    return predictions.merge(
        table[["sample_id", *columns]], on="sample_id", how="left", validate="many_to_one"
    )


def describe_few(rows: np.ndarray) -> str:
    """The size of a slice that is too small to be measured."""
    count = int(rows.sum())
    return f"{count} image{'s' * (count != 1)} only"
