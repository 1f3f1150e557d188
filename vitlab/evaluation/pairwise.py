"""Every pair of models over the seeds that both have, with p-values corrected for the number of
pairs.

The bootstrap over images tells how much a difference depends on the test images, from one seed on.
The seeds add what the scores of the runs vary beyond that (`vitlab.evaluation.uncertainty`)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.few_images import correct_holm
from vitlab.evaluation.paired import compare_runs, read_pair, say_verdict
from vitlab.evaluation.uncertainty import measure_runs
from vitlab.registry import unknown

ONE_SEED = "one seed: holds for other images, but another seed may turn it around"
NOT_SHARED = "no seed in common"
COLUMNS = [
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
    "p",
    "p_holm",
    "verdict",
    "note",
]


def pairwise_table(
    predictions: Mapping[str, Mapping[object, pd.DataFrame]],
    metric: str,
    replicates: int = 1000,
    cluster: str | pd.Series | None = None,
    against: str | None = None,
) -> pd.DataFrame:
    """All pairs of models on one test metric, each over the seeds that both have: a row a pair.

    predictions: model -> seed -> predictions table. cluster: as in `metrics_table`. against: only
    the pairs with this model, as model_a. Raises UserError where two models of a seed were tested
    on different images. Columns: COLUMNS. value_a, value_b: means over the seeds; difference:
    b - a, with the 95 % interval of this pair alone. test_images: how many a seed tests, and the
    share that two seeds have in common: all of a fixed test split, about n_test / n where each seed
    draws its own. p_holm: corrected for the number of pairs (Holm, 1979); the verdict follows it.

    The t-test takes images and seeds as random, the training data as given. In simulations without
    a difference, at most 7 % of the verdicts at a nominal 5 % name a model with 3, 5 and 10 seeds,
    however much the seeds vary. Two seeds hold this while their s.d. is at most 1.5 times that of
    the images in one run; beyond, up to 9 % (fixed test split) and 11 % (resampled), and up to 14 %
    where most of the image effect is common to both models. A difference of .10 AUC on 500 images
    is shown with two seeds in about 90 % of cases. With one seed the verdict is about images only,
    and the note says so."""
    if against is not None and against not in predictions:
        raise UserError(unknown("model", against, list(predictions)))
    keys = [(model, number) for model, runs in predictions.items() for number in runs]
    tables = {f"{model}, seed {number}": predictions[model][number] for model, number in keys}
    runs = measure_runs(tables, [metric], replicates, cluster)
    pairs = list(combinations(predictions, 2))
    if against is not None:
        pairs = [(against, model) for model in predictions if model != against]
    rows = []
    for one, other in pairs:
        seeds = [number for number in predictions[one] if number in predictions[other]]
        row = {"model_a": one, "model_b": other, "metric": metric, "seeds": len(seeds), "p": np.nan}
        row["note"] = {0: NOT_SHARED, 1: ONE_SEED}.get(len(seeds), "")
        for number in seeds:
            read_pair(predictions[one][number], predictions[other][number], (one, other))
        if seeds:
            a, b = ([keys.index((model, number)) for number in seeds] for model in (one, other))
            row["test_images"] = describe_images([set(runs.images[run]) for run in a])
            row |= compare_runs(runs, a, b, 0)
        rows.append(row)
    table = pd.DataFrame(
        rows, columns=[name for name in COLUMNS if name not in ("p_holm", "verdict")]
    )
    table["p_holm"] = correct_holm(table["p"].to_numpy(float))
    table["verdict"] = [
        say_verdict((row.model_a, row.model_b), row.difference, row.p_holm)
        for row in table.itertuples()
    ]
    return table[COLUMNS]


def describe_images(tests: list[set]) -> str:
    """Number of test images of a run, and the share that two seeds have in common on average."""
    text = f"{np.mean([len(test) for test in tests]):.0f}"
    if len(tests) < 2:
        return text
    shared = np.mean(
        [len(one & other) / min(len(one), len(other)) for one, other in combinations(tests, 2)]
    )
    if shared == 1:
        return f"{text}, the same for all seeds"
    return f"{text} for each seed, {shared:.0%} in common"
