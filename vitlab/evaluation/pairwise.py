"""Every pair of models over the seeds that both have, with intervals and p-values corrected for the
number of pairs.

The test images vary and so do the seeds. How much a difference depends on the images is known well
from a single seed, by the bootstrap; the seeds add what the scores of the runs differ by beyond
that (`vitlab.evaluation.uncertainty`)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.paired import compare_runs, read_pair, say_verdict
from vitlab.evaluation.uncertainty import measure_runs
from vitlab.registry import unknown

ONE_SEED = "one seed: holds for other images, but another seed may turn it around"


def pairwise_table(
    predictions: Mapping[str, Mapping[object, pd.DataFrame]],
    metric: str,
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster: str | pd.Series | None = None,
    against: str | None = None,
) -> pd.DataFrame:
    """All pairs of models on one metric, each on the seeds that both have: a row for each pair.

    predictions: model -> seed -> predictions table. cluster: images that are drawn together, as in
    `paired_table`. UserError where a seed has tested two models on different images. against: only
    the pairs with this model, as model_a. Columns model_a, model_b, metric, seeds, test_images,
    value_a, value_b, difference, low, high, effect_size, p, p_holm, verdict, note. test_images: how
    many a seed tests, and which part of them two seeds have in common: all of a fixed test split,
    about n_test / n where each seed draws its own. value_a, value_b: means over the seeds.
    difference: b - a. effect_size: the difference as a share of what the worse model lacks to 1.
    p_holm: p corrected for the number of pairs (Holm, 1979); the verdict goes by it. The intervals
    are those of one pair, not widened for the number of pairs.

    The t interval and the t-test take images and seeds as random, the training data as given. In
    simulations without a difference, at most 7 % of the verdicts at a nominal 5 % name a model with
    3, 5 and 10 seeds, however much the seeds vary. With two seeds this holds while their s.d. is at
    most 1.5 times what the test images make in one run; where it is larger, up to 9 % (fixed test
    split) and 11 % (resampled splits) do, and up to 14 % where most of what the images do is common
    to both models. The test of two seeds shows a difference of .10 AUC on 500 images in about 90 %
    of the cases. With one seed the verdict is about images only, and the note says so."""
    from statsmodels.stats.multitest import multipletests

    places = {
        (model, number): place
        for place, (model, number) in enumerate(
            (m, s) for m, runs in predictions.items() for s in runs
        )
    }
    tables = {f"{model}, seed {number}": predictions[model][number] for model, number in places}
    runs = measure_runs(tables, [metric], split, positive, replicates, seed, cluster)
    rows = []
    if against is not None and against not in predictions:
        raise UserError(unknown("model", against, list(predictions)))
    for one, other in (
        combinations(predictions, 2)
        if against is None
        else [(against, m) for m in predictions if m != against]
    ):
        seeds = [number for number in predictions[one] if number in predictions[other]]
        for number in seeds:
            read_pair(predictions[one][number], predictions[other][number], (one, other), split)
        row = {"model_a": one, "model_b": other, "metric": metric, "seeds": len(seeds), "p": np.nan}
        if seeds:
            a, b = ([places[model, number] for number in seeds] for model in (one, other))
            row |= {"test_images": describe_images([set(runs.images[run]) for run in a])}
            row |= compare_runs(runs, a, b, 0, confidence)
        note = {0: "no seed in common", 1: ONE_SEED}.get(len(seeds), "")
        rows.append({**row, "note": note})
    columns = [
        "model_a",
        "model_b",
        "metric",
        "seeds",
        "test_images",
        "value_a",
        "value_b",
        "difference",
        "low",
        "high",
    ]
    table = pd.DataFrame(rows, columns=[*columns, "effect_size", "p", "note"])
    tested = table["p"].notna()
    table.insert(len(table.columns) - 1, "p_holm", np.nan)
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    verdicts = [
        say_verdict((row.model_a, row.model_b), row.difference, row.p_holm, 1 - confidence)
        for row in table.itertuples()
    ]
    table.insert(len(table.columns) - 1, "verdict", verdicts)
    return table


def describe_images(tests: list[set]) -> str:
    """Number of test images of a run, and which share of them two seeds have in common on
    average.
    """
    text = f"{np.mean([len(test) for test in tests]):.0f}"
    if len(tests) < 2:
        return text
    shared = np.mean(
        [len(one & other) / min(len(one), len(other)) for one, other in combinations(tests, 2)]
    )
    return (
        f"{text}, the same for all seeds"
        if shared == 1
        else f"{text} for each seed, {shared:.0%} in common"
    )


def describe_pairs(table: pd.DataFrame, digits: int = 3) -> str:
    """The verdicts of a `pairwise_table` in sentences, each with the interval that the difference
    may lie in.
    """
    texts = []
    for row in table.itertuples():
        span = f"[{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
        only = "; this holds for other images only, as there is one seed" if row.seeds == 1 else ""
        if row.verdict == "no difference shown":
            found = f"it may lie anywhere in {span}"
            if row.low * row.high > 0:  # of one sign: only the correction for many pairs hides it
                found = (
                    f"{span} by itself, but not after correction for {table['p'].notna().sum()}"
                    " pairs"
                )
            text = f"no difference shown; {found}{only}"
        elif row.verdict == "not tested":
            text = f"not tested ({row.note or 'all test images are one cluster'})"
        else:
            text = f"{row.difference:+.{digits}f} {span}, {row.verdict}{only}"
        texts.append(f"{row.model_b} against {row.model_a}: {text}.")
    return " ".join(texts) or "There is one model, and nothing to compare it with."


def describe_order(table: pd.DataFrame, digits: int = 3) -> str:
    """Which models of a `pairwise_table` may be the best: the one with the highest mean, and those
    not shown to be worse.
    """
    means = pd.concat(
        [table.set_index("model_a")["value_a"], table.set_index("model_b")["value_b"]]
    ).dropna()
    means = means.groupby(level=0).mean().sort_values(ascending=False)
    if means.empty:
        return "There is one model, and nothing to compare it with."
    first = means.index[0]
    own = table[(table["model_a"] == first) | (table["model_b"] == first)]
    rivals = own["model_a"].where(own["model_a"] != first, own["model_b"])
    beaten = set(rivals[own["verdict"] == f"{first} better"])
    level = [name for name in means.index[1:] if name not in beaten]
    shown = "; ".join(f"{name} {value:.{digits}f}" for name, value in means.items())
    if not level:
        verdict = f"{first} is shown to be better than every other model"
    else:
        verdict = (
            f"{first} has the highest mean, but is not shown to be better than {', '.join(level)}"
        )
    one = " on other images; there is one seed" if (own["seeds"] == 1).all() else ""
    return f"{verdict}{one} ({shown})."
