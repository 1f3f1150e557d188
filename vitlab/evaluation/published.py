"""Our numbers beside those that others have published, on the same cells and by the same
measure.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.merging import merge_classes
from vitlab.evaluation.slices import slice_table
from vitlab.schema import check_predictions

# each with columns <name>_mean and <name>_sd in a file of published numbers
MEASURES = ("accuracy", "macro_f1")
COLUMNS = ("model", "task", "cells", "protocol", "cited_as")
REPLICATES = 200  # for a standard deviation
NORMAL = 1.96  # standard deviations on each side of 95 %


def protocol_table(
    predictions: pd.DataFrame, task: str, coarser: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame:
    """What a paper would print of one run: columns task, cells, metric, value, sampling_sd, for all
    samples and each group.

    sampling_sd: how far other test images would move the value (bootstrap).

    metric: accuracy and, for more than two classes, macro_f1, the plain mean of F1 over the
    classes. coarser: tasks that follow from this one by merging its classes (`DataBundle.coarser`);
    they are scored as well."""
    tables = {task: predictions} | {
        name: merge_classes(predictions, coarse) for name, coarse in coarser.items()
    }
    rows = []
    for name, table in tables.items():
        measures = ["accuracy"] if len(check_predictions(table)) == 2 else ["accuracy", "f1"]
        scores = slice_table(table, metrics=measures, replicates=REPLICATES).rename(
            columns={"group": "cells"}
        )
        scores["sampling_sd"] = (scores["high"] - scores["low"]) / (2 * NORMAL)
        scores = (
            scores.assign(task=name)
            .sort_values("metric", kind="stable")
            .replace({"metric": {"f1": "macro_f1"}})
        )
        rows.append(scores[["task", "cells", "metric", "value", "sampling_sd"]])
    return pd.concat(rows, ignore_index=True)


def published_table(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Published rows, then ours: columns task, cells, metric, model, mean, spread, sampling_sd,
    source, protocol.

    published: a file such as reports/published_elpv.csv. ours: rows of `protocol_table` with
    columns model and seed; spread is the standard deviation over its seeds, sampling_sd the mean of
    theirs. Only tasks, cells and metrics that ours has are kept."""
    missing = [name for name in COLUMNS if name not in published]
    if missing:
        raise UserError(f"the table of published numbers lacks the columns {', '.join(missing)}")
    long = []
    for metric in MEASURES:
        if f"{metric}_mean" in published:
            part = published.dropna(subset=[f"{metric}_mean"])
            spread = part.get(f"{metric}_sd", pd.Series(np.nan, part.index))
            long.append(
                part[list(COLUMNS)].assign(
                    metric=metric, mean=part[f"{metric}_mean"], spread=spread
                )
            )
    nothing = pd.DataFrame(columns=[*COLUMNS, "metric", "mean", "spread"])
    theirs = (pd.concat(long, ignore_index=True) if long else nothing).rename(
        columns={"cited_as": "source"}
    )
    keys = ["task", "cells", "metric"]
    theirs = theirs.merge(ours[keys].drop_duplicates(), on=keys)
    groups = ours.groupby([*keys, "model"], sort=False)
    spreads = {
        "mean": ("value", "mean"),
        "spread": ("value", "std"),
        "sampling_sd": ("sampling_sd", "mean"),
    }
    own = groups.agg(**spreads, seeds=("value", "count")).reset_index()
    own["protocol"] = [f"80/20, {n} seed{'s' * (n > 1)}" for n in own.pop("seeds")]
    table = pd.concat([theirs, own.assign(source="this report")], ignore_index=True)
    order = {
        key: position
        for position, key in enumerate(map(tuple, ours[keys].drop_duplicates().to_numpy()))
    }
    table = table.assign(place=[order[key] for key in map(tuple, table[keys].to_numpy())])
    table = table.sort_values(
        ["place", "mean"], ascending=[True, False], kind="stable", ignore_index=True
    )
    return table[[*keys, "model", "mean", "spread", "sampling_sd", "source", "protocol"]]


def published_gap_table(table: pd.DataFrame, source: str = "this report") -> pd.DataFrame:
    """Ours against the best published model: columns task, cells, metric, model, value, against,
    published, difference, verdict.

    The number of replicates behind a published standard deviation is not always known, so there is
    no test. The verdict is "no difference shown" where two single runs would differ as much by
    chance (95 %): within 1.96 times the root of the sum of their variance and ours. Ours is that
    over seeds or over test images, whichever is larger, as a few seeds may agree by luck. Theirs is
    taken to be as large as ours where it was not published."""
    rows = []
    for keys, part in table.groupby(["task", "cells", "metric"], sort=False):
        theirs = part[(part["source"] != source) & (part["model"] != "majority class")]
        if theirs.empty:
            continue
        best = theirs.loc[theirs["mean"].idxmax()]
        for own in part[part["source"] == source].itertuples():
            difference, spread = (
                own.mean - best["mean"],
                np.nanmax([own.spread, own.sampling_sd, 0.0]),
            )
            noise = NORMAL * np.hypot(
                spread, spread if np.isnan(best["spread"]) else best["spread"]
            )
            verdict = (
                "above"
                if difference > noise
                else "below"
                if difference < -noise
                else "no difference shown"
            )
            rows.append(
                (
                    *keys,
                    own.model,
                    own.mean,
                    f"{best['model']}, {best['source']}",
                    best["mean"],
                    difference,
                    verdict,
                )
            )
    columns = [
        "task",
        "cells",
        "metric",
        "model",
        "value",
        "against",
        "published",
        "difference",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns)
