"""Where it goes wrong: the metrics for parts of the data, and the single images that were mistaken with most confidence."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from vitlab.evaluation.metrics import METRICS, measure
from vitlab.evaluation.scores import read_scores, select_split, target_classes
from vitlab.registry import unknown
from vitlab.schema import check_predictions


def slice_table(
    predictions: pd.DataFrame,
    by: str = "group",
    split: str = "test",
    metrics: Sequence[str] = ("balanced_accuracy", "precision", "recall", "roc_auc"),
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The metrics of all samples, then of each value of the column `by` if it has several.

    Columns: the one named by `by`, n, metric, value, low, high, note.
    A slice that lacks a class has NaN for the metrics that need it, and the note says which class that is.
    """
    for name in metrics:
        if name not in METRICS:
            raise ValueError(unknown("metric", name, list(METRICS)))
    if by not in predictions.columns:
        raise ValueError(
            unknown("column", by, [name for name in predictions.columns if not name.startswith(("logit_", "prob_"))])
        )
    scores = read_scores(predictions, split)
    targets = target_classes(scores.classes, positive)
    values = select_split(predictions, split)[by].astype("string").replace("", pd.NA).fillna("(none)").to_numpy()
    names = sorted(set(values))
    parts = {"all": slice(None)} | {name: values == name for name in names if len(names) > 1}
    tables = []
    for name, rows in parts.items():
        part = scores.take(rows)
        table = measure(part, targets, replicates, seed, confidence)
        chosen = table.set_index("metric").loc[list(metrics)].reset_index()
        chosen.insert(0, by, name)
        chosen.insert(1, "n", len(part.label))
        tables.append(chosen)
    return pd.concat(tables, ignore_index=True)


def mistakes_table(predictions: pd.DataFrame, n: int = 12, split: str = "test") -> pd.DataFrame:
    """The n mistakes made with most confidence: columns sample_id, group, label, pred, confidence, prob_label.

    confidence: probability given to the wrong class; prob_label: to the right one.
    """
    check_predictions(predictions)
    rows = select_split(predictions, split)
    wrong = rows[rows["label"].astype(str) != rows["pred"].astype(str)]
    table = wrong[["sample_id", "group", "label", "pred"]].assign(
        confidence=[row[f"prob_{row['pred']}"] for _, row in wrong.iterrows()],
        prob_label=[row[f"prob_{row['label']}"] for _, row in wrong.iterrows()],
    )
    return table.sort_values("confidence", ascending=False, kind="stable").head(n).reset_index(drop=True)
