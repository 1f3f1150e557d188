"""Our results beside published ones, on the same groups of images and by the same measure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.inference import NO_DIFFERENCE
from vitlab.evaluation.slices import slice_table
from vitlab.schema import check_predictions

MEASURES = ("accuracy", "macro_f1")  # columns <name>_mean and <name>_sd of a published table
COLUMNS = ["model", "task", "cells", "protocol", "cited_as"]
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
    tables = {task: predictions}
    for name, coarse in coarser.items():
        tables[name] = merge_classes(predictions, coarse)
    rows = []
    for name, table in tables.items():
        metrics = ["accuracy"] if len(check_predictions(table)) == 2 else ["accuracy", "f1"]
        scores = slice_table(table, ["group"], metrics, REPLICATES)
        scores["sampling_sd"] = (scores["high"] - scores["low"]) / (2 * NORMAL)
        scores = scores.rename(columns={"slice": "cells"}).assign(task=name)
        scores = scores.sort_values("metric", kind="stable").replace({"metric": {"f1": "macro_f1"}})
        rows.append(scores[[*KEYS, "value", "sampling_sd"]])
    return pd.concat(rows, ignore_index=True)


def published_table(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Published rows and ours, the best first: columns task, cells, metric, model, mean, spread,
    sampling_sd, source, protocol, comparable (whether task and split are; "" for ours).

    published: a file such as reports/published_elpv.csv. ours: rows of `protocol_table` with
    columns model, seed and protocol (how the images were split); spread is the standard deviation
    over its seeds, sampling_sd the mean of theirs. Tasks, cells and metrics that ours lacks are
    left out."""
    missing = [name for name in COLUMNS if name not in published]
    if missing:
        raise UserError(f"the table of published numbers lacks the columns {', '.join(missing)}")
    own = ours.groupby([*KEYS, "model", "protocol"], sort=False, as_index=False).agg(
        mean=("value", "mean"),
        spread=("value", "std"),
        sampling_sd=("sampling_sd", "mean"),
        seeds=("value", "count"),
    )
    own["protocol"] += [f", {n} seed{'s' * (n > 1)}" for n in own.pop("seeds")]
    tables, cited = [own.assign(source=OURS)], published.drop(columns="source", errors="ignore")
    for metric in MEASURES:
        if f"{metric}_mean" in published:
            names = {f"{metric}_mean": "mean", f"{metric}_sd": "spread", "cited_as": "source"}
            tables.append(cited.rename(columns=names).assign(metric=metric))
    order = ours[KEYS].drop_duplicates().assign(place=lambda keys: range(len(keys)))
    table = pd.concat(tables, ignore_index=True).dropna(subset="mean").merge(order, on=KEYS)
    table = table.sort_values(["place", "mean"], ascending=[True, False], ignore_index=True)
    table["comparable"] = table.get("comparable", pd.Series(dtype=str)).fillna("")
    names = ["model", "mean", "spread", "sampling_sd", "source", "protocol", "comparable"]
    return table[[*KEYS, *names]]


def published_gap_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each of our models against the best published one that is comparable: columns task, cells,
    metric, model, value, against, published, difference, verdict.

    The number of replicates behind a published standard deviation is not always known, so there is
    no test. The verdict is "no difference shown" where two single runs would differ as much by
    chance (95 %): within 1.96 times the root of the sum of their variance and ours. Ours is that
    over seeds or over test images, whichever is larger; an unknown one of theirs counts as ours."""
    columns = [*KEYS, "model", "value", "against", "published", "difference", "verdict"]
    theirs = table[(table["source"] != OURS) & (table["model"] != "majority class")]
    theirs = theirs[theirs["comparable"] != "no"]
    best = theirs.loc[theirs.groupby(KEYS, sort=False)["mean"].idxmax()]
    pairs = table[table["source"] == OURS].merge(best, on=KEYS, suffixes=("", "_best"))
    spread = pairs[["spread", "sampling_sd"]].max(axis=1).fillna(0)
    noise = NORMAL * np.hypot(spread, pairs["spread_best"].fillna(spread))
    difference = pairs["mean"] - pairs["mean_best"]
    side = np.where(difference > 0, "above", "below")
    pairs = pairs.assign(
        value=pairs["mean"],
        against=pairs["model_best"] + ", " + pairs["source_best"],
        published=pairs["mean_best"],
        difference=difference,
        verdict=np.where(difference.abs() > noise, side, NO_DIFFERENCE),
    )
    return pairs[columns]


def merge_classes(predictions: pd.DataFrame, coarse: Mapping[str, str]) -> pd.DataFrame:
    """The predictions of a coarser task: probabilities of merged classes are added up, and the
    largest sum is the prediction.

    coarse: the coarse class of each class, in the order in which the classes first name them. The
    logits are the log-sum-exp of those merged, so their softmax gives the sums. Raises UserError
    unless each class has a coarse one."""
    classes = check_predictions(predictions)
    if set(classes) != set(coarse):
        raise UserError(
            f"cannot merge the classes {', '.join(classes)} by a table of {', '.join(coarse)}"
        )
    names = list(dict.fromkeys(coarse[name] for name in classes))
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
