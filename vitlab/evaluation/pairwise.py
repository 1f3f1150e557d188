"""Models on the same test images: is one of them better? And scores of several models and seeds:
means, spreads, and differences to a baseline.

The models had the same images, easy or hard, so their difference is known better than two intervals
side by side suggest. The bootstrap over images tells how much a difference depends on the test
images, from one seed on. The seeds add what the scores of the runs vary beyond that
(`vitlab.evaluation.uncertainty`). All p-values are two-sided. Ten metrics are ten chances to find
something: choose the one that counts beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.errors import UserError
from vitlab.evaluation.calibration import expected_calibration_error
from vitlab.evaluation.inference import ALPHA, NO_DIFFERENCE, correct_holm
from vitlab.evaluation.metrics import class_table, metrics_table
from vitlab.evaluation.scores import Scores, number_clusters, read_scores, select_split
from vitlab.evaluation.uncertainty import (
    RunScores,
    image_variance,
    measure_runs,
    seed_variance,
    t_interval,
    total_error,
)
from vitlab.registry import unknown

ONE_SEED = "one seed: holds for other images, but another seed may turn it around"
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
    against: str | None = None,
    split: str = "test",
) -> pd.DataFrame:
    """All pairs of models on one metric, each over the seeds that both have: a row a pair.

    predictions: model -> seed -> predictions table. against: only the pairs with this model, as
    model_a. Raises UserError where two models of a seed were tested on different images. Columns:
    COLUMNS. value_a, value_b: means over the seeds; difference: b - a, with the 95 % interval of
    this pair alone. test_images: how many a seed tests, and the share that two seeds have in
    common: all of a fixed test split, about n_test / n if each seed draws its own. p_holm:
    corrected for the number of pairs (Holm, 1979). verdict: which model is better at the 5 % level,
    by p_holm, or "no difference shown", which does not mean "equal": the interval says how large a
    difference may still be.

    The t-test takes images and seeds as random, the training data as given. In simulations without
    a difference, at most 7 % of the verdicts at a nominal 5 % name a model with 3, 5 and 10 seeds,
    however much the seeds vary. Two seeds hold this while their s.d. is at most 1.5 times that of
    the images in one run; beyond, up to 9 % (fixed test split) and 11 % (resampled), and up to 14 %
    where most of the image effect is common to both models. A difference of .10 AUC on 500 images
    is shown with two seeds in about 90 % of cases. With one seed the verdict is about images only,
    and the note says so."""
    if against is not None and against not in predictions:
        raise UserError(unknown("model", against, list(predictions)))
    keys = [(model, seed) for model, runs in predictions.items() for seed in runs]
    tables = {f"{model}, seed {seed}": predictions[model][seed] for model, seed in keys}
    runs = measure_runs(tables, [metric], replicates, split)
    pairs = list(combinations(predictions, 2))
    if against is not None:
        pairs = [(against, model) for model in predictions if model != against]
    rows = []
    for a, b in pairs:
        seeds = [seed for seed in predictions[a] if seed in predictions[b]]
        row = {"model_a": a, "model_b": b, "metric": metric, "seeds": len(seeds), "p": np.nan}
        row["note"] = {0: "no seed in common", 1: ONE_SEED}.get(len(seeds), "")
        for seed in seeds:
            read_pair(predictions[a][seed], predictions[b][seed], (a, b), split)
        if seeds:
            runs_a, runs_b = ([keys.index((model, seed)) for seed in seeds] for model in (a, b))
            row["test_images"] = describe_images([set(runs.images[run]) for run in runs_a])
            row |= compare_runs(runs, runs_a, runs_b)
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table["p_holm"] = correct_holm(table["p"].to_numpy(float))
    table["verdict"] = [
        find_verdict((row.model_a, row.model_b), row.difference, row.p_holm)
        for row in table.itertuples()
    ]
    return table


def compare_runs(runs: RunScores, a: Sequence[int], b: Sequence[int]) -> dict[str, float]:
    """value_a, value_b, difference, low, high and p of the runs b against the runs a, which are
    pairs on the same images, by the first metric."""
    values, drawn, units = runs.values[:, 0], runs.drawn[:, :, 0], runs.count_units(a)
    value_a, value_b = float(values[a].mean()), float(values[b].mean())
    difference = round(value_b - value_a, 12)  # a rounding error is no difference
    gaps = (drawn[:, b] - drawn[:, a]).round(12)
    seeds = sum(seed_variance(values[rows], drawn[:, rows], units) for rows in (a, b))
    # The differences may vary more than the models do by themselves; two seeds cannot tell.
    if len(a) > 2:
        seeds = max(seeds, seed_variance(values[b] - values[a], gaps, units))
    error, freedom = total_error(image_variance(gaps, units), seeds, len(a), 2, units)
    low, high = t_interval(difference, error, freedom)
    if error > 0:
        p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    else:  # no variation at all, or NaN where it is unknown
        p = 1.0 if difference == 0 else float(error)
    found = {"value_a": value_a, "value_b": value_b, "difference": difference}
    return found | {"low": low, "high": high, "p": p}


def describe_images(tests: list[set]) -> str:
    """Number of test images of a run, and the share that two seeds have in common on average."""
    text = f"{np.mean([len(test) for test in tests]):.0f}"
    if len(tests) < 2:
        return text
    shared = np.mean([len(a & b) / min(len(a), len(b)) for a, b in combinations(tests, 2)])
    if shared == 1:
        return f"{text}, the same for all seeds"
    return f"{text} for each seed, {shared:.0%} in common"


def mcnemar_table(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    """McNemar's exact test (1947) of correct and wrong predictions on the test images, in one row.

    Columns model_a, model_b, only_a_right, only_b_right (images), p, verdict. In the test each
    cluster counts once, for the model that has more of it right."""
    scores_a, scores_b, rows = read_pair(a, b, names)
    gained = scores_b.right.astype(int) - scores_a.right
    cluster = number_clusters(rows)
    votes = gained if cluster is None else np.bincount(cluster, weights=gained)
    only_a, only_b = int((votes < 0).sum()), int((votes > 0).sum())
    p = stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    row = {
        "model_a": names[0],
        "model_b": names[1],
        "only_a_right": int((gained < 0).sum()),
        "only_b_right": int((gained > 0).sum()),
        "p": float(p),
        "verdict": find_verdict(names, only_b - only_a, p),
    }
    return pd.DataFrame([row])


def find_verdict(names: tuple[str, str], difference: float, p: float) -> str:
    """Which model is better, for difference = second - first; or that no difference is shown."""
    if np.isnan(p):
        return "not tested"
    if p < ALPHA and difference != 0:
        return f"{names[1] if difference > 0 else names[0]} better"
    return NO_DIFFERENCE


def read_pair(
    a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str], split: str = "test"
) -> tuple[Scores, Scores, pd.DataFrame]:
    """The scores of both models in the order of a, and a's rows.

    Raises UserError that says what differs, unless classes, images and labels are the same."""
    scores_a, scores_b = read_scores(a, split), read_scores(b, split)
    if scores_a.classes != scores_b.classes:
        one, other = (", ".join(scores.classes) for scores in (scores_a, scores_b))
        raise UserError(f"the models have different classes: {names[0]} {one}; {names[1]} {other}")
    rows, others = select_split(a, split), select_split(b, split)
    place = pd.Index(others["sample_id"]).get_indexer(rows["sample_id"])
    only_a = rows["sample_id"][place < 0]
    only_b = others["sample_id"][~others["sample_id"].isin(rows["sample_id"])]
    if len(only_a) or len(only_b):
        first = [*only_a, *only_b][0]
        raise UserError(
            f"{names[0]} and {names[1]} were not tested on the same images: {len(only_a)} only in"
            f" {names[0]}, {len(only_b)} only in {names[1]}, first {first!r}; compare runs of the"
            " same split, which is that of the same seed"
        )
    scores_b = scores_b.take(place)
    differ = np.flatnonzero(scores_a.label != scores_b.label)
    if len(differ):
        raise UserError(
            f"{len(differ)} images have another label in {names[1]} than in {names[0]}, first"
            f" {rows['sample_id'].iloc[differ[0]]!r}"
        )
    return scores_a, scores_b, rows


SCORE_COLUMNS = ("model", "seed", "metric", "value")
SHOWN = ("balanced_accuracy", "f1", "accuracy", "roc_auc")


def comparison_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: columns model, metric, mean, spread, seeds.

    scores: a row for each run and metric, with columns model, seed, metric, value. spread: standard
    deviation over the seeds (n - 1), NaN for a single one. Raises UserError for two values of one
    model, seed and metric.

    >>> import pandas as pd, vitlab
    >>> scores = {"model": "vit", "seed": [0, 1], "metric": "accuracy", "value": [0.5, 0.75]}
    >>> float(vitlab.evaluation.comparison_table(pd.DataFrame(scores)).loc[0, "mean"])
    0.625
    """
    missing = [name for name in SCORE_COLUMNS if name not in scores.columns]
    if missing:
        raise UserError(
            f"the table of scores lacks the columns {', '.join(missing)}; it needs"
            f" {', '.join(SCORE_COLUMNS)}"
        )
    twice = scores[scores.duplicated(["model", "seed", "metric"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"two values of {first['metric']} for model {first['model']}, seed {first['seed']}:"
            " keep one run for each of them"
        )
    groups = scores.groupby(["model", "metric"], sort=False, observed=True)["value"]
    return groups.agg(mean="mean", spread="std", seeds="count").reset_index()


def class_scores_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """What a method against imbalance may change on the test split: columns metric, value.

    The metrics are SHOWN, the recall of each class as `recall of <class>`, and calibration_error
    (lower is better)."""
    metrics = metrics_table(predictions, replicates=0).set_index("metric")["value"]
    recalls = class_table(predictions).set_index("class")["recall"].add_prefix("recall of ")
    error = pd.Series({"calibration_error": expected_calibration_error(predictions)})
    values = pd.concat([metrics[list(SHOWN)], recalls, error])
    return values.rename_axis("metric").reset_index(name="value")


def baseline_difference_table(scores: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Difference of each model to `baseline`, seed by seed: columns model, metric, mean, spread,
    difference, lowest, highest.

    scores: as in `comparison_table`, whose mean and spread these are. difference: mean over the
    seeds that both have of value minus the baseline's; lowest, highest: its range. This describes a
    few seeds whose images overlap; it is not a test."""
    if baseline not in set(scores["model"]):
        raise UserError(unknown("baseline", baseline, list(scores["model"].unique())))
    own = scores[scores["model"] == baseline].set_index(["seed", "metric"])["value"]
    paired = scores.join(own.rename("baseline"), on=["seed", "metric"])
    paired["difference"] = paired["value"] - paired["baseline"]
    groups = paired.groupby(["model", "metric"], sort=False)["difference"]
    differences = groups.agg(difference="mean", lowest="min", highest="max").reset_index()
    summary = comparison_table(scores).drop(columns="seeds")
    return summary.merge(differences, on=["model", "metric"])
