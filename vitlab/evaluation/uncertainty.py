"""How uncertain a score is: because of the test images, and because of the seeds.

The bootstrap draws the images of all runs at once. The covariances of the runs over the replicates
then reflect which images the runs share: all of them with a fixed test split, a part where each
seed draws its own. Variation of the scores beyond that is attributed to the seeds (a model with two
crossed random effects, as for readers and cases in radiology: Obuchowski and Rockette, 1995;
degrees of freedom by Satterthwaite, 1946)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, read_clusters
from vitlab.evaluation.metrics import (
    METRICS,
    MIN_CLUSTERS,
    check_metrics,
    describe_classes,
    describe_undefined,
    prepare_metrics,
)
from vitlab.evaluation.scores import Scores, read_scores, select_split

MIN_SEEDS = 3  # for an interval over the seeds alone
FEW_SEEDS = 5  # with fewer, the table says that their spread is hardly known
# The seed variance of k seeds counts as at least this / (k - 1) times the image variance of one
# run, because a few seeds may agree by chance.
SEED_FLOOR = 2


@dataclass(frozen=True)
class RunScores:
    """Scores of several runs, and of the same runs on resampled images.

    values: (runs, metrics). drawn: (replicates, runs, metrics). For each run: images, the numbers
    of its test images (the same number for the same image in all runs); units, the numbers of
    their clusters (the images themselves without clusters); missing, the classes that its test
    images lack, "" for none."""

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
    replicates: int = 1000,
    cluster: str | pd.Series | None = None,
    split: str = "test",
) -> RunScores:
    """Metrics of several predictions tables; an image is drawn for all tables at once.

    tables: the keys are names for error messages. cluster: as in `metrics_table`. Raises UserError
    for an unknown metric and for tables with different classes."""
    check_metrics(metrics)
    scores = {name: read_scores(table, split) for name, table in tables.items()}
    first, classes = next((name, run.classes) for name, run in scores.items())
    for name, run in scores.items():
        if run.classes != classes:
            raise UserError(
                f"{first} has the classes {', '.join(classes)}; {name} has"
                f" {', '.join(run.classes)}: give the predictions of one data set"
            )
    rows = [select_split(table, split) for table in tables.values()]
    images = pd.concat(rows).drop_duplicates("sample_id", ignore_index=True)
    places = [pd.Index(images["sample_id"]).get_indexer(part["sample_id"]) for part in rows]
    clusters = read_clusters(images, cluster)
    return resample_runs(list(scores.values()), places, metrics, len(images), replicates, clusters)


def resample_runs(
    scores: Sequence[Scores],
    places: Sequence[np.ndarray],
    metrics: Sequence[str],
    num_images: int,
    replicates: int,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> RunScores:
    """`measure_runs` for arrays.

    places: positions of each run's images among all num_images. clusters: (num_images,)."""
    chosen = [METRICS.index(name) for name in metrics]
    measures = [prepare_metrics(run) for run in scores]
    values = [
        measure(np.ones((1, len(place))))[0, chosen]
        for measure, place in zip(measures, places, strict=True)
    ]

    def measure_all(weights: np.ndarray) -> np.ndarray:  # (R, images) -> (R, runs * metrics)
        pairs = zip(measures, places, strict=True)
        return np.hstack([measure(weights[:, place])[:, chosen] for measure, place in pairs])

    drawn = bootstrap(measure_all, num_images, replicates, seed, clusters)
    drawn = drawn.reshape(replicates, len(scores), len(chosen))
    units = list(places) if clusters is None else [clusters[place] for place in places]
    missing = [describe_classes(run) for run in scores]
    return RunScores(np.array(values), drawn, list(places), units, missing)


@dataclass(frozen=True)
class ImageVariance:
    """Variance because of the images: of the mean of k runs, of one run, and of the spread among
    the k runs (variance with n - 1)."""

    mean: float
    run: float
    spread: float


def image_variance(drawn: np.ndarray, units: int) -> ImageVariance:
    """From replicates (R, k) of k runs; NaN with a single unit, whose variation is unknown."""
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
    (with one seed: for other images).

    images: of the quantity that is averaged. seed_variance: its variance over seeds without what
    the images explain, estimated from so many models. It counts as at least SEED_FLOOR / (k - 1)
    times the image variance of one run, and lowers the degrees of freedom. With two seeds only the
    part above the noise of the images lowers them: a test with two degrees of freedom has almost no
    power."""
    total, uncertain = images.mean, images.mean**2 / (units - 1) if units > 1 else np.nan
    if seeds > 1:
        counted = max(seed_variance, SEED_FLOOR / (seeds - 1) * images.run)
        doubtful = counted if seeds > 2 else max(seed_variance - images.spread, 0.0)
        total += counted / seeds
        uncertain += (doubtful / seeds) ** 2 / (models * (seeds - 1))
    return float(np.sqrt(total)), float(total**2 / uncertain) if uncertain > 0 else np.inf


def seed_variance(values: np.ndarray, drawn: np.ndarray, units: int) -> float:
    """Variance of the scores (k,) of a model's runs beyond what resampled images (R, k) explain, at
    least 0; NaN for one run."""
    if len(values) < 2:
        return np.nan
    return float(np.maximum(values.var(ddof=1) - image_variance(drawn, units).spread, 0))


def uncertainty_table(
    predictions: Mapping[object, pd.DataFrame],
    metrics: Sequence[str] = METRICS,
    replicates: int = 1000,
    cluster: str | pd.Series | None = None,
) -> pd.DataFrame:
    """Uncertainty of one model's test scores because of images, of seeds, and of both.

    predictions: a table for each seed. Columns metric, mean, sampling_sd, seed_sd, sampling_low,
    sampling_high, seed_low, seed_high, total_low, total_high, seeds, note. sampling_sd: standard
    deviation of one run's score over other test images (bootstrap). seed_sd: standard deviation of
    the scores of the runs; where each seed draws its own test images, it includes a part of
    sampling_sd. The ends are those of 95 % t intervals around the mean, within the metric's range:
    sampling_ for other images, seed_ for the spread of the runs (three seeds or more), total_ for
    other images and seeds (two seeds or more). The training data are taken as given."""
    if not predictions:
        raise UserError("no predictions to measure; give a table for each seed: {0: predictions}")
    tables = {f"seed {number}": table for number, table in predictions.items()}
    runs = measure_runs(tables, metrics, replicates, cluster)
    count, units = len(tables), runs.count_units(range(len(tables)))
    lacking = "; ".join(
        f"{name}: {missing}" for name, missing in zip(tables, runs.missing, strict=True) if missing
    )
    warnings = []
    if count < FEW_SEEDS:
        unknown_spread = "one seed: the spread over seeds is unknown"
        warnings.append(
            unknown_spread if count == 1 else f"only {count} seeds: their spread is hardly known"
        )
    if cluster is not None and units < MIN_CLUSTERS:
        warnings.append(f"only {units} cluster{'s' * (units > 1)}")
    rows = []
    for column, metric in enumerate(metrics):
        values, drawn = runs.values[:, column], runs.drawn[:, :, column]
        undefined = describe_undefined(np.isnan(drawn).any(axis=1).mean()) if replicates else ""
        note = (
            lacking if np.isnan(values).any() else "; ".join(filter(None, [*warnings, undefined]))
        )
        rows.append({"metric": metric, **_measure_spread(values, drawn, units), "note": note})
        limits = (-1.0 if metric == "mcc" else 0.0, 1.0)
        for end in (
            "sampling_low",
            "sampling_high",
            "seed_low",
            "seed_high",
            "total_low",
            "total_high",
        ):
            rows[-1][end] = np.clip(rows[-1][end], *limits)
    table = pd.DataFrame(rows)
    table.insert(len(table.columns) - 1, "seeds", count)
    ends = [name for name in table.columns if name.endswith(("_low", "_high", "_sd"))]
    table.loc[table["mean"].isna(), ends] = np.nan
    return table


def _measure_spread(values: np.ndarray, drawn: np.ndarray, units: int) -> dict[str, float]:
    """Mean, standard deviations and interval ends of one metric, from the scores (k,) of the runs
    and their replicates (R, k)."""
    count, mean, images = len(values), values.mean(), image_variance(drawn, units)
    spread = values.std(ddof=1) if count > 1 else np.nan
    row = {"mean": mean, "sampling_sd": np.sqrt(images.run), "seed_sd": spread}
    unknown = (np.nan, np.nan)
    total = total_error(images, seed_variance(values, drawn, units), count, 1, units)
    errors = {
        "sampling": (np.sqrt(images.mean), units - 1),
        "seed": (spread / np.sqrt(count), count - 1) if count >= MIN_SEEDS else unknown,
        "total": total if count > 1 else unknown,
    }
    for name, (error, freedom) in errors.items():
        row[f"{name}_low"], row[f"{name}_high"] = t_interval(mean, error, freedom)
    return row


def t_interval(
    center: float, error: float, freedom: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Both ends of the t interval; NaN where the error is."""
    half = error * stats.t.ppf((1 + confidence) / 2, freedom)
    return center - half, center + half
