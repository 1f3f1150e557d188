"""Time, size and quality of each variant of a model on this machine, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vitlab.compress.changes import loss_p_value, measure_agreement
from vitlab.compress.latency import read_instructions
from vitlab.errors import UserError
from vitlab.evaluation.inference import correct_holm
from vitlab.evaluation.metrics import metrics_table
from vitlab.evaluation.pairwise import pairwise_table

METRIC = "balanced_accuracy"
MARGIN = 0.02  # of the metric: what some 500 images can show; half a point would need thousands
LEVEL = 0.05  # of the tests against a loss above the margin
EVEN = "no difference shown"


def benchmark_table(
    latency: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    sizes: Mapping[str, float],
    *,
    split: str,
    replicates: int = 1000,
) -> pd.DataFrame:
    """Time and quality of each variant against the first one: a row for each variant and batch size
    of a `latency_table`.

    predictions: a predictions table of each variant by name. sizes: megabytes of each. split: val
    to choose by (`choose_variant`), test to report. Columns: those of the latency table; split;
    size_mb; metric, value, low, high; change, change_low, change_high (paired, against the first
    variant); agreement (share of images with the same class, right or wrong); loss_p
    (`loss_p_value` of the margin, NaN for the first variant); and two verdicts. Intervals are at
    95 %. speed: "faster" or "slower" where the interval of the ratio excludes 1. quality: "worse"
    or "better" where that of the change excludes 0, else "as good" where a loss above the margin is
    ruled out, else "loss not ruled out"."""
    names = list(dict.fromkeys(latency["variant"]))
    settings = {"split": split, "replicates": replicates}
    first, rows = predictions[names[0]], []
    for name in names:
        own = predictions[name]
        score = metrics_table(own, **settings).set_index("metric").loc[METRIC]
        row = {"variant": name, "split": split, "size_mb": sizes[name], "metric": METRIC}
        row |= score[["value", "low", "high"]].to_dict()
        if name == names[0]:
            row |= {"change": 0.0, "change_low": 0.0, "change_high": 0.0}
            row |= {"agreement": 1.0, "loss_p": np.nan, "quality": "reference"}
        else:
            pair = {names[0]: {0: first}, name: {0: own}}
            gap = pairwise_table(pair, METRIC, **settings).iloc[0]
            row |= {"change": gap["difference"]}
            row |= {"change_low": gap["low"], "change_high": gap["high"]}
            row["agreement"] = measure_agreement(first, own, split)
            row["loss_p"] = loss_p_value(first, own, MARGIN, split)
            row["quality"] = _judge_quality(row)
        rows.append(row)
    table = latency.merge(pd.DataFrame(rows), on="variant", how="left", validate="many_to_one")
    speed = [EVEN] * len(table)
    for number, row in enumerate(table.itertuples()):
        if row.variant == names[0]:
            speed[number] = "reference"
        elif row.ratio_high < 1:
            speed[number] = "faster"
        elif row.ratio_low > 1:
            speed[number] = "slower"
    table.insert(table.columns.get_loc("quality"), "speed", speed)
    return table


def _judge_quality(row: Mapping[str, float]) -> str:
    if row["change_high"] < 0:
        return "worse"
    if row["change_low"] > 0:
        return "better"
    return "as good" if row["loss_p"] <= LEVEL else "loss not ruled out"


def choose_variant(validation: pd.DataFrame) -> str:
    """The name of the variant to take, from a `benchmark_table` of the validation split.

    It is the fastest, at the smallest batch size, of those that are faster than the first variant
    and for which a loss above the margin is ruled out; the first variant where there is none. The
    tests (`loss_p_value`) are corrected for the number of faster variants by Holm's method: where
    all lose just the margin, one passes in at most 5 % of draws, about. UserError for a table of
    another split: a variant chosen by its test result would look better on the test split than it
    is."""
    if set(validation["split"]) != {"val"}:
        raise UserError(
            "a variant must not be chosen by its test result; choose by benchmark_table(...,"
            " split='val')"
        )
    rows = validation[validation["batch_size"] == validation["batch_size"].min()]
    faster = rows[rows["speed"] == "faster"]
    good = faster[correct_holm(faster["loss_p"].to_numpy()) <= LEVEL]
    if good.empty:
        return str(validation["variant"].iloc[0])
    return str(good.loc[good["ratio"].idxmin(), "variant"])


def recommend(validation: pd.DataFrame, test: pd.DataFrame) -> str:
    """Which variant to take, in sentences: chosen by the `benchmark_table` of validation, reported
    by that of test, with what is slower or worse.
    """
    sentences = [describe_processor()]
    for word, column in (("Slower", "speed"), ("Worse on the test split", "quality")):
        rows = test[test[column] == word.split()[0].lower()]
        if len(rows):
            names = [f"*{name}*" for name in dict.fromkeys(rows["variant"])]
            sentences.append(f"{word} than *{test['variant'].iloc[0]}*: {', '.join(names)}.")
    return " ".join([*sentences, _describe_choice(validation, test)])


def _describe_choice(validation: pd.DataFrame, test: pd.DataFrame) -> str:
    chosen, first = choose_variant(validation), str(validation["variant"].iloc[0])
    smallest = validation["batch_size"].min()
    limit = f"{100 * MARGIN:.2g} points of {METRIC.replace('_', ' ')}"
    if chosen == first:
        return (
            f"Take *{first}*: on the validation split no variant is both faster at batch {smallest}"
            f" and shown to lose at most {limit}."
        )
    before, after = (
        table[(table["variant"] == chosen) & (table["batch_size"] == smallest)].iloc[0]
        for table in (validation, test)
    )
    verdict = {
        "worse": f"It is worse there: keep *{first}* where quality counts more than time",
        "better": "It is better there",
        "as good": f"A loss above {limit} is ruled out there as well",
        "loss not ruled out": f"A loss above {limit} is not ruled out there",
    }[after["quality"]]
    return (
        f"Take *{chosen}*: on the validation split it is the fastest at batch {smallest}"
        f" ({before['ratio']:.2f} times the time) of those shown to lose at most {limit} (change"
        f" {_points(before)}). On the test split, which took no part in the choice, the change is"
        f" {_points(after)} points. {verdict}."
    )


def describe_processor() -> str:
    """Whether this processor has instructions for 8-bit products, in one sentence."""
    found = read_instructions()
    if found is None:
        return "The instructions of this processor are unknown; the times were measured on it."
    if found:
        return f"This processor has instructions for 8-bit products ({', '.join(found)})."
    return (
        "This processor has no instructions for 8-bit products: int8 may be slower than float, and"
        " its weights have 7 bits."
    )


def _points(row: pd.Series) -> str:
    change, low, high = 100 * row["change"], 100 * row["change_low"], 100 * row["change_high"]
    return f"{change:+.2f} [{low:+.2f}, {high:+.2f}]"
