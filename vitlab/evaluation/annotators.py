"""The model's probability beside the annotators' (soft labels)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import draw_counts, percentile_interval, read_clusters
from vitlab.evaluation.scores import read_scores, select_split
from vitlab.registry import unknown

AGREEMENT = ("spearman", "mean_difference", "mean_absolute_difference", "brier", "constant_brier")


def annotator_agreement_table(
    predictions: pd.DataFrame,
    samples: pd.DataFrame,
    column: str = "defect_probability",
    replicates: int = 1000,
    cluster=None,
) -> pd.DataFrame:
    """Agreement of model and annotators on the test split, with 95 % bootstrap intervals: columns
    metric, value, low, high, note.

    samples, column: as in `predict_value`. spearman: rank correlation, NaN where one side is
    constant. mean_difference: model minus annotators. brier: mean squared difference.
    constant_brier: the same for always predicting the annotators' mean. cluster: None, or a Series
    of cluster ids with sample_ids as index."""
    table = predict_value(predictions, samples, column)
    predicted, annotated = table["predicted"].to_numpy(), table["annotators"].to_numpy()
    every = np.arange(len(table))
    value = _agree(predicted, annotated)
    drawn = []
    for counts in draw_counts(len(table), replicates, cluster=read_clusters(table, cluster)):
        for row in counts:
            chosen = np.repeat(every, row.astype(int))
            drawn.append(_agree(predicted[chosen], annotated[chosen]))
    drawn = np.array(drawn).reshape(-1, len(AGREEMENT))
    low, high, _ = percentile_interval(drawn, estimate=value)
    note = ["" if np.isfinite(one) else "model or annotators are constant" for one in value]
    return pd.DataFrame(
        {"metric": AGREEMENT, "value": value, "low": low, "high": high, "note": note}
    )


def predict_value(
    predictions: pd.DataFrame, samples: pd.DataFrame, column: str = "defect_probability"
) -> pd.DataFrame:
    """The model's answer on the annotators' scale, a row for each test image: sample_id, label,
    annotators, predicted.

    samples: a table with sample_id and the `column` of values in 0..1 (a run's splits.csv). With
    two classes, predicted is the probability of the last one; with more, each of which stands for
    one value (the grades of elpv:grade), the expected value under the predicted probabilities.
    Raises UserError for an image without a value and for classes without one."""
    scores = read_scores(predictions, "test")
    rows = select_split(predictions, "test")
    for name in ("sample_id", column):
        if name not in samples.columns:
            raise UserError(unknown("column of the samples", name, list(map(str, samples.columns))))
    values = samples.drop_duplicates("sample_id").set_index("sample_id")[column].astype(float)
    annotated = values.reindex(rows["sample_id"]).to_numpy()
    bad = ~((annotated >= 0) & (annotated <= 1))
    if bad.any():
        first = rows["sample_id"].to_numpy()[bad][0]
        raise UserError(
            f"{column} of {first!r} is {annotated[bad][0]}: each image needs a value between 0 and"
            f" 1 ({bad.sum()} have none)"
        )
    if len(scores.classes) == 2:
        predicted = scores.prob[:, 1]
    else:
        predicted = scores.prob @ _class_values(samples, column, scores.classes)
    return pd.DataFrame(
        {
            "sample_id": rows["sample_id"].to_numpy(),
            "label": rows["label"].astype(str).to_numpy(),
            "annotators": annotated,
            "predicted": predicted,
        }
    )


def _class_values(samples: pd.DataFrame, column: str, classes: tuple[str, ...]) -> np.ndarray:
    """The one value that each class stands for (C,)."""
    groups = samples.groupby(samples["label"].astype(str))[column]
    found = groups.agg(["min", "max"]).reindex(list(classes)).astype(float)
    vague = ~np.isclose(found["min"], found["max"])
    if vague.any():
        raise UserError(
            f"the classes {', '.join(found.index[vague])} do not stand for one value of {column}"
            " each, so there is no expected value"
        )
    return found["min"].to_numpy()


def _agree(predicted: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    difference = predicted - annotated
    ranks = rankdata(predicted), rankdata(annotated)
    constant = any(rank.min() == rank.max() for rank in ranks)
    spearman = np.nan if constant else np.corrcoef(*ranks)[0, 1]
    return np.array(
        [
            spearman,
            difference.mean(),
            np.abs(difference).mean(),
            (difference**2).mean(),
            annotated.var(),
        ]
    )
