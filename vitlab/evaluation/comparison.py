"""Several models, several seeds: means and spreads, and methods against imbalance beside a
baseline."""

from __future__ import annotations

import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.evaluation.metrics import class_table, metrics_table
from vitlab.registry import unknown

COLUMNS = ("model", "seed", "metric", "value")
SHOWN = ("balanced_accuracy", "f1", "accuracy", "roc_auc")


def comparison_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: columns model, metric, mean, spread, low, high, seeds.

    scores: a row for each run and metric, with columns model, seed, metric, value. spread: standard
    deviation over the seeds (n - 1), NaN for a single one. low, high: the worst and the best seed.
    Raises UserError for two values of one model, seed and metric.

    >>> import pandas as pd, vitlab
    >>> scores = {"model": "vit", "seed": [0, 1], "metric": "accuracy", "value": [0.5, 0.75]}
    >>> float(vitlab.evaluation.comparison_table(pd.DataFrame(scores)).loc[0, "mean"])
    0.625
    """
    missing = [name for name in COLUMNS if name not in scores.columns]
    if missing:
        raise UserError(
            f"the table of scores lacks the columns {', '.join(missing)}; it needs"
            f" {', '.join(COLUMNS)}"
        )
    twice = scores[scores.duplicated(["model", "seed", "metric"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"two values of {first['metric']} for model {first['model']}, seed {first['seed']}:"
            " keep one run for each of them"
        )
    groups = scores.groupby(["model", "metric"], sort=False, observed=True)["value"]
    return groups.agg(mean="mean", spread="std", low="min", high="max", seeds="count").reset_index()


def class_scores_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """What a method against imbalance may change on the test split: columns metric, value.

    The metrics are SHOWN, the recall of each class as `recall of <class>`, and calibration_error
    (lower is better)."""
    metrics = metrics_table(predictions, replicates=0).set_index("metric")["value"]
    recalls = class_table(predictions).set_index("class")["recall"]
    values = {name: metrics[name] for name in SHOWN}
    values |= {f"recall of {name}": value for name, value in recalls.items()}
    values["calibration_error"] = expected_calibration_error(predictions)
    return pd.DataFrame({"metric": values.keys(), "value": map(float, values.values())})


def imbalance_table(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Each variant beside `baseline`, seed by seed: columns model, metric, mean, spread,
    difference, lowest, highest, rose, seeds.

    scores: as in `comparison_table`. difference: mean over the seeds that both have of value minus
    the baseline's; lowest, highest: its range; rose: number of seeds in which it is above 0; seeds:
    their number. This describes a few seeds whose images overlap; it is not a test."""
    summary = comparison_table(scores).drop(columns=["low", "high", "seeds"])
    if baseline not in set(scores["model"]):
        raise UserError(unknown("baseline", baseline, list(scores["model"].unique())))
    own = scores[scores["model"] == baseline].set_index(["seed", "metric"])["value"]
    paired = scores.join(own.rename("baseline"), on=["seed", "metric"])
    paired["difference"] = paired["value"] - paired["baseline"]
    paired["rise"] = (paired["difference"] > 0).where(paired["difference"].notna())
    groups = paired.groupby(["model", "metric"], sort=False)
    pairs = groups.agg(
        difference=("difference", "mean"),
        lowest=("difference", "min"),
        highest=("difference", "max"),
        rose=("rise", "sum"),
        seeds=("difference", "count"),
    ).astype({"rose": int})
    return summary.merge(pairs.reset_index(), on=["model", "metric"])
