"""The model's probability beside the annotators': a soft label says how sure people were, which a
class name does not.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import draw_counts, percentile_interval, read_clusters
from vitlab.evaluation.scores import read_scores, select_split, target_classes
from vitlab.registry import unknown


def annotator_table(
    predictions: pd.DataFrame,
    samples: pd.DataFrame,
    column: str = "defect_probability",
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster=None,
) -> pd.DataFrame:
    """What the model says where the annotators said a value: a row for each of their values.

    samples: a table with sample_id and the `column` of values in 0..1 (a run's splits.csv). The
    model's answer is the probability of `positive`, or of the last one of two classes; with more
    classes each of which stands for one value (the grades of elpv:grade), it is the expected value
    under the predicted probabilities. Columns: annotators (their value), n, mean, mean_low,
    mean_high (bootstrap interval), quarter, median, three_quarters. cluster: None, or a Series of
    cluster ids with sample_ids as index, as in `metrics_table`."""
    said = predict_value(predictions, samples, column, split, positive)
    rows = []
    for value, part in said.groupby("annotators"):
        predicted = part["predicted"].to_numpy()
        counted = draw_counts(len(predicted), replicates, seed, read_clusters(part, cluster))
        drawn = [counts @ predicted / counts.sum(axis=1) for counts in counted]
        low, high, _ = percentile_interval(
            np.concatenate([[], *drawn])[:, None], confidence, predicted.mean()
        )
        quartiles = dict(
            zip(
                ("quarter", "median", "three_quarters"),
                np.quantile(predicted, [0.25, 0.5, 0.75]),
                strict=True,
            )
        )
        mean = {"mean": predicted.mean(), "mean_low": low[0], "mean_high": high[0]}
        rows.append({"annotators": value, "n": len(predicted), **mean, **quartiles})
    return pd.DataFrame(rows)


def annotator_agreement_table(
    predictions: pd.DataFrame,
    samples: pd.DataFrame,
    column: str = "defect_probability",
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster=None,
) -> pd.DataFrame:
    """How near the model comes to the annotators, with bootstrap intervals: columns metric, value,
    low, high, note.

    spearman: rank correlation; mean_difference: model less annotators; mean_absolute_difference;
    brier: mean squared difference, the Brier score against the soft label (one class, 0..1);
    constant_brier: that of always saying the annotators' mean. Arguments as in `annotator_table`.
    spearman is NaN where one side says the same everywhere."""
    said = predict_value(predictions, samples, column, split, positive)
    predicted, annotated = said["predicted"].to_numpy(), said["annotators"].to_numpy()
    every = np.arange(len(said))
    drawn = [_agree(predicted, annotated)]
    for counts in draw_counts(len(said), replicates, seed, read_clusters(said, cluster)):
        for row in counts:
            chosen = np.repeat(every, row.astype(int))
            drawn.append(_agree(predicted[chosen], annotated[chosen]))
    drawn = np.array(drawn)
    low, high, _ = percentile_interval(drawn[1:], confidence, drawn[0])
    note = [
        "" if np.isfinite(value) else "one of the two says the same everywhere"
        for value in drawn[0]
    ]
    return pd.DataFrame(
        {"metric": AGREEMENT, "value": drawn[0], "low": low, "high": high, "note": note}
    )


AGREEMENT = ("spearman", "mean_difference", "mean_absolute_difference", "brier", "constant_brier")


def predict_value(
    predictions: pd.DataFrame,
    samples: pd.DataFrame,
    column: str = "defect_probability",
    split: str = "test",
    positive: str | None = None,
) -> pd.DataFrame:
    """The model's answer on the annotators' scale, a row for each sample of a split: sample_id,
    label, annotators, predicted.

    Arguments as in `annotator_table`. ValueError for a sample without a value, a value outside
    0..1, or classes without one."""
    scores = read_scores(predictions, split)
    rows = select_split(predictions, split)
    for name in ("sample_id", column):
        if name not in samples.columns:
            raise UserError(unknown("column of the samples", name, list(map(str, samples.columns))))
    values = samples.drop_duplicates("sample_id").set_index("sample_id")[column].astype(float)
    annotated = values.reindex(rows["sample_id"]).to_numpy()
    bad = ~((annotated >= 0) & (annotated <= 1))
    if bad.any():
        first = rows["sample_id"].to_numpy()[bad][0]
        raise UserError(
            f"{column} of sample {first!r} is {annotated[bad][0]}: each sample needs one between 0"
            f" and 1 ({bad.sum()} have none)"
        )
    if positive is not None or len(scores.classes) == 2:
        predicted = scores.prob[:, target_classes(scores.classes, positive)[0]]
    else:
        predicted = scores.prob @ _class_values(samples, column, scores.classes)
    table = {
        "sample_id": rows["sample_id"].to_numpy(),
        "label": rows["label"].astype(str).to_numpy(),
    }
    return pd.DataFrame({**table, "annotators": annotated, "predicted": predicted})


def _class_values(samples: pd.DataFrame, column: str, classes: tuple[str, ...]) -> np.ndarray:
    """The one value that each class stands for (C,)."""
    found = (
        samples.groupby(samples["label"].astype(str))[column]
        .agg(["min", "max"])
        .reindex(list(classes))
        .astype(float)
    )
    vague = ~np.isclose(found["min"], found["max"])
    if vague.any():
        raise UserError(
            f"{', '.join(found.index[vague])}: these classes do not stand for one value of {column}"
            " each, so there is no expected value; write positive= with one of"
            f" {', '.join(classes)}"
        )
    return found["min"].to_numpy()


def _agree(predicted: np.ndarray, annotated: np.ndarray) -> list[float]:
    difference = predicted - annotated
    ranks = rankdata(predicted), rankdata(annotated)
    same = any(rank.min() == rank.max() for rank in ranks)
    spearman = np.nan if same else np.corrcoef(*ranks)[0, 1]
    return [
        spearman,
        difference.mean(),
        np.abs(difference).mean(),
        (difference**2).mean(),
        annotated.var(),
    ]
