"""Several ways to train a model for rare classes, seed by seed beside one of them."""

from __future__ import annotations

import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.evaluation.comparison import comparison_table
from vitlab.evaluation.metrics import class_table, metrics_table
from vitlab.registry import unknown

SHOWN = ("balanced_accuracy", "f1", "accuracy", "roc_auc")


def class_scores_table(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """What a remedy for imbalance may change: columns metric, value.

    The metrics are balanced_accuracy, f1 (with more than two classes the plain mean over them),
    accuracy, roc_auc, the recall of each class as `recall of <class>`, and calibration_error (the
    expected one, 10 bins: lower is better)."""
    metrics = metrics_table(predictions, split, replicates=0).set_index("metric")["value"]
    recalls = class_table(predictions, split).set_index("class")["recall"]
    values = {name: metrics[name] for name in SHOWN} | {
        f"recall of {name}": value for name, value in recalls.items()
    }
    values["calibration_error"] = expected_calibration_error(predictions, split=split)
    return pd.DataFrame({"metric": values.keys(), "value": map(float, values.values())})


def remedy_table(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Each model or variant beside `baseline`: columns model, metric, mean, spread, difference,
    lowest, highest, rose, seeds.

    scores: a row for each run and metric, with columns model, seed, metric, value. mean, spread: as
    in `comparison_table`. difference: the mean over the seeds that both have of value minus the
    baseline's value; lowest, highest: the least and the greatest of these differences; rose: seeds
    in which it is above 0; seeds: how many there are. Of a few seeds whose images overlap this is a
    description, not a test. ValueError for a baseline that is not among the models."""
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
