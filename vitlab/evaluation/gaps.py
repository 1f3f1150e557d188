"""Is a slice worse than the rest? The gap with its interval, a test, and a correction for having
looked at many slices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import draw_counts, percentile_interval, read_clusters, renumber
from vitlab.evaluation.few_images import correct_holm
from vitlab.evaluation.metrics import METRICS, REPORTED_SHARE, compute_metrics
from vitlab.evaluation.scores import Scores, select_split, target_classes
from vitlab.evaluation.slices import LEAST, cut_slices, describe_few
from vitlab.markup import escape
from vitlab.registry import unknown

CHUNK = 200_000  # memberships held at once
EVEN = "no difference shown"
# do not depend on how frequent each class is
WITHIN_CLASS = ("balanced_accuracy", "recall", "specificity", "roc_auc")


def worst_slice_table(
    predictions: pd.DataFrame,
    by: Sequence[str] = ("group",),
    metric: str = "balanced_accuracy",
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    bins: int = 4,
    least: int = LEAST,
    cluster=None,
) -> pd.DataFrame:
    """Each slice of the columns `by` against all other samples, the worst first.

    Columns: column, slice, n, metric, value, rest, gap (value minus rest), low, high, p, p_holm,
    verdict, note. metric: accuracy, balanced_accuracy, recall, specificity or roc_auc; precision,
    F1 and the like also move with the share of each class, and no permutation tests that. low,
    high: percentile bootstrap interval of the gap, slice and rest drawn each on its own. p:
    two-sided permutation test with `replicates` permutations of who is in the slice: within each
    class, since a slice with other shares of the classes is not a worse one; for accuracy, of right
    and wrong answers over all classes. cluster: as in `metrics_table`; the images of one cluster,
    class and slice then move together. p_holm: corrected for the number of slices (Holm, 1979).
    verdict: worse or better than the rest where p_holm is below 1 - confidence, otherwise "no
    difference shown", which does not say that there is none. Numbers are cut into `bins` slices. Of
    a column with two values only the worse one is listed: the other is its mirror image. Slices
    with fewer than `least` samples, in them or in the rest, or with a class missing that the metric
    needs, come last, without numbers and with a note."""
    tested = ("accuracy", *WITHIN_CLASS)
    if metric not in tested:
        raise UserError(unknown("metric for comparing slices", metric, list(tested)))
    if isinstance(by, str):
        raise UserError(f"by takes a list of columns: write by=[{by!r}]")
    if replicates < 1:
        raise UserError(
            f"replicates must be at least 1, got {replicates}: the test and the interval need them"
        )
    scores, parts = cut_slices(predictions, by, split, bins)
    if not parts:
        raise UserError(
            f"nothing to compare: {', '.join(by) or 'no column'} has one value only in split"
            f" {split!r}"
        )
    targets, place = target_classes(scores.classes, positive), METRICS.index(metric)
    clusters = read_clusters(select_split(predictions, split), cluster)
    rows = [
        {"column": column, "slice": name, "n": int(inside.sum()), "metric": metric}
        | _compare(scores, inside, targets, place, replicates, seed, confidence, least, clusters)
        for (column, name), inside in parts.items()
    ]
    table = pd.DataFrame(rows).sort_values("gap", kind="stable", ignore_index=True)
    table = table[
        ~(
            table["column"].map(pd.Series([column for column, _ in parts]).value_counts() == 2)
            & _is_mirror(table)
        )
    ]
    return _judge(table.reset_index(drop=True), 1 - confidence)


def _compare(
    scores: Scores,
    inside: np.ndarray,
    targets,
    place: int,
    replicates,
    seed,
    confidence,
    least,
    clusters,
):
    """value, rest, gap, low, high, p and note of one slice."""
    blank = dict.fromkeys(("value", "rest", "gap", "low", "high", "p"), np.nan)
    if inside.sum() < least:
        return {**blank, "note": describe_few(inside)}
    if (~inside).sum() < least:
        return {**blank, "note": f"the rest: {describe_few(~inside)}"}
    value, rest = (_weigh(scores, rows[None, :], targets, place)[0] for rows in (inside, ~inside))
    for number, rows, who in ((value, inside, ""), (rest, ~inside, "the rest: ")):
        if np.isnan(number):
            missing = np.array(scores.classes)[
                ~np.isin(range(len(scores.classes)), scores.label[rows])
            ]
            return {**blank, "value": value, "rest": rest, "note": f"{who}no {', '.join(missing)}"}
    drawn = []
    for shift, rows in enumerate((inside, ~inside)):
        part, chunks = (
            scores.take(rows),
            draw_counts(rows.sum(), replicates, seed + shift, renumber(clusters, rows)),
        )
        drawn.append(np.concatenate([_weigh(part, counts, targets, place) for counts in chunks]))
    low, high, undefined = percentile_interval(
        (drawn[0] - drawn[1])[:, None], confidence, value - rest
    )
    note = (
        f"{undefined[0]:.0%} of the replicates lack a class"
        if undefined[0] >= REPORTED_SHARE
        else ""
    )
    p = permutation_p(scores, inside, targets, place, replicates, seed, clusters)
    return {
        "value": value,
        "rest": rest,
        "gap": value - rest,
        "low": low[0],
        "high": high[0],
        "p": p,
        "note": note,
    }


def permutation_p(
    scores: Scores,
    inside: np.ndarray,
    targets: list[int],
    place: int,
    permutations: int,
    seed: int,
    cluster=None,
) -> float:
    """Two-sided p-value of the gap: the share of memberships drawn at random whose gap is as large,
    the true one among them.

    place: of the metric in METRICS. Memberships are permuted within each class for the metrics of
    WITHIN_CLASS, else over all samples; with clusters (N,), those of whole clusters, as far as they
    are of one class and on one side. Random memberships for which the metric is undefined are left
    out (Phipson and Smyth, 2010, for the one that is added)."""
    stratum = scores.label if METRICS[place] in WITHIN_CLASS else np.zeros_like(scores.label)
    units = np.column_stack(
        [stratum, inside, np.arange(len(inside)) if cluster is None else cluster]
    )
    _, first, unit = np.unique(units, axis=0, return_index=True, return_inverse=True)
    strata = [np.flatnonzero(stratum[first] == k) for k in np.unique(stratum)]

    def measure_gap(rows):
        return _weigh(scores, rows, targets, place) - _weigh(scores, 1 - rows, targets, place)

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


def _weigh(scores: Scores, weights: np.ndarray, targets: list[int], place: int) -> np.ndarray:
    return compute_metrics(scores, weights.astype(float), targets)[:, place]


def _is_mirror(table: pd.DataFrame) -> pd.Series:
    """The better half of a column with two slices: its gap is that of the other one with its sign
    changed.
    """
    return (table["gap"] > 0) | ((table["gap"] == 0) & table.duplicated("column"))


def _judge(table: pd.DataFrame, level: float) -> pd.DataFrame:
    known = table["p"].notna()
    table["p_holm"] = correct_holm(table["p"].to_numpy())
    side = np.where(table["gap"] < 0, "worse than the rest", "better than the rest")
    table["verdict"] = np.where(table["p_holm"] < level, side, EVEN)
    table.loc[~known, "verdict"] = ""
    return table[[name for name in table if name != "note"] + ["note"]]


def describe_gaps(table: pd.DataFrame) -> str:
    """The worst slice of a `worst_slice_table` and what the corrected test shows, in two
    sentences.
    """
    worst, clear = table.iloc[0], table[table["verdict"].str.endswith("than the rest")]
    measure, name = worst["metric"].replace("_", " "), f"{worst['column']} {escape(worst['slice'])}"
    if np.isnan(worst["gap"]):
        return "No slice has enough images for a comparison."
    text = (
        f"The worst of {table['gap'].notna().sum()} slices is *{name}* ({worst['n']} images): its"
        f" {measure} less that of the other images is {worst['gap']:+.3f} [{worst['low']:+.3f},"
        f" {worst['high']:+.3f}]. "
    )
    if clear.empty:
        return (
            text
            + "After correction for the number of slices, **no difference is shown**; a small one"
            " may be hidden."
        )
    names = ", ".join(
        f"{row.column} {escape(row.slice)} ({row.gap:+.3f})" for row in clear.itertuples()
    )
    return text + f"After correction for the number of slices, these differ from the rest: {names}."
