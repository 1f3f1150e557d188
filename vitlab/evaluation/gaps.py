"""Is a slice worse than the rest? The gap with its interval, a test, and a correction for having looked at many slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import draw_counts, percentile_interval
from vitlab.evaluation.metrics import METRICS, REPORTED_SHARE, compute_metrics
from vitlab.evaluation.scores import Scores, target_classes
from vitlab.evaluation.slices import LEAST, cut_slices, describe_few
from vitlab.registry import unknown

CHUNK = 200_000  # memberships held at once
EVEN = "no difference shown"


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
) -> pd.DataFrame:
    """Each slice of the columns `by` against all other samples, the worst first.

    Columns: column, slice, n, metric, value, rest, gap (value minus rest), low, high, p, p_holm, verdict, note.
    low, high: percentile bootstrap interval of the gap, slice and rest drawn each on its own. p: two-sided permutation test with
    `replicates` permutations; that the slice has nothing to do with labels and answers is what it may reject. p_holm: corrected
    for the number of slices (Holm, 1979). verdict: worse or better than the rest where p_holm is below 1 - confidence, otherwise
    "no difference shown", which does not say that there is none.
    Numbers are cut into `bins` slices. Of a column with two values only the worse one is listed: the other is its mirror image.
    Slices with fewer than `least` samples, in them or in the rest, or with a class missing that the metric needs, come last,
    without numbers and with a note.
    """
    if metric not in METRICS:
        raise UserError(unknown("metric", metric, list(METRICS)))
    if isinstance(by, str):
        raise UserError(f"by takes a list of columns: write by=[{by!r}]")
    if replicates < 1:
        raise UserError(f"replicates must be at least 1, got {replicates}: the test and the interval need them")
    scores, parts = cut_slices(predictions, by, split, bins)
    if not parts:
        raise UserError(f"nothing to compare: {', '.join(by) or 'no column'} has one value only in split {split!r}")
    targets, place = target_classes(scores.classes, positive), METRICS.index(metric)
    rows = [
        {"column": column, "slice": name, "n": int(inside.sum()), "metric": metric}
        | _compare(scores, inside, targets, place, replicates, seed, confidence, least)
        for (column, name), inside in parts.items()
    ]
    table = pd.DataFrame(rows).sort_values("gap", kind="stable", ignore_index=True)
    table = table[~(table["column"].map(pd.Series([column for column, _ in parts]).value_counts() == 2) & _is_mirror(table))]
    return _judge(table.reset_index(drop=True), 1 - confidence)


def _compare(scores: Scores, inside: np.ndarray, targets, place: int, replicates: int, seed: int, confidence: float, least: int):
    """value, rest, gap, low, high, p and note of one slice."""
    blank = dict.fromkeys(("value", "rest", "gap", "low", "high", "p"), np.nan)
    if inside.sum() < least:
        return {**blank, "note": describe_few(inside)}
    if (~inside).sum() < least:
        return {**blank, "note": f"the rest: {describe_few(~inside)}"}
    value, rest = (_weigh(scores, rows[None, :], targets, place)[0] for rows in (inside, ~inside))
    for number, rows, who in ((value, inside, ""), (rest, ~inside, "the rest: ")):
        if np.isnan(number):
            missing = np.array(scores.classes)[~np.isin(range(len(scores.classes)), scores.label[rows])]
            return {**blank, "value": value, "rest": rest, "note": f"{who}no {', '.join(missing)}"}
    drawn = []
    for shift, part in enumerate((scores.take(inside), scores.take(~inside))):
        chunks = draw_counts(len(part.label), replicates, seed + shift)
        drawn.append(np.concatenate([_weigh(part, counts, targets, place) for counts in chunks]))
    low, high, undefined = percentile_interval((drawn[0] - drawn[1])[:, None], confidence)
    note = f"{undefined[0]:.0%} of the replicates lack a class" if undefined[0] >= REPORTED_SHARE else ""
    p = permutation_p(scores, inside, targets, place, replicates, seed)
    return {"value": value, "rest": rest, "gap": value - rest, "low": low[0], "high": high[0], "p": p, "note": note}


def permutation_p(scores: Scores, inside: np.ndarray, targets: list[int], place: int, permutations: int, seed: int) -> float:
    """Two-sided p-value of the gap: the share of memberships drawn at random whose gap is as large, the true one among them.

    Random memberships for which the metric is undefined are left out (Phipson and Smyth 2010, for the one that is added).
    """

    def measure_gap(rows):
        return _weigh(scores, rows, targets, place) - _weigh(scores, 1 - rows, targets, place)

    generator, own = np.random.default_rng(seed), inside.astype(float)[None, :]
    observed, gaps = abs(measure_gap(own)[0]), []
    chunk = max(1, CHUNK // len(inside))
    for start in range(0, permutations, chunk):
        rows = min(chunk, permutations - start)
        gaps.append(np.abs(measure_gap(generator.permuted(np.repeat(own, rows, axis=0), axis=1))))
    gaps = np.concatenate(gaps)
    gaps = gaps[~np.isnan(gaps)]
    return float((1 + (gaps >= observed - 1e-12).sum()) / (1 + len(gaps)))


def _weigh(scores: Scores, weights: np.ndarray, targets: list[int], place: int) -> np.ndarray:
    return compute_metrics(scores, weights.astype(float), targets)[:, place]


def _is_mirror(table: pd.DataFrame) -> pd.Series:
    """The better half of a column with two slices: its gap is that of the other one with its sign changed."""
    return (table["gap"] > 0) | ((table["gap"] == 0) & table.duplicated("column"))


def _judge(table: pd.DataFrame, level: float) -> pd.DataFrame:
    from statsmodels.stats.multitest import multipletests  # takes a second to import

    known = table["p"].notna()
    table["p_holm"] = np.nan
    if known.any():
        table.loc[known, "p_holm"] = multipletests(table.loc[known, "p"], method="holm")[1]
    side = np.where(table["gap"] < 0, "worse than the rest", "better than the rest")
    table["verdict"] = np.where(table["p_holm"] < level, side, EVEN)
    table.loc[~known, "verdict"] = ""
    return table[[name for name in table if name != "note"] + ["note"]]
