"""Two models on the same test samples: is one of them better?

What chance gave to one model's test set it gave to the other's too, so the difference is far surer than the two intervals
side by side suggest. All p-values are two-sided. They speak of these two trained models and other samples of the same kind;
whether the *recipe* is better needs several seeds (`pairwise_table`). Ten metrics are ten chances to find something: name the
one that counts beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, percentile_interval, read_clusters
from vitlab.evaluation.metrics import METRICS, describe_classes, prepare_metrics
from vitlab.evaluation.scores import Scores, read_scores, select_split, target_classes
from vitlab.registry import unknown


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
    cluster=None,
) -> pd.DataFrame:
    """Paired bootstrap of the difference b - a of each metric, both models measured on the same resamples.

    Columns model_a, model_b, metric, value_a, value_b, difference, low, high, effect_size, p, verdict.
    a, b: predictions tables of the same samples (in any order), else ValueError. cluster: as in `metrics_table`.
    low, high: percentile interval of the difference. p: twice the share of replicates on the other side of 0, itself counted in,
    so never below 2 / (replicates + 1) (Davison and Hinkley, 1997, section 4.4). effect_size: the difference as a share of what
    the worse model lacks to a perfect 1; 0.25 means a quarter of it is gone. verdict: who is better at 1 - confidence, or
    "no difference shown", which is not "equal": the interval says how large a difference may still be.
    """
    check_names(names)
    check_metrics(metrics)
    scores_a, scores_b, rows = read_pair(a, b, names, split)
    targets = target_classes(scores_a.classes, positive)
    chosen = [METRICS.index(name) for name in metrics]
    measure_a, measure_b = prepare_metrics(scores_a, targets), prepare_metrics(scores_b, targets)

    def measure(weights: np.ndarray) -> np.ndarray:
        return np.round((measure_b(weights) - measure_a(weights))[:, chosen], 12)  # no rounding error decides on which side of 0

    num_samples = len(scores_a.label)
    once = np.ones((1, num_samples))
    value_a, value_b = measure_a(once)[0, chosen], measure_b(once)[0, chosen]
    clusters = read_clusters(rows, cluster)
    drawn = bootstrap(measure, num_samples, replicates, seed, clusters)
    if clusters is not None and clusters.max() == 0:
        drawn[:] = np.nan  # one cluster is always drawn: its spread is not known
    low, high, _ = percentile_interval(drawn, confidence)
    difference = value_b - value_a
    p = bootstrap_p(drawn)
    p[np.isnan(difference)] = low[np.isnan(difference)] = high[np.isnan(difference)] = np.nan
    missing = describe_classes(scores_a)
    with np.errstate(invalid="ignore"):
        effect_size = difference / (1 - np.minimum(value_a, value_b))
    return pd.DataFrame(
        {
            "model_a": names[0],
            "model_b": names[1],
            "metric": list(metrics),
            "value_a": value_a,
            "value_b": value_b,
            "difference": difference,
            "low": low,
            "high": high,
            "effect_size": effect_size,
            "p": p,
            "verdict": [
                f"not defined: {missing}" if np.isnan(gap) else say_verdict(names, gap, share, 1 - confidence)
                for gap, share in zip(difference, p, strict=True)
            ],
        }
    )


def bootstrap_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-value for a difference of 0 of each column of replicates (R, M); NaN replicates are left out."""
    defined = (~np.isnan(differences)).sum(axis=0)
    tail = np.minimum((differences <= 0).sum(axis=0), (differences >= 0).sum(axis=0))
    return np.where(defined > 0, np.minimum(2 * (tail + 1) / (defined + 1), 1), np.nan)


def mcnemar_table(
    a: pd.DataFrame,
    b: pd.DataFrame,
    names: tuple[str, str] = ("a", "b"),
    split: str = "test",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """McNemar's test (1947) of the answers, right or wrong: one row. Samples on which both are right, or both wrong, say nothing.

    Columns model_a, model_b, both_right, only_a_right, only_b_right, both_wrong, odds_ratio, low, high, effect_size, p, verdict.
    p: of the exact test (binomial), for many discordant samples as for few; the chi-squared approximation is not needed.
    odds_ratio: only_b_right / only_a_right with its exact interval (Clopper and Pearson); infinite when b
    never loses. effect_size: Cohen's g, the share of the discordant samples that b has right, less one half: .05 is small,
    .15 medium, .25 large (Cohen, 1988).
    """
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.proportion import proportion_confint

    check_names(names)
    scores_a, scores_b, _ = read_pair(a, b, names, split)
    right_a, right_b = scores_a.pred == scores_a.label, scores_b.pred == scores_b.label
    counts = np.array([[(x & y).sum() for y in (right_b, ~right_b)] for x in (right_a, ~right_a)])
    only_a, only_b = int(counts[0, 1]), int(counts[1, 0])
    discordant = only_a + only_b
    row = {"odds_ratio": np.nan, "low": np.nan, "high": np.nan, "effect_size": np.nan, "p": np.nan}
    verdict = "no difference shown: no sample on which only one of them is right"
    if discordant:
        low, high = proportion_confint(only_b, discordant, 1 - confidence, method="beta")
        odds = [share / (1 - share) if share < 1 else np.inf for share in (only_b / discordant, low, high)]
        p = float(mcnemar(counts, exact=True).pvalue)
        verdict = say_verdict(names, only_b - only_a, p, 1 - confidence)
        row = dict(zip(("odds_ratio", "low", "high"), odds, strict=True))
        row |= {"effect_size": only_b / discordant - 0.5, "p": p}
    table = {"model_a": names[0], "model_b": names[1], "both_right": int(counts[0, 0])}
    table |= {"only_a_right": only_a, "only_b_right": only_b, "both_wrong": int(counts[1, 1])}
    return pd.DataFrame([{**table, **row, "verdict": verdict}])


def say_verdict(names: tuple[str, str], difference: float, p: float, alpha: float) -> str:
    """In words, for difference = second - first: which one is better, or that no difference is shown."""
    if np.isnan(p):
        return "not tested"
    if p < alpha and difference != 0:
        return f"{names[1] if difference > 0 else names[0]} better"
    return "no difference shown"


def read_pair(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], split: str) -> tuple[Scores, Scores, pd.DataFrame]:
    """The scores of both models in the order of a, and a's rows; ValueError that says what differs if the samples do."""
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
    """ValueError unless there are two different names."""
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"names are two different ones, those of the models; got {names!r}")


def check_metrics(metrics: Sequence[str]) -> None:
    """ValueError for a name that is none of METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(unknown("metric", name, list(METRICS)))
