"""Scores of several models and seeds: means, spreads, and differences to a baseline."""

from __future__ import annotations

import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.evaluation.metrics import class_table, metrics_table
from vitlab.registry import unknown

COLUMNS = ("model", "seed", "metric", "value")
SHOWN = ("balanced_accuracy", "f1", "accuracy", "roc_auc")


def comparison_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: columns model, metric, mean, spread, seeds.

    scores: a row for each run and metric, with columns model, seed, metric, value. spread: standard
    deviation over the seeds (n - 1), NaN for a single one. Raises UserError for two values of one
    model, seed and metric.

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
    return groups.agg(mean="mean", spread="std", seeds="count").reset_index()


def class_scores_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """What a method against imbalance may change on the test split: columns metric, value.

    The metrics are SHOWN, the recall of each class as `recall of <class>`, and calibration_error
    (lower is better)."""
    metrics = metrics_table(predictions, replicates=0).set_index("metric")["value"]
    recalls = class_table(predictions).set_index("class")["recall"].add_prefix("recall of ")
    error = pd.Series({"calibration_error": expected_calibration_error(predictions)})
    values = pd.concat([metrics[list(SHOWN)], recalls, error])
    return values.rename_axis("metric").reset_index(name="value")


def baseline_difference_table(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Difference of each model to `baseline`, seed by seed: columns model, metric, mean, spread,
    difference, lowest, highest.

    scores: as in `comparison_table`, whose mean and spread these are. difference: mean over the
    seeds that both have of value minus the baseline's; lowest, highest: its range. This describes a
    few seeds whose images overlap; it is not a test."""
    if baseline not in set(scores["model"]):
        raise UserError(unknown("baseline", baseline, list(scores["model"].unique())))
    own = scores[scores["model"] == baseline].set_index(["seed", "metric"])["value"]
    paired = scores.join(own.rename("baseline"), on=["seed", "metric"])
    paired["difference"] = paired["value"] - paired["baseline"]
    groups = paired.groupby(["model", "metric"], sort=False)["difference"]
    differences = groups.agg(difference="mean", lowest="min", highest="max").reset_index()
    summary = comparison_table(scores).drop(columns="seeds")
    return summary.merge(differences, on=["model", "metric"])
