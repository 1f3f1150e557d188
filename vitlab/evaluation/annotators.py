"""The model's probability beside the annotators' (soft labels)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vitlab.errors import UserError
from vitlab.evaluation.inference import bootstrap, percentile_interval
from vitlab.evaluation.scores import read_scores, select_split

COLUMN = "defect_probability"  # of the samples: the annotators' value, 0..1
AGREEMENT = ("spearman", "mean_difference", "brier", "constant_brier")


def annotator_table(predictions: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """The model's probability on the annotators' scale, a row for each test image: sample_id,
    label, annotators, predicted.

    samples: a table with sample_id, label and COLUMN (a run's splits.csv). With two classes,
    predicted is the probability of the last one; with more, each of which stands for one value (the
    grades of elpv:grade), the expected value under the predicted probabilities. Raises UserError
    for an image without a value and for classes without one."""
    scores = read_scores(predictions, "test")
    rows = select_split(predictions, "test")
    values = samples.set_index("sample_id")[COLUMN].astype(float)
    annotated = values.reindex(rows["sample_id"])
    bad = annotated[~annotated.between(0, 1)]
    if len(bad):
        raise UserError(
            f"{COLUMN} of {bad.index[0]!r} is {bad.iloc[0]}: each image needs a value between 0 and"
            f" 1 ({len(bad)} have none)"
        )
    predicted = scores.prob[:, 1]
    if len(scores.classes) > 2:
        groups = samples.groupby(samples["label"].astype(str))[COLUMN].agg(["min", "max"])
        ends = groups.reindex(list(scores.classes)).astype(float)
        vague = ~np.isclose(ends["min"], ends["max"])
        if vague.any():
            raise UserError(
                f"the classes {', '.join(ends.index[vague])} do not stand for one value of"
                f" {COLUMN} each, so there is no expected value"
            )
        predicted = scores.prob @ ends["min"].to_numpy()
    table = rows[["sample_id", "label"]].reset_index(drop=True)
    return table.assign(annotators=annotated.to_numpy(), predicted=predicted)


def annotator_agreement_table(
    predictions: pd.DataFrame, samples: pd.DataFrame, replicates: int = 1000
) -> pd.DataFrame:
    """Agreement of model and annotators on the test split, with 95 % bootstrap intervals: columns
    metric, value, low, high.

    samples: as in `annotator_table`. spearman: rank correlation, NaN if one side is constant.
    mean_difference: model minus annotators. brier: mean squared difference. constant_brier: the
    same for always predicting the annotators' mean."""
    table = annotator_table(predictions, samples)
    predicted, annotated = table["predicted"].to_numpy(), table["annotators"].to_numpy()

    def measure(weights: np.ndarray) -> np.ndarray:  # (R, N) -> (R, 4)
        drawn = [np.repeat(np.arange(len(table)), counts.astype(int)) for counts in weights]
        return np.array([_measure_agreement(predicted[rows], annotated[rows]) for rows in drawn])

    value = measure(np.ones((1, len(table))))[0]
    scores = read_scores(predictions, "test")
    drawn = bootstrap(measure, len(table), replicates, cluster=scores.cluster)
    low, high, _ = percentile_interval(drawn, value, scores.units)
    return pd.DataFrame({"metric": AGREEMENT, "value": value, "low": low, "high": high})


def _measure_agreement(predicted: np.ndarray, annotated: np.ndarray) -> list[float]:
    difference = predicted - annotated
    constant = np.ptp(predicted) == 0 or np.ptp(annotated) == 0
    correlation = np.nan
    if not constant:
        correlation = np.corrcoef(rankdata(predicted), rankdata(annotated))[0, 1]
    return [correlation, difference.mean(), (difference**2).mean(), annotated.var()]
