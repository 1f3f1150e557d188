"""Our numbers beside those that others have published, on the same cells and by the same measure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vitlab.evaluation.merging import merge_classes
from vitlab.evaluation.slices import slice_table
from vitlab.schema import check_predictions

MEASURES = ("accuracy", "macro_f1")  # each with columns <name>_mean and <name>_sd in a file of published numbers
COLUMNS = ("model", "task", "cells", "protocol", "cited_as")


def protocol_table(predictions: pd.DataFrame, task: str, coarser: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """What a paper would print of one run: columns task, cells, metric, value, for all test samples and for each group.

    metric: accuracy and, for more than two classes, macro_f1, the plain mean of F1 over the classes. coarser: tasks that follow
    from this one by merging its classes (`DataBundle.coarser`); they are scored as well.
    """
    tables = {task: predictions} | {name: merge_classes(predictions, coarse) for name, coarse in coarser.items()}
    rows = []
    for name, table in tables.items():
        measures = ["accuracy"] if len(check_predictions(table)) == 2 else ["accuracy", "f1"]
        scores = slice_table(table, metrics=measures, replicates=0).rename(columns={"group": "cells"})
        scores = scores.assign(task=name).sort_values("metric", kind="stable").replace({"metric": {"f1": "macro_f1"}})
        rows.append(scores[["task", "cells", "metric", "value"]])
    return pd.concat(rows, ignore_index=True)


def published_table(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Published rows, then ours: columns task, cells, metric, model, mean, spread, source, protocol.

    published: a file such as reports/published_elpv.csv. ours: rows of `protocol_table` with columns model and seed; spread is
    the standard deviation over its seeds. Only tasks, cells and metrics that ours has are kept.
    """
    missing = [name for name in COLUMNS if name not in published]
    if missing:
        raise ValueError(f"the table of published numbers lacks the columns {', '.join(missing)}")
    long = []
    for metric in MEASURES:
        if f"{metric}_mean" in published:
            part = published.dropna(subset=[f"{metric}_mean"])
            spread = part.get(f"{metric}_sd", pd.Series(np.nan, part.index))
            long.append(part[list(COLUMNS)].assign(metric=metric, mean=part[f"{metric}_mean"], spread=spread))
    nothing = pd.DataFrame(columns=[*COLUMNS, "metric", "mean", "spread"])
    theirs = (pd.concat(long, ignore_index=True) if long else nothing).rename(columns={"cited_as": "source"})
    keys = ["task", "cells", "metric"]
    theirs = theirs.merge(ours[keys].drop_duplicates(), on=keys)
    groups = ours.groupby([*keys, "model"], sort=False)["value"]
    own = groups.agg(mean="mean", spread="std", seeds="count").reset_index()
    own["protocol"] = [f"80/20, {n} seed{'s' * (n > 1)}" for n in own.pop("seeds")]
    table = pd.concat([theirs, own.assign(source="this report")], ignore_index=True)
    order = {key: position for position, key in enumerate(map(tuple, ours[keys].drop_duplicates().to_numpy()))}
    table = table.assign(place=[order[key] for key in map(tuple, table[keys].to_numpy())])
    table = table.sort_values(["place", "mean"], ascending=[True, False], kind="stable", ignore_index=True)
    return table[[*keys, "model", "mean", "spread", "source", "protocol"]]


def published_gap_table(table: pd.DataFrame, source: str = "this report") -> pd.DataFrame:
    """Ours against the best published model: columns task, cells, metric, model, value, against, published, difference, verdict.

    The number of replicates behind a published standard deviation is not always known, so there is no test: a difference within
    that standard deviation (theirs, or ours where it is larger) is called one that shows nothing.
    """
    rows = []
    for keys, part in table.groupby(["task", "cells", "metric"], sort=False):
        theirs = part[(part["source"] != source) & (part["model"] != "majority class")]
        if theirs.empty:
            continue
        best = theirs.loc[theirs["mean"].idxmax()]
        for own in part[part["source"] == source].itertuples():
            difference, noise = own.mean - best["mean"], np.nanmax([own.spread, best["spread"], 0.0])
            verdict = "above" if difference > noise else "below" if difference < -noise else "no difference shown"
            rows.append((*keys, own.model, own.mean, f"{best['model']}, {best['source']}", best["mean"], difference, verdict))
    columns = ["task", "cells", "metric", "model", "value", "against", "published", "difference", "verdict"]
    return pd.DataFrame(rows, columns=columns)
