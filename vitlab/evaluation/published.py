"""Our results beside published ones, on the same groups of images and by the same measure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.paired import NO_DIFFERENCE
from vitlab.evaluation.slices import slice_table
from vitlab.schema import check_predictions

MEASURES = ("accuracy", "macro_f1")  # columns <name>_mean and <name>_sd of a published table
COLUMNS = ("model", "task", "cells", "protocol", "cited_as")
KEYS = ["task", "cells", "metric"]
OURS = "this report"
REPLICATES = 200  # for a standard deviation
NORMAL = 1.96  # standard deviations on each side of 95 %


def protocol_table(
    predictions: pd.DataFrame, task: str, coarser: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame:
    """What a paper would print of one run: columns task, cells ("all" or a group), metric, value,
    sampling_sd (standard deviation over other test images, by the bootstrap).

    metric: accuracy and, for more than two classes, macro_f1, the mean of F1 over the classes.
    coarser: tasks that follow from this one by merging classes (`DataBundle.coarser`)."""
    tables = {task: predictions} | {
        name: merge_classes(predictions, coarse) for name, coarse in coarser.items()
    }
    rows = []
    for name, table in tables.items():
        measures = ["accuracy"] if len(check_predictions(table)) == 2 else ["accuracy", "f1"]
        scores = slice_table(table, metrics=measures, replicates=REPLICATES)
        scores["sampling_sd"] = (scores["high"] - scores["low"]) / (2 * NORMAL)
        scores = scores.rename(columns={"group": "cells"}).assign(task=name)
        scores = scores.sort_values("metric", kind="stable").replace({"metric": {"f1": "macro_f1"}})
        rows.append(scores[["task", "cells", "metric", "value", "sampling_sd"]])
    return pd.concat(rows, ignore_index=True)


def published_table(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Published rows and ours, the best first: columns task, cells, metric, model, mean, spread,
    sampling_sd, source, protocol.

    published: a file such as reports/published_elpv.csv. ours: rows of `protocol_table` with
    columns model and seed; spread is the standard deviation over its seeds, sampling_sd the mean of
    theirs. Tasks, cells and metrics that ours lacks are left out."""
    missing = [name for name in COLUMNS if name not in published]
    if missing:
        raise UserError(f"the table of published numbers lacks the columns {', '.join(missing)}")
    groups = ours.groupby([*KEYS, "model"], sort=False)
    own = groups.agg(
        mean=("value", "mean"),
        spread=("value", "std"),
        sampling_sd=("sampling_sd", "mean"),
        seeds=("value", "count"),
    ).reset_index()
    own["protocol"] = [f"80/20, {n} seed{'s' * (n > 1)}" for n in own.pop("seeds")]
    order = ours[KEYS].drop_duplicates().assign(place=lambda keys: range(len(keys)))
    table = pd.concat([_read_published(published), own.assign(source=OURS)], ignore_index=True)
    table = table.merge(order, on=KEYS).sort_values(
        ["place", "mean"], ascending=[True, False], kind="stable", ignore_index=True
    )
    return table[[*KEYS, "model", "mean", "spread", "sampling_sd", "source", "protocol"]]


def _read_published(published: pd.DataFrame) -> pd.DataFrame:
    """The published table with a row for each metric."""
    tables = [pd.DataFrame(columns=[*COLUMNS, "metric", "mean", "spread"])]
    for metric in MEASURES:
        if f"{metric}_mean" in published:
            part = published.dropna(subset=[f"{metric}_mean"])
            spread = part.get(f"{metric}_sd", pd.Series(np.nan, part.index))
            columns = {"metric": metric, "mean": part[f"{metric}_mean"], "spread": spread}
            tables.append(part[list(COLUMNS)].assign(**columns))
    table = pd.concat(tables[1:] or tables, ignore_index=True)
    return table.rename(columns={"cited_as": "source"})


def published_gap_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each of our models against the best published one: columns task, cells, metric, model, value,
    against, published, difference, verdict.

    The number of replicates behind a published standard deviation is not always known, so there is
    no test. The verdict is "no difference shown" where two single runs would differ as much by
    chance (95 %): within 1.96 times the root of the sum of their variance and ours. Ours is that
    over seeds or over test images, whichever is larger; an unknown one of theirs counts as ours."""
    rows = []
    for keys, part in table.groupby(KEYS, sort=False):
        theirs = part[(part["source"] != OURS) & (part["model"] != "majority class")]
        if theirs.empty:
            continue
        best = theirs.loc[theirs["mean"].idxmax()]
        for own in part[part["source"] == OURS].itertuples():
            spread = np.nanmax([own.spread, own.sampling_sd, 0.0])
            noise = NORMAL * np.hypot(
                spread, spread if np.isnan(best["spread"]) else best["spread"]
            )
            difference = own.mean - best["mean"]
            verdict = NO_DIFFERENCE
            if abs(difference) > noise:
                verdict = "above" if difference > 0 else "below"
            row = dict(zip(KEYS, keys, strict=True)) | {
                "model": own.model,
                "value": own.mean,
                "against": f"{best['model']}, {best['source']}",
                "published": best["mean"],
                "difference": difference,
                "verdict": verdict,
            }
            rows.append(row)
    columns = [*KEYS, "model", "value", "against", "published", "difference", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def merge_classes(predictions: pd.DataFrame, coarse: Mapping[str, str]) -> pd.DataFrame:
    """The predictions of a coarser task: probabilities of merged classes are added up, and the
    largest sum is the prediction.

    coarse: the coarse class of each class, in the order in which the classes first name them. The
    logits are the log-sum-exp of those merged, so their softmax gives the sums. Raises UserError
    for a class without a coarse one, an unknown class, and fewer than two coarse classes."""
    classes = check_predictions(predictions)
    absent = [name for name in classes if name not in coarse]
    foreign = [name for name in coarse if name not in classes]
    if absent or foreign:
        problem = f"no coarse class for {', '.join(absent)}"
        if not absent:
            problem = f"unknown classes {', '.join(foreign)}"
        raise UserError(f"cannot merge the classes {', '.join(classes)}: {problem}")
    names = list(dict.fromkeys(coarse[name] for name in classes))
    if len(names) < 2:
        raise UserError(f"merging leaves one class, {names[0]!r}; at least two are needed")
    kept = [name for name in predictions.columns if not name.startswith(("logit_", "prob_"))]
    merged = predictions[kept].copy()
    members = {name: [fine for fine in classes if coarse[fine] == name] for name in names}
    for name, fine in members.items():
        logits = predictions[[f"logit_{one}" for one in fine]].to_numpy(float)
        merged[f"logit_{name}"] = np.logaddexp.reduce(logits, axis=1)
    for name, fine in members.items():
        merged[f"prob_{name}"] = predictions[[f"prob_{one}" for one in fine]].sum(axis=1)
    merged["label"] = predictions["label"].astype(str).map(coarse)
    best = merged[[f"prob_{name}" for name in names]].to_numpy().argmax(axis=1)
    merged["pred"] = np.array(names)[best]
    return merged
