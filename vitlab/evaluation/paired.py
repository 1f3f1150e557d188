"""Two models on the same test images: is one of them better?

Both models had the same images, easy or hard, so their difference is known better than two
intervals side by side suggest. All p-values are two-sided. They hold for these two trained models
and other images of the same kind; whether the *recipe* is better needs several seeds
(`pairwise_table`). Ten metrics are ten chances to find something: choose the one that counts
beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import read_clusters
from vitlab.evaluation.metrics import METRICS
from vitlab.evaluation.scores import Scores, read_scores, select_split
from vitlab.evaluation.uncertainty import (
    RunScores,
    image_variance,
    measure_runs,
    seed_variance,
    t_interval,
    total_error,
)

ALPHA = 0.05  # of every verdict
NO_DIFFERENCE = "no difference shown"


def paired_table(
    a: pd.DataFrame,
    b: pd.DataFrame,
    names: tuple[str, str] = ("a", "b"),
    metrics: Sequence[str] = METRICS,
    replicates: int = 1000,
    cluster: str | pd.Series | None = None,
    split: str = "test",
) -> pd.DataFrame:
    """The difference b - a of each metric, both models measured on the same resamples.

    a, b: predictions tables of the same images, in any order; UserError otherwise. cluster: as
    in `metrics_table`. Columns model_a, model_b, metric, value_a, value_b, difference, low, high,
    p, verdict. low, high, p: 95 % t interval and t-test with the bootstrap's standard error; the
    degrees of freedom are the number of images (or clusters) less one. verdict: which model is
    better at the 5 % level, or "no difference shown", which does not mean "equal": the interval
    says how large a difference may still be."""
    check_names(names)
    read_pair(a, b, names, split)
    tables = dict(zip(names, (a, b), strict=True))
    runs = measure_runs(tables, metrics, replicates, cluster, split)
    rows = []
    for column, metric in enumerate(metrics):
        found = compare_runs(runs, [0], [1], column)
        verdict = say_verdict(names, found["difference"], found["p"])
        if np.isnan(found["difference"]):
            verdict = f"not defined: {runs.missing[0]}"
        row = {"model_a": names[0], "model_b": names[1], "metric": metric}
        rows.append({**row, **found, "verdict": verdict})
    return pd.DataFrame(rows)


def compare_runs(
    runs: RunScores, a: Sequence[int], b: Sequence[int], column: int
) -> dict[str, float]:
    """value_a, value_b, difference, low, high and p of the runs b against the runs a, which are
    pairs on the same images."""
    value_a, value_b = (float(runs.values[rows, column].mean()) for rows in (a, b))
    difference = round(value_b - value_a, 12)  # a rounding error is no difference
    units, drawn = runs.count_units(a), runs.drawn[:, :, column]
    images = image_variance((drawn[:, b] - drawn[:, a]).round(12), units)
    seeds = sum(seed_variance(runs.values[rows, column], drawn[:, rows], units) for rows in (a, b))
    # The differences may vary more than the models do by themselves; two seeds cannot tell.
    if len(a) > 2:
        gaps = runs.values[b, column] - runs.values[a, column]
        seeds = max(seeds, seed_variance(gaps, drawn[:, b] - drawn[:, a], units))
    error, freedom = total_error(images, seeds, len(a), 2, units)
    low, high = t_interval(difference, error, freedom)
    if error > 0:
        p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    else:  # no variation at all, or NaN where it is unknown
        p = 1.0 if difference == 0 else float(error)
    return {
        "value_a": value_a,
        "value_b": value_b,
        "difference": difference,
        "low": low,
        "high": high,
        "p": p,
    }


def mcnemar_table(
    a: pd.DataFrame,
    b: pd.DataFrame,
    names: tuple[str, str] = ("a", "b"),
    cluster: str | pd.Series | None = None,
) -> pd.DataFrame:
    """McNemar's exact test (1947) of right and wrong answers on the test images, in one row.

    Columns model_a, model_b, both_right, only_a_right, only_b_right, both_wrong, p, verdict. The
    four counts are of images. In the test each cluster counts once, for the model that has more of
    it right. cluster: as in `metrics_table`."""
    check_names(names)
    scores_a, scores_b, rows = read_pair(a, b, names)
    right_a, right_b = scores_a.pred == scores_a.label, scores_b.pred == scores_b.label
    gained = right_b.astype(int) - right_a
    clusters = read_clusters(rows, cluster)
    votes = gained if clusters is None else np.bincount(clusters, weights=gained)
    only_a, only_b = int((votes < 0).sum()), int((votes > 0).sum())
    if only_a + only_b:
        p = float(stats.binomtest(only_b, only_a + only_b).pvalue)
        verdict = say_verdict(names, only_b - only_a, p)
    else:
        p, verdict = np.nan, f"{NO_DIFFERENCE}: no image on which only one of them is right"
    row = {
        "model_a": names[0],
        "model_b": names[1],
        "both_right": int((right_a & right_b).sum()),
        "only_a_right": int((gained < 0).sum()),
        "only_b_right": int((gained > 0).sum()),
        "both_wrong": int((~right_a & ~right_b).sum()),
        "p": p,
        "verdict": verdict,
    }
    return pd.DataFrame([row])


def say_verdict(names: tuple[str, str], difference: float, p: float) -> str:
    """Which model is better, for difference = second - first; or that no difference is shown."""
    if np.isnan(p):
        return "not tested"
    if p < ALPHA and difference != 0:
        return f"{names[1] if difference > 0 else names[0]} better"
    return NO_DIFFERENCE


def read_pair(
    a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], split: str = "test"
) -> tuple[Scores, Scores, pd.DataFrame]:
    """The scores of both models in the order of a, and a's rows.

    Raises UserError that says what differs, unless classes, images and labels are the same."""
    scores_a, scores_b = read_scores(a, split), read_scores(b, split)
    if scores_a.classes != scores_b.classes:
        one, other = (", ".join(scores.classes) for scores in (scores_a, scores_b))
        raise UserError(f"the models have different classes: {names[0]} {one}; {names[1]} {other}")
    rows, others = select_split(a, split), select_split(b, split)
    place = pd.Index(others["sample_id"]).get_indexer(rows["sample_id"])
    only_a = rows["sample_id"][place < 0]
    only_b = others["sample_id"][~others["sample_id"].isin(rows["sample_id"])]
    if len(only_a) or len(only_b):
        parts = [
            f"{len(ids)} only in {name}, first {ids.iloc[0]!r}"
            for name, ids in zip(names, (only_a, only_b), strict=True)
            if len(ids)
        ]
        raise UserError(
            f"{names[0]} and {names[1]} were not tested on the same images: {'; '.join(parts)};"
            " compare runs of the same split, which is that of the same seed"
        )
    scores_b = scores_b.take(place)
    differ = np.flatnonzero(scores_a.label != scores_b.label)
    if len(differ):
        labels = [scores.classes[scores.label[differ[0]]] for scores in (scores_a, scores_b)]
        raise UserError(
            f"{len(differ)} images have another label in {names[1]} than in {names[0]}, first"
            f" {rows['sample_id'].iloc[differ[0]]!r}: {labels[1]!r} instead of {labels[0]!r}"
        )
    return scores_a, scores_b, rows


def check_names(names: Sequence[str]) -> None:
    """UserError unless there are two different names."""
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"names must be two different ones, those of the models; got {names!r}")
