"""Several models, several seeds: one number and its spread for each metric."""

from __future__ import annotations

import pandas as pd

from vitlab.errors import UserError

COLUMNS = ("model", "seed", "metric", "value")


def comparison_table(runs_metrics: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: columns model, metric, mean, spread, low, high, seeds.

    runs_metrics: a row for each run and metric, with columns model, seed, metric, value. Models and
    metrics keep their order. spread: standard deviation over the seeds (n - 1), NaN for a single
    one. low, high: the worst and the best seed.

    >>> import pandas as pd, vitlab
    >>> scores = {"model": "vit", "seed": [0, 1], "metric": "accuracy", "value": [0.5, 0.75]}
    >>> float(vitlab.comparison_table(pd.DataFrame(scores)).loc[0, "mean"])
    0.625
    """
    check_runs_metrics(runs_metrics)
    groups = runs_metrics.groupby(["model", "metric"], sort=False, observed=True)["value"]
    return groups.agg(mean="mean", spread="std", low="min", high="max", seeds="count").reset_index()


def check_runs_metrics(runs_metrics: pd.DataFrame) -> None:
    """ValueError unless there is one value for each model, seed and metric."""
    missing = [name for name in COLUMNS if name not in runs_metrics.columns]
    if missing:
        raise UserError(
            f"the table of metrics lacks the columns {', '.join(missing)}; it needs"
            f" {', '.join(COLUMNS)}"
        )
    twice = runs_metrics[runs_metrics.duplicated(["model", "seed", "metric"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"two values of {first['metric']} for model {first['model']}, seed {first['seed']}:"
            " keep one run for each of them"
        )
