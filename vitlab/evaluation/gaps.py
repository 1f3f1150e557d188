"""Is a slice worse than the rest? The gap with its interval, a test, and a correction for the
number of slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import draw_counts, percentile_interval, read_clusters, renumber
from vitlab.evaluation.few_images import correct_holm
from vitlab.evaluation.metrics import (
    METRICS,
    describe_classes,
    describe_undefined,
    prepare_metrics,
)
from vitlab.evaluation.paired import ALPHA, NO_DIFFERENCE
from vitlab.evaluation.scores import Scores, select_split
from vitlab.evaluation.slices import MIN_IMAGES, describe_few, split_slices
from vitlab.registry import unknown

CHUNK = 200_000  # memberships held at once
WITHIN_CLASS = ("balanced_accuracy", "recall", "specificity", "roc_auc")  # free of the prevalence
TESTED = ("accuracy", *WITHIN_CLASS)


def worst_slice_table(
    predictions: pd.DataFrame,
    by: Sequence[str] = ("group",),
    metric: str = "balanced_accuracy",
    replicates: int = 1000,
    cluster=None,
) -> pd.DataFrame:
    """Each slice of the columns `by` against all other test images, the worst first.

    Columns column, slice, n, metric, value, rest, gap (value minus rest), low, high, p, p_holm,
    verdict, note. metric: one of TESTED; precision and F1 also change with the prevalence, which no
    permutation tests. low, high: 95 % percentile bootstrap interval; slice and rest are drawn
    separately. p: two-sided permutation test of slice membership, within each class, or for
    accuracy over all classes. p_holm: corrected for the number of slices (Holm, 1979). verdict:
    worse or better than the rest at the 5 % level, otherwise "no difference shown". Of a column
    with two values only the worse one is listed. Slices with too few images, or without a class
    that the metric needs, come last, with a note. cluster: as in `metrics_table`; the images of one
    cluster, class and slice are permuted together."""
    if metric not in TESTED:
        raise UserError(unknown("metric for comparing slices", metric, list(TESTED)))
    if isinstance(by, str):
        raise UserError(f"by takes a list of columns: write by=[{by!r}]")
    if replicates < 1:
        raise UserError(f"replicates must be at least 1, got {replicates}")
    scores, parts = split_slices(predictions, by)
    if not parts:
        columns = ", ".join(by) or "no column"
        raise UserError(f"nothing to compare: {columns} has one value only in split 'test'")
    clusters = read_clusters(select_split(predictions, "test"), cluster)
    rows = [
        {"column": column, "slice": name, "n": int(inside.sum()), "metric": metric}
        | _compare(scores, inside, METRICS.index(metric), replicates, clusters)
        for (column, name), inside in parts.items()
    ]
    table = pd.DataFrame(rows).sort_values("gap", kind="stable", ignore_index=True)
    sizes = pd.Series([column for column, _ in parts]).value_counts()
    mirrored = (table["gap"] > 0) | ((table["gap"] == 0) & table.duplicated("column"))
    table = table[~(mirrored & (table["column"].map(sizes) == 2))].reset_index(drop=True)
    table["p_holm"] = correct_holm(table["p"].to_numpy())
    side = np.where(table["gap"] < 0, "worse than the rest", "better than the rest")
    table["verdict"] = np.where(table["p_holm"] < ALPHA, side, NO_DIFFERENCE)
    table.loc[table["p"].isna(), "verdict"] = ""
    return table[[name for name in table if name != "note"] + ["note"]]


def _compare(
    scores: Scores,
    inside: np.ndarray,
    place: int,
    replicates: int,
    clusters: np.ndarray | None,
) -> dict:
    """value, rest, gap, low, high, p and note of one slice."""
    blank = dict.fromkeys(("value", "rest", "gap", "low", "high", "p"), np.nan)
    if inside.sum() < MIN_IMAGES:
        return {**blank, "note": describe_few(inside)}
    if (~inside).sum() < MIN_IMAGES:
        return {**blank, "note": f"the rest: {describe_few(~inside)}"}
    value, rest = (_weigh(scores, rows[None, :], place)[0] for rows in (inside, ~inside))
    for number, rows, who in ((value, inside, ""), (rest, ~inside, "the rest: ")):
        if np.isnan(number):
            lacking = describe_classes(scores.take(rows))
            return {**blank, "value": value, "rest": rest, "note": f"{who}{lacking}"}
    drawn = []
    for seed, rows in enumerate((inside, ~inside)):
        part, cluster = scores.take(rows), renumber(clusters, rows)
        chunks = draw_counts(int(rows.sum()), replicates, seed, cluster)
        drawn.append(np.concatenate([_weigh(part, counts, place) for counts in chunks]))
    gaps = (drawn[0] - drawn[1])[:, None]
    low, high, undefined = percentile_interval(gaps, estimate=value - rest)
    return {
        "value": value,
        "rest": rest,
        "gap": value - rest,
        "low": low[0],
        "high": high[0],
        "p": permutation_p(scores, inside, place, replicates, clusters),
        "note": describe_undefined(undefined[0]),
    }


def permutation_p(
    scores: Scores,
    inside: np.ndarray,
    place: int,
    permutations: int,
    cluster: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the gap: the share of random memberships, and the true one, whose gap is
    at least as large (Phipson and Smyth, 2010).

    place: of the metric in METRICS. Memberships (N,) are permuted within each class for the metrics
    of WITHIN_CLASS, otherwise over all images; the images of a cluster that are of one class and on
    one side move together. Memberships for which the metric is undefined are left out."""
    stratum = scores.label if METRICS[place] in WITHIN_CLASS else np.zeros_like(scores.label)
    units = np.column_stack(
        [stratum, inside, np.arange(len(inside)) if cluster is None else cluster]
    )
    _, first, unit = np.unique(units, axis=0, return_index=True, return_inverse=True)
    strata = [np.flatnonzero(stratum[first] == k) for k in np.unique(stratum)]

    def measure_gap(rows):
        return _weigh(scores, rows, place) - _weigh(scores, 1 - rows, place)

    generator, own = np.random.default_rng(seed), inside[first].astype(float)[None, :]
    observed, gaps = abs(measure_gap(own[:, unit])[0]), []
    chunk = max(1, CHUNK // len(inside))
    for start in range(0, permutations, chunk):
        members = np.repeat(own, min(chunk, permutations - start), axis=0)
        for part in strata:
            members[:, part] = generator.permuted(members[:, part], axis=1)
        gaps.append(np.abs(measure_gap(members[:, unit])))
    gaps = np.concatenate(gaps)
    gaps = gaps[~np.isnan(gaps)]
    return float((1 + (gaps >= observed - 1e-12).sum()) / (1 + len(gaps)))


def _weigh(scores: Scores, weights: np.ndarray, place: int) -> np.ndarray:
    return prepare_metrics(scores)(weights.astype(float))[:, place]
