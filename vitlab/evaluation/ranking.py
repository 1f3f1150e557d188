"""Many models over several seeds, folds or data sets: do they differ at all (Friedman), and which ones (Nemenyi)?

The tests rank the models within each seed, so that a hard split is hard for all of them (Demsar, JMLR 7, 2006). They count
seeds as independent, which seeds of one data set are not: their training and test images overlap, p-values come out too small
(Bouckaert and Frank, 2004), and the data set itself stays the same. Read them as a screen; `pairwise_table` has a correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.errors import UserError
from vitlab.evaluation.comparison import check_runs_metrics
from vitlab.evaluation.paired import say_verdict
from vitlab.registry import unknown


def friedman_table(runs_metrics: pd.DataFrame, metrics: Sequence[str] | None = None, confidence: float = 0.95) -> pd.DataFrame:
    """Friedman's test (1937) that all models rank the same: a row for each metric.

    runs_metrics: a row for each run and metric, with columns model, seed, metric, value; more is better.
    Columns metric, models, seeds, statistic, p, effect_size, verdict, note. statistic: chi-squared, corrected for ties.
    effect_size: Kendall's W, 0 when the models' ranks are as if drawn anew for each seed, 1 when all seeds rank them alike.
    NaN for fewer than three models or two seeds. note: seeds left out because a model lacks them, and the smallest p that so
    few seeds can reach where that is not below 1 - confidence.
    """
    rows = []
    for metric in metrics if metrics is not None else list(runs_metrics["metric"].unique()):
        blocks, notes = read_blocks(runs_metrics, metric)
        seeds, models = blocks.shape
        statistic = p = np.nan
        if say_too_few(models, seeds):
            notes.insert(0, say_too_few(models, seeds))
        elif (blocks.nunique(axis=1) == 1).all():
            notes.append("all models are level on every seed")
        else:
            statistic, p = stats.friedmanchisquare(*blocks.to_numpy().T)
            smallest = stats.chi2.sf(seeds * (models - 1), models - 1)
            notes += say_smallest_p(seeds, smallest, 1 - confidence)
        differ = "not tested" if np.isnan(p) else "the models differ" if p < 1 - confidence else "no difference shown"
        effect_size = statistic / max(seeds * (models - 1), 1)
        numbers = {"models": models, "seeds": seeds, "statistic": statistic, "p": p, "effect_size": effect_size}
        rows.append({"metric": metric, **numbers, "verdict": differ, "note": "; ".join(notes)})
    return pd.DataFrame(rows)


def ranks_table(runs_metrics: pd.DataFrame, metric: str, confidence: float = 0.95) -> pd.DataFrame:
    """Mean rank of each model over the seeds, 1 the best.

    Columns metric, model, mean_rank, mean (of the metric), critical_difference, seeds, note.
    critical_difference: mean ranks closer than this are not shown to differ by Nemenyi's test; for k models and N seeds the
    quantile of the studentized range / sqrt(2) * sqrt(k (k + 1) / (6 N)) (Demsar, 2006). The best come first.
    NaN for fewer than three models or two seeds, as in `friedman_table`.
    """
    blocks, notes = read_blocks(runs_metrics, metric)
    seeds, models = blocks.shape
    critical = np.nan
    if say_too_few(models, seeds):
        notes.insert(0, say_too_few(models, seeds))
    else:
        critical = critical_difference(models, seeds, confidence)
        if critical > models - 1:
            notes.append(f"{seeds} seeds cannot show a difference: no two mean ranks can be {critical:.2f} apart")
    table = pd.DataFrame(
        {
            "metric": metric,
            "model": blocks.columns,
            "mean_rank": rank(blocks).mean().to_numpy(),
            "mean": blocks.mean().to_numpy(),
            "critical_difference": critical,
            "seeds": seeds,
            "note": "; ".join(notes),
        }
    )
    return table.sort_values("mean_rank", kind="stable", ignore_index=True)


def nemenyi_table(runs_metrics: pd.DataFrame, metric: str, confidence: float = 0.95) -> pd.DataFrame:
    """Nemenyi's test of all pairs of models by their mean ranks, for all of them at once.

    Columns model_a, model_b, metric, rank_a, rank_b, effect_size, p, verdict, note.
    effect_size: mean rank of a less that of b, so that it is positive where b is better. The p-values hold jointly for all pairs
    (studentized range); look at them only where `friedman_table` finds a difference.
    """
    blocks, notes = read_blocks(runs_metrics, metric)
    seeds, models = blocks.shape
    enough = not say_too_few(models, seeds)
    if enough:
        from scikit_posthocs import posthoc_nemenyi_friedman

        p = posthoc_nemenyi_friedman(blocks.to_numpy()).to_numpy()
    else:
        notes.insert(0, say_too_few(models, seeds))
    ranks = rank(blocks).mean()
    rows = []
    for one, other in combinations(range(models), 2):
        pair = (blocks.columns[one], blocks.columns[other])
        gap = float(ranks.iloc[one] - ranks.iloc[other])
        share = float(p[one, other]) if enough else np.nan
        row = {"model_a": pair[0], "model_b": pair[1], "metric": metric, "rank_a": ranks.iloc[one], "rank_b": ranks.iloc[other]}
        row |= {"effect_size": gap, "p": share, "verdict": say_verdict(pair, gap, share, 1 - confidence)}
        rows.append({**row, "note": "; ".join(notes)})
    columns = ["model_a", "model_b", "metric", "rank_a", "rank_b", "effect_size", "p", "verdict", "note"]
    return pd.DataFrame(rows, columns=columns)


def critical_difference(models: int, seeds: int, confidence: float) -> float:
    """Nemenyi's critical difference of mean ranks."""
    quantile = stats.studentized_range.ppf(confidence, models, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(models * (models + 1) / (6 * seeds)))


def rank(blocks: pd.DataFrame) -> pd.DataFrame:
    """Ranks of the models (columns) within each seed (row), 1 the highest value, the mean rank for ties."""
    return blocks.rank(axis=1, ascending=False)


def read_blocks(runs_metrics: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, list[str]]:
    """The metric with a row for each seed that all models have and a column for each model, and a note on seeds left out."""
    wide = read_seeds(runs_metrics, metric)
    blocks = wide.dropna()
    left_out = ", ".join(str(seed) for seed in wide.index.difference(blocks.index))
    return blocks, [f"not every model has a value for seed {left_out}: left out"] if left_out else []


def read_seeds(runs_metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric with a row for each seed and a column for each model, NaN where a model has no run of the seed."""
    check_runs_metrics(runs_metrics)
    there = list(runs_metrics["metric"].unique())
    if metric not in there:
        raise UserError(unknown("metric", metric, there))
    chosen = runs_metrics[runs_metrics["metric"] == metric]
    models = list(chosen["model"].unique())
    wide = chosen.pivot(index="seed", columns="model", values="value")[models]
    return wide.round(12)  # no rounding error decides a rank


def say_too_few(models: int, seeds: int) -> str:
    """Why the models cannot be tested together; empty if they can."""
    if models < 3:
        return f"{models} model{'s' * (models > 1)}, and the test needs three"
    return say_few_seeds(seeds) if seeds < 2 else ""


def say_few_seeds(seeds: int) -> str:
    return f"{seeds or 'no'} seed{'s' * (seeds != 1)} in common: nothing can be tested"


def say_smallest_p(seeds: int, smallest: float, alpha: float) -> list[str]:
    """A note where not even the clearest result could be below alpha."""
    if smallest < alpha:
        return []
    return [f"{seeds} seeds cannot show a difference: the smallest p they can reach is {smallest:.2g}"]
