"""Where the uncertainty of a score comes from: the images that happened to be tested, and the seeds
that happened to be used.

The bootstrap draws the images of all runs at once. The covariances of the runs over the replicates
then hold which images the runs share: with a fixed test split all of them, with splits drawn anew
for each seed a part. What the scores of the runs differ by beyond that is put down to the seeds (a
model of two crossed random effects, as for readers and cases in radiology: Obuchowski and Rockette,
1995; degrees of freedom as in Satterthwaite, 1946)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, read_clusters
from vitlab.evaluation.metrics import (
    FEW_CLUSTERS,
    METRICS,
    describe_classes,
    describe_undefined,
    prepare_metrics,
)
from vitlab.evaluation.scores import Scores, read_scores, select_split, target_classes
from vitlab.registry import unknown

FEWEST_SEEDS = 3  # for an interval of the seeds alone
FEW_SEEDS = 5  # below, the table says that their spread is hardly known
# k seeds are taken to vary by at least 2 / (k - 1) times what the images make in one run: few may
# agree by luck
LEAST_SEEDS = 2


@dataclass(frozen=True)
class Runs:
    """Scores of several runs, and of the same runs on resampled images.

    values: (runs, metrics). drawn: (replicates, runs, metrics). For each run: images, the numbers
    of its test images (the same image has the same number in all runs); units, the numbers of their
    clusters (without clusters: the images again); missing, which class its test images lack, "" for
    none."""

    values: np.ndarray
    drawn: np.ndarray
    images: list[np.ndarray]
    units: list[np.ndarray]
    missing: list[str]

    def count_units(self, runs: Sequence[int]) -> int:
        """Number of different units that these runs were tested on."""
        return len(np.unique(np.concatenate([self.units[run] for run in runs])))


def measure_runs(
    tables: Mapping[Hashable, pd.DataFrame],
    metrics: Sequence[str],
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    cluster: str | pd.Series | None = None,
) -> Runs:
    """METRICS of the predictions tables, whose keys are names for messages; an image of several
    tables is drawn for all at once.

    cluster: name of a column, or a Series of cluster ids with sample_ids as index, as in
    `metrics_table`. UserError for an unknown metric and for tables of different classes."""
    check_metrics(metrics)
    scores = {name: read_scores(table, split) for name, table in tables.items()}
    first, classes = next((name, run.classes) for name, run in scores.items())
    for name, run in scores.items():
        if run.classes != classes:
            one, two = ", ".join(classes), ", ".join(run.classes)
            raise UserError(
                f"{first} has the classes {one}; {name} has {two}: give the predictions of one"
                " data set"
            )
    rows = [select_split(table, split) for table in tables.values()]
    images = pd.concat(rows).drop_duplicates("sample_id", ignore_index=True)
    places = [pd.Index(images["sample_id"]).get_indexer(part["sample_id"]) for part in rows]
    clusters = read_clusters(images, cluster)
    return resample_runs(
        list(scores.values()),
        places,
        metrics,
        target_classes(classes, positive),
        len(images),
        replicates,
        seed,
        clusters,
    )


def resample_runs(
    scores: Sequence[Scores],
    places: Sequence[np.ndarray],
    metrics: Sequence[str],
    targets: list[int],
    num_images: int,
    replicates: int,
    seed: int,
    clusters: np.ndarray | None = None,
) -> Runs:
    """`measure_runs` for arrays. places: the images of each run, as positions among all num_images;
    clusters: (num_images,).
    """
    chosen = [METRICS.index(name) for name in metrics]
    measures = [prepare_metrics(run, targets) for run in scores]
    values = [
        measure(np.ones((1, len(place))))[0, chosen]
        for measure, place in zip(measures, places, strict=True)
    ]

    def measure_all(weights: np.ndarray) -> np.ndarray:  # (R, images) -> (R, runs * metrics)
        pairs = zip(measures, places, strict=True)
        return np.concatenate(
            [measure(weights[:, place])[:, chosen] for measure, place in pairs], axis=1
        )

    drawn = bootstrap(measure_all, num_images, replicates, seed, clusters).reshape(
        replicates, len(scores), len(chosen)
    )
    units = list(places) if clusters is None else [clusters[place] for place in places]
    return Runs(
        np.array(values), drawn, list(places), units, [describe_classes(run) for run in scores]
    )


@dataclass(frozen=True)
class ImageVariance:
    """What other images do: to the mean of k runs, to one run, and to the spread (s.d. squared, n -
    1) of the k runs.
    """

    mean: float
    run: float
    spread: float


def image_variance(drawn: np.ndarray, units: int) -> ImageVariance:
    """From replicates (R, k) of k runs; NaN with a single unit, whose variation nobody knows."""
    known = drawn[~np.isnan(drawn).any(axis=1)]
    count = drawn.shape[1]
    if units < 2 or len(known) < 2:
        return ImageVariance(np.nan, np.nan, np.nan)
    covariance = np.cov(known.T).reshape(count, count) * units / (units - 1)
    mean, run = covariance.mean(), covariance.diagonal().mean()
    return ImageVariance(mean, run, (run - mean) * count / (count - 1) if count > 1 else 0.0)


def total_error(
    images: ImageVariance, seed_variance: float, seeds: int, models: int, units: int
) -> tuple[float, float]:
    """Standard error and degrees of freedom of a mean over seeds, for other images and other seeds
    (one seed: other images).

    images: of the quantity whose mean it is. seed_variance: how much that quantity varies with the
    seed in one run, estimated from the runs of so many models, without what their images explain. A
    few seeds may agree by luck, so it is taken to be at least 2 / (k - 1) times the variance of one
    run by its images. It lowers the degrees of freedom; with two seeds only the part above the
    noise of the images does, since a test with two degrees of freedom could show almost nothing.
    """
    total, uncertain = images.mean, images.mean**2 / (units - 1) if units > 1 else np.nan
    if seeds > 1:
        counted = max(seed_variance, LEAST_SEEDS / (seeds - 1) * images.run)
        doubtful = counted if seeds > 2 else max(seed_variance - images.spread, 0.0)
        total += counted / seeds
        uncertain += (doubtful / seeds) ** 2 / (models * (seeds - 1))
    return float(np.sqrt(total)), float(total**2 / uncertain) if uncertain > 0 else np.inf


def seed_variance(values: np.ndarray, drawn: np.ndarray, units: int) -> float:
    """Variance of the scores (k,) of a model's runs beyond what resampled images (R, k) explain; 0
    where they explain it all.
    """
    if len(values) < 2:
        return np.nan
    return float(np.maximum(values.var(ddof=1) - image_variance(drawn, units).spread, 0))


def check_metrics(metrics: Sequence[str]) -> None:
    """UserError for a name that is not in METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise UserError(unknown("metric", name, list(METRICS)))


def uncertainty_table(
    predictions: Mapping[object, pd.DataFrame],
    metrics: Sequence[str] = METRICS,
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster: str | pd.Series | None = None,
) -> pd.DataFrame:
    """Uncertainty of one model's scores by images, by seeds, and by both: predictions is a table
    for each seed.

    Columns metric, mean, sampling_sd, seed_sd, sampling_low, sampling_high, seed_low, seed_high,
    total_low, total_high, seeds, note. sampling_sd: how far the score of one run moves with other
    test images (bootstrap; clusters are drawn whole). seed_sd: standard deviation (n - 1) of the
    scores of the runs. Where each seed draws its own test images, it contains part of what
    sampling_sd measures. The intervals are t intervals around the mean over the seeds, cut off at
    the ends of the metric's range: sampling_ for other images, seed_ for the spread of the runs as
    it is (three seeds or more), total_ for other images and seeds (`total_error`; two seeds or
    more). They hold for these training data."""
    if not predictions:
        raise UserError(
            "no predictions to measure; give a table for each seed: {0: predictions, 1: ...}"
        )
    tables = {f"seed {number}": table for number, table in predictions.items()}
    runs = measure_runs(tables, metrics, split, positive, replicates, seed, cluster)
    count, units = len(tables), runs.count_units(range(len(tables)))
    lacking = "; ".join(
        f"{name}: {missing}" for name, missing in zip(tables, runs.missing, strict=True) if missing
    )
    few = f"only {count} seeds: their spread is hardly known" if count < FEW_SEEDS else ""
    few = "one seed: the spread over seeds is unknown" if count == 1 else few
    rows = []
    for column, metric in enumerate(metrics):
        values, drawn = runs.values[:, column], runs.drawn[:, :, column]
        mean, images = values.mean(), image_variance(drawn, units)
        spread = values.std(ddof=1) if count > 1 else np.nan
        row = {
            "metric": metric,
            "mean": mean,
            "sampling_sd": np.sqrt(images.run),
            "seed_sd": spread,
        }
        errors = {
            "sampling": (np.sqrt(images.mean), units - 1),
            "seed": (spread / np.sqrt(count), count - 1),
        }
        errors["total"] = total_error(images, seed_variance(values, drawn, units), count, 1, units)
        for name, fewest in (("sampling", 1), ("seed", FEWEST_SEEDS), ("total", 2)):
            low, high = t_interval(
                mean, *(errors[name] if count >= fewest else (np.nan, np.nan)), confidence
            )
            row |= {
                f"{name}_low": max(low, -1.0 if metric == "mcc" else 0.0),
                f"{name}_high": min(high, 1.0),
            }
        undefined = describe_undefined(np.isnan(drawn).any(axis=1).mean()) if replicates else ""
        warning = (
            f"only {units} cluster{'s' * (units > 1)}"
            if cluster is not None and units < FEW_CLUSTERS
            else ""
        )
        row["note"] = (
            lacking if np.isnan(mean) else "; ".join(filter(None, [few, undefined, warning]))
        )
        rows.append(row)
    table = pd.DataFrame(rows)
    table.insert(len(table.columns) - 1, "seeds", count)
    ends = [name for name in table.columns if name.endswith(("_low", "_high", "_sd"))]
    table.loc[table["mean"].isna(), ends] = np.nan
    return table


def t_interval(
    center: float, error: float, freedom: float, confidence: float
) -> tuple[float, float]:
    """Both ends of the t interval; NaN where the error is."""
    if not 0 < confidence < 1:
        raise UserError(f"confidence is a share between 0 and 1, such as 0.95; got {confidence}")
    half = error * stats.t.ppf((1 + confidence) / 2, freedom)
    return center - half, center + half
