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
from vitlab.evaluation.inference import bootstrap
from vitlab.evaluation.metrics import METRICS, check_metrics, prepare_metrics
from vitlab.evaluation.scores import Scores, number_clusters, read_scores, select_split

# The seed variance of k seeds counts as at least this / (k - 1) times the image variance of one
# run, because a few seeds may agree by chance.
SEED_FLOOR = 2


@dataclass(frozen=True)
class RunScores:
    """Scores of several runs, and of the same runs on resampled images.

    values: (runs, metrics). drawn: (replicates, runs, metrics). images: for each run the numbers of
    its test images, the same number for the same image in all runs. cluster: cluster of each image
    number; None: each image is independent."""

    values: np.ndarray
    drawn: np.ndarray
    images: list[np.ndarray]
    cluster: np.ndarray | None = None

    def count_units(self, runs: Sequence[int]) -> int:
        """Number of different clusters, or images, that these runs were tested on."""
        images = np.unique(np.concatenate([self.images[run] for run in runs]))
        return len(images if self.cluster is None else np.unique(self.cluster[images]))


def measure_runs(
    tables: Mapping[Hashable, pd.DataFrame],
    metrics: Sequence[str],
    replicates: int = 1000,
    split: str = "test",
) -> RunScores:
    """Metrics of several predictions tables; an image is drawn for all tables at once.

    tables: the keys are names for error messages. Raises UserError for an unknown metric and for
    tables with different classes."""
    if not tables:
        raise UserError("no predictions to measure; give a table for each seed: {0: predictions}")
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
    every = pd.concat(rows).drop_duplicates("sample_id", ignore_index=True)
    images = [pd.Index(every["sample_id"]).get_indexer(part["sample_id"]) for part in rows]
    cluster = number_clusters(every)
    return resample_runs(list(scores.values()), images, metrics, replicates, cluster)


def resample_runs(
    scores: Sequence[Scores],
    images: Sequence[np.ndarray],
    metrics: Sequence[str],
    replicates: int,
    cluster: np.ndarray | None = None,
) -> RunScores:
    """`measure_runs` for arrays; images and cluster as in `RunScores`."""
    chosen = [METRICS.index(name) for name in metrics]
    measures = [prepare_metrics(run) for run in scores]
    num_images = max(numbers.max() for numbers in images) + 1

    def measure_all(weights: np.ndarray) -> np.ndarray:  # (R, images) -> (R, runs, metrics)
        values = [
            measure(weights[:, numbers])[:, chosen]
            for measure, numbers in zip(measures, images, strict=True)
        ]
        return np.stack(values, axis=1)

    values = measure_all(np.ones((1, num_images)))[0]
    drawn = bootstrap(measure_all, num_images, replicates, cluster=cluster)
    return RunScores(values, drawn, list(images), cluster)


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


def seed_variance(values: np.ndarray, drawn: np.ndarray, units: int) -> float:
    """Variance of the scores (k,) of a model's runs beyond what resampled images (R, k) explain, at
    least 0; NaN for one run."""
    if len(values) < 2:
        return np.nan
    return float(np.maximum(values.var(ddof=1) - image_variance(drawn, units).spread, 0))


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


def t_interval(center: float, error: float, freedom: float) -> tuple[float, float]:
    """Both ends of the 95 % t interval; NaN where the error is."""
    half = error * stats.t.ppf(0.975, freedom)
    return center - half, center + half


def ranking_table(uncertainty: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The models by one metric, best first: columns model, value, low, high, seeds.

    uncertainty: rows of `uncertainty_table` with a column model."""
    rows = uncertainty[uncertainty["metric"] == metric]
    rows = rows.sort_values("value", ascending=False, ignore_index=True)
    return rows[["model", "value", "low", "high", "seeds"]]


def uncertainty_table(
    predictions: Mapping[object, pd.DataFrame],
    metrics: Sequence[str] = METRICS,
    replicates: int = 1000,
) -> pd.DataFrame:
    """Uncertainty of one model's test scores because of images, of seeds, and of both.

    predictions: a table for each seed. Columns metric, value (mean over the seeds), low, high,
    sampling_sd, seed_sd, seeds. sampling_sd: standard deviation of one run's score over other test
    images (bootstrap). seed_sd: standard deviation of the scores of the runs; if each seed draws
    its own test images, it includes a part of sampling_sd; NaN for one seed. low, high: 95 % t
    interval for other images and seeds (with one seed, for other images), within the metric's
    range. The training data are taken as given."""
    runs = measure_runs(predictions, metrics, replicates)
    seeds, units = len(predictions), runs.count_units(range(len(predictions)))
    rows = []
    for column, metric in enumerate(metrics):
        values, drawn = runs.values[:, column], runs.drawn[:, :, column]
        mean, images = values.mean(), image_variance(drawn, units)
        variance = seed_variance(values, drawn, units)
        ends = t_interval(mean, *total_error(images, variance, seeds, 1, units))
        low, high = np.clip(ends, -1.0 if metric == "mcc" else 0.0, 1.0)
        row = {"metric": metric, "value": mean, "low": low, "high": high}
        row |= {"sampling_sd": np.sqrt(images.run), "seeds": seeds}
        row["seed_sd"] = values.std(ddof=1) if seeds > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows)
