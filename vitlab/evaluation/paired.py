"""Two models on the same test samples: is one of them better?

Both models had the same test samples, easy or hard, so their difference is known better than two
intervals side by side suggest. All p-values are two-sided. They hold for these two trained models
and other samples of the same kind; whether the *recipe* is better needs several seeds
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
    Runs,
    image_variance,
    measure_runs,
    seed_variance,
    t_interval,
    total_error,
)


def paired_table(
    a: pd.DataFrame,
    b: pd.DataFrame,
    names: tuple[str, str] = ("a", "b"),
    metrics: Sequence[str] = METRICS,
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster: str | pd.Series | None = None,
) -> pd.DataFrame:
    """The difference b - a of each metric, with the bootstrap error of both models measured on the
    same resamples.

    Columns model_a, model_b, metric, value_a, value_b, difference, low, high, effect_size, p,
    verdict. a, b: predictions tables of the same samples (in any order), else UserError. cluster:
    samples that are drawn together, such as near-duplicates: the name of a column, or a Series of
    cluster ids with sample_ids as index. low, high, p: t interval and t-test with the standard
    deviation of the replicates; its degrees of freedom are the number of samples (or clusters) less
    one. effect_size: the difference as a share of what the worse model lacks to a perfect 1; 0.25
    means a quarter of it is gone. verdict: which model is better at 1 - confidence, or "no
    difference shown", which is not "equal": the interval says how large a difference may still be.
    """
    check_names(names)
    read_pair(a, b, names, split)
    runs = measure_runs(
        dict(zip(names, (a, b), strict=True)), metrics, split, positive, replicates, seed, cluster
    )
    rows = []
    for column, metric in enumerate(metrics):
        found = compare_runs(runs, [0], [1], column, confidence)
        verdict = say_verdict(names, found["difference"], found["p"], 1 - confidence)
        verdict = f"not defined: {runs.missing[0]}" if np.isnan(found["difference"]) else verdict
        rows.append(
            {
                "model_a": names[0],
                "model_b": names[1],
                "metric": metric,
                **found,
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)


def compare_runs(
    runs: Runs, a: Sequence[int], b: Sequence[int], column: int, confidence: float
) -> dict[str, float]:
    """value_a, value_b, difference, low, high, effect_size and p of the runs b against the runs a,
    pairs on the same images.
    """
    value_a, value_b = (float(runs.values[rows, column].mean()) for rows in (a, b))
    difference = round(value_b - value_a, 12)  # no rounding error makes a difference
    units, drawn = runs.count_units(a), runs.drawn[:, :, column]
    images = image_variance((drawn[:, b] - drawn[:, a]).round(12), units)
    seeds = sum(seed_variance(runs.values[rows, column], drawn[:, rows], units) for rows in (a, b))
    # the differences may vary more than the models by themselves; of two seeds nobody can tell
    if len(a) > 2:
        gaps = runs.values[b, column] - runs.values[a, column]
        seeds = max(seeds, seed_variance(gaps, drawn[:, b] - drawn[:, a], units))
    error, freedom = total_error(images, seeds, len(a), 2, units)
    low, high = t_interval(difference, error, freedom, confidence)
    # 0 without any variation; NaN where the variation is not known
    unvaried = 1.0 if difference == 0 else float(error)
    p = float(2 * stats.t.sf(abs(difference) / error, freedom)) if error > 0 else unvaried
    return {
        "value_a": value_a,
        "value_b": value_b,
        "difference": difference,
        "low": low,
        "high": high,
        "effect_size": (
            difference / (1 - min(value_a, value_b)) if min(value_a, value_b) < 1 else np.nan
        ),
        "p": p,
    }


def mcnemar_table(
    a: pd.DataFrame,
    b: pd.DataFrame,
    names: tuple[str, str] = ("a", "b"),
    split: str = "test",
    confidence: float = 0.95,
    cluster: str | pd.Series | None = None,
) -> pd.DataFrame:
    """McNemar's exact test (1947) of right and wrong predictions, in one row. Samples that both
    have right, or wrong, do not count.

    Columns model_a, model_b, both_right, only_a_right, only_b_right, both_wrong, odds_ratio, low,
    high, effect_size, p, verdict. The test takes the samples as independent. cluster: samples that
    are not, such as near-duplicates, as in `paired_table`; the four counts are still of samples,
    but a cluster then counts once in what follows, for the model that has more of it right.
    odds_ratio: (only_b_right / only_a_right) with its exact interval (Clopper and Pearson);
    infinite when b never loses. effect_size: Cohen's g, the share that b wins of the discordant
    samples, less one half: .05 is small, .15 medium, .25 large (Cohen, 1988)."""
    check_names(names)
    scores_a, scores_b, rows = read_pair(a, b, names, split)
    right_a, right_b = scores_a.pred == scores_a.label, scores_b.pred == scores_b.label
    gained = right_b.astype(int) - right_a
    clusters = read_clusters(rows, cluster)
    votes = gained if clusters is None else np.bincount(clusters, weights=gained)
    only_a, only_b = int((votes < 0).sum()), int((votes > 0).sum())
    row = {"odds_ratio": np.nan, "low": np.nan, "high": np.nan, "effect_size": np.nan, "p": np.nan}
    verdict = "no difference shown: no sample on which only one of them is right"
    if only_a + only_b:
        test = stats.binomtest(only_b, only_a + only_b)
        interval = test.proportion_ci(confidence, method="exact")
        odds = [
            share / (1 - share) if share < 1 else np.inf
            for share in (test.statistic, interval.low, interval.high)
        ]
        verdict = say_verdict(names, only_b - only_a, test.pvalue, 1 - confidence)
        row = dict(zip(("odds_ratio", "low", "high"), odds, strict=True))
        row |= {"effect_size": test.statistic - 0.5, "p": float(test.pvalue)}
    table = {"model_a": names[0], "model_b": names[1], "both_right": int((right_a & right_b).sum())}
    table |= {"only_a_right": int((gained < 0).sum()), "only_b_right": int((gained > 0).sum())}
    return pd.DataFrame(
        [{**table, "both_wrong": int((~right_a & ~right_b).sum()), **row, "verdict": verdict}]
    )


def say_verdict(names: tuple[str, str], difference: float, p: float, alpha: float) -> str:
    """In words, for difference = second - first: which one is better, or that no difference is
    shown.
    """
    if np.isnan(p):
        return "not tested"
    if p < alpha and difference != 0:
        return f"{names[1] if difference > 0 else names[0]} better"
    return "no difference shown"


def read_pair(
    a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], split: str
) -> tuple[Scores, Scores, pd.DataFrame]:
    """The scores of both models in the order of a, and a's rows; UserError that says what differs
    if the samples do.
    """
    scores_a, scores_b = read_scores(a, split), read_scores(b, split)
    if scores_a.classes != scores_b.classes:
        one, other = (", ".join(scores.classes) for scores in (scores_a, scores_b))
        raise UserError(f"the models know different classes: {names[0]} {one}; {names[1]} {other}")
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
            f"{names[0]} and {names[1]} were not tested on the same samples: {'; '.join(parts)}; "
            "compare runs of the same split, which is that of the same seed"
        )
    scores_b = scores_b.take(place)
    differ = np.flatnonzero(scores_a.label != scores_b.label)
    if len(differ):
        labels = [scores.classes[scores.label[differ[0]]] for scores in (scores_a, scores_b)]
        raise UserError(
            f"{len(differ)} samples have another label in {names[1]} than in {names[0]}, first "
            f"{rows['sample_id'].iloc[differ[0]]!r}: {labels[1]!r} instead of {labels[0]!r}"
        )
    return scores_a, scores_b, rows


def check_names(names: Sequence[str]) -> None:
    """UserError unless there are two different names."""
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"names must be two different ones, those of the models; got {names!r}")
