"""Parts of the test images: their metrics, and whether one is worse than the rest.

The test of a slice permutes memberships within each class and moves clusters as a whole; scipy's
permutation_test can do neither."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.inference import (
    ALPHA,
    NO_DIFFERENCE,
    bootstrap,
    correct_holm,
    percentile_interval,
)
from vitlab.evaluation.metrics import (
    METRICS,
    check_metrics,
    describe_classes,
    describe_undefined,
    measure,
)
from vitlab.evaluation.scores import Scores, read_scores, select_split
from vitlab.registry import unknown

MIN_IMAGES = 10  # in a slice that is measured
BINS = 4  # of a column of numbers
CLEAN, TOUCHED = "without near-duplicates", "near-duplicates only"
CHUNK = 200_000  # memberships held at once


def slice_table(
    predictions: pd.DataFrame,
    by: Sequence[str] = ("group",),
    metrics: Sequence[str] = ("balanced_accuracy", "precision", "recall", "roc_auc"),
    replicates: int = 1000,
) -> pd.DataFrame:
    """Test metrics of all images, then of each value of the columns `by` that have several.

    Columns column ("" for all images), slice, n, metric, value, low, high (95 % bootstrap
    interval), note. Numbers are binned by quartiles (see `bin_column`). A slice of fewer than
    MIN_IMAGES images has NaN and a note; one that lacks a class has NaN for the metrics that need
    it."""
    check_metrics(metrics)
    scores = read_scores(predictions, "test")
    everything = np.ones(len(scores.label), dtype=bool)
    tables = []
    for (column, name), rows in {("", "all"): everything, **split_slices(predictions, by)}.items():
        if column and rows.sum() < MIN_IMAGES:
            table = pd.DataFrame({"metric": METRICS, "note": describe_few(rows)})
            table = table.reindex(columns=["metric", "value", "low", "high", "note"])
        else:
            table = measure(scores.take(rows), replicates)
        table = table.set_index("metric").loc[list(metrics)].reset_index()
        table.insert(0, "column", column)
        table.insert(1, "slice", name)
        table.insert(2, "n", int(rows.sum()))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def leakage_table(predictions: pd.DataFrame, clean_ids: Collection[str]) -> pd.DataFrame:
    """Test metrics of all test images, of those in `clean_ids`, and of the others.

    clean_ids: the test images without a near-duplicate in training (`vitlab.data.clean_test_ids`);
    if they are all or none, there is only the row "all". Columns images ("all", "without
    near-duplicates", "near-duplicates only"), n, metric, value, low, high, note. Near-duplicates
    may also be easier or harder than the rest: a higher score on them is a warning, not proof."""
    test = select_split(predictions, "test")
    images = test["sample_id"].isin(clean_ids).map({True: CLEAN, False: TOUCHED})
    metrics = ("accuracy", "balanced_accuracy", "roc_auc")
    table = slice_table(test.assign(images=images), ["images"], metrics, replicates=0)
    table = table.drop(columns="column").rename(columns={"slice": "images"})
    order = pd.Categorical(table["images"], ["all", CLEAN, TOUCHED])
    return table.iloc[order.argsort()].reset_index(drop=True)


def split_slices(
    predictions: pd.DataFrame, columns: Sequence[str]
) -> dict[tuple[str, str], np.ndarray]:
    """The members (N,) of each slice of the test images, by (column, value); none for a column with
    a single value."""
    test, parts = select_split(predictions, "test"), {}
    for column in columns:
        if column not in predictions.columns:
            there = [
                name for name in predictions.columns if not name.startswith(("logit_", "prob_"))
            ]
            raise UserError(unknown("column", column, there))
        labels = bin_column(test[column])
        if len(labels.cat.categories) > 1:
            parts |= {(column, name): (labels == name).to_numpy() for name in labels.cat.categories}
    return parts


def bin_column(values: pd.Series | Sequence) -> pd.Series:
    """The slice of each value, as an ordered category: numbers by quartiles, everything else as it
    is, sorted.

    A bin is named by its ends, such as "0.21 to 0.35"; a value on a border is in the lower bin.
    Up to BINS different numbers are not binned, nor are truth values. Missing values are
    "(none)"."""
    values = pd.Series(values).reset_index(drop=True).replace("", None)
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number and values.nunique() > BINS:
        place, edges = pd.qcut(values, BINS, labels=False, retbins=True, duplicates="drop")
        names = name_bins(edges)
        labels = pd.Series(pd.Categorical.from_codes(place.fillna(-1).astype(int), names, True))
    else:
        labels = values.astype("category").cat.as_ordered()
        labels = labels.cat.rename_categories("{:.10g}".format if is_number else str)
    if labels.isna().any():
        labels = labels.cat.add_categories("(none)").fillna("(none)")
    return labels.cat.remove_unused_categories()


def name_bins(edges: np.ndarray) -> list[str]:
    """Names of the bins by their ends, with three digits, or as many as tell the ends apart."""
    for digits in range(3, 18):
        texts = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(texts)) == len(edges):
            break
    return [f"{float(low):,g} to {float(high):,g}" for low, high in pairwise(texts)]


def describe_few(rows: np.ndarray) -> str:
    """The size of a slice that is too small to be measured."""
    count = int(rows.sum())
    return f"{count} image{'s' * (count != 1)} only"


def worst_slice_table(
    predictions: pd.DataFrame, by: Sequence[str] = ("group",), replicates: int = 1000
) -> pd.DataFrame:
    """Balanced accuracy of each slice of the columns `by` against all other test images, the worst
    first.

    Columns column, slice, n, metric, value, rest, gap (value minus rest), low, high, p, p_holm,
    verdict, note. low, high: 95 % percentile bootstrap interval; slice and rest are drawn
    separately. p: two-sided permutation test of slice membership within each class; the images of
    one cluster, class and slice move together. p_holm: corrected for the number of slices (Holm,
    1979). verdict: worse or better than the rest at the 5 % level, otherwise "no difference shown".
    Of a column with two values only the worse one is listed. Slices with too few images, or without
    one of the classes, come last, with a note."""
    if replicates < 1:
        raise UserError(f"replicates must be at least 1, got {replicates}")
    scores, parts = read_scores(predictions, "test"), split_slices(predictions, by)
    if not parts:
        columns = ", ".join(by) or "no column"
        raise UserError(f"nothing to compare: {columns} has one value only in split 'test'")
    rows = []
    for (column, name), inside in parts.items():
        row = {"column": column, "slice": name, "n": int(inside.sum())}
        row["metric"] = "balanced_accuracy"
        rows.append(row | _compare(scores, inside, replicates))
    table = pd.DataFrame(rows).sort_values("gap", kind="stable", ignore_index=True)
    sizes = pd.Series([column for column, _ in parts]).value_counts()
    mirrored = (table["gap"] > 0) | ((table["gap"] == 0) & table.duplicated("column"))
    table = table[~(mirrored & (table["column"].map(sizes) == 2))].reset_index(drop=True)
    table["p_holm"] = correct_holm(table["p"].to_numpy())
    side = np.where(table["gap"] < 0, "worse than the rest", "better than the rest")
    table["verdict"] = np.where(table["p_holm"] < ALPHA, side, NO_DIFFERENCE)
    table.loc[table["p"].isna(), "verdict"] = ""
    return table[[name for name in table if name != "note"] + ["note"]]


def _compare(scores: Scores, inside: np.ndarray, replicates: int) -> dict:
    """value, rest, gap, low, high, p and note of one slice."""
    row = dict.fromkeys(("value", "rest", "gap", "low", "high", "p"), np.nan)
    parts = {"": inside, "the rest: ": ~inside}
    for who, rows in parts.items():
        if rows.sum() < MIN_IMAGES:
            return row | {"note": who + describe_few(rows)}
        if missing := describe_classes(scores.take(rows)):
            return row | {"note": who + missing}
    values, drawn = [], []
    for seed, rows in enumerate(parts.values()):
        part, count = scores.take(rows), int(rows.sum())
        values.append(balanced_accuracy(part, np.ones((1, count)))[0])
        replicate = bootstrap(
            lambda counts, part=part: balanced_accuracy(part, counts),
            count,
            replicates,
            seed,
            part.cluster,
        )
        drawn.append(replicate)
    gap = values[0] - values[1]
    units = scores.take(inside).units
    low, high, undefined = percentile_interval((drawn[0] - drawn[1])[:, None], gap, units)
    row |= {"value": values[0], "rest": values[1], "gap": gap, "low": low[0], "high": high[0]}
    p = permutation_p(scores, inside, replicates)
    return row | {"p": p, "note": describe_undefined(undefined[0])}


def balanced_accuracy(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """Mean recall over the classes (R,) for weights (R, N); NaN where a class has no weight."""
    is_label = np.eye(len(scores.classes))[scores.label]  # (N, C)
    with np.errstate(invalid="ignore"):
        recall = (weights @ (is_label * scores.right[:, None])) / (weights @ is_label)
    return recall.mean(axis=1)


def permutation_p(scores: Scores, inside: np.ndarray, permutations: int, seed: int = 0) -> float:
    """Two-sided p-value of the gap in balanced accuracy: the share of random memberships, and the
    true one, whose gap is at least as large (Phipson and Smyth, 2010).

    Memberships (N,) are permuted within each class, so the prevalence stays; the images of a
    cluster that are of one class and on one side move together. Memberships for which the metric is
    undefined are left out."""
    cluster = np.arange(len(inside)) if scores.cluster is None else scores.cluster
    units = np.column_stack([scores.label, inside, cluster])
    _, first, unit = np.unique(units, axis=0, return_index=True, return_inverse=True)
    classes = [np.flatnonzero(scores.label[first] == k) for k in np.unique(scores.label)]
    generator, own = np.random.default_rng(seed), inside[first].astype(float)[None, :]

    def measure_gap(members: np.ndarray) -> np.ndarray:
        rows = members[:, unit]
        return np.abs(balanced_accuracy(scores, rows) - balanced_accuracy(scores, 1 - rows))

    observed, gaps = measure_gap(own)[0], []
    chunk = max(1, CHUNK // len(inside))
    for start in range(0, permutations, chunk):
        members = np.repeat(own, min(chunk, permutations - start), axis=0)
        for part in classes:
            members[:, part] = generator.permuted(members[:, part], axis=1)
        gaps.append(measure_gap(members))
    gaps = np.concatenate(gaps)
    gaps = gaps[~np.isnan(gaps)]
    return float((1 + (gaps >= observed - 1e-12).sum()) / (1 + len(gaps)))
