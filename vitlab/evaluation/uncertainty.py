"""Where the uncertainty of a score comes from: the images that happened to be tested, and the seeds that happened to be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, percentile_interval
from vitlab.evaluation.metrics import METRICS, describe_classes, describe_undefined, prepare_metrics
from vitlab.evaluation.paired import check_metrics
from vitlab.evaluation.scores import read_scores, select_split, target_classes

FEWEST_SEEDS = 3  # for an interval of the seeds alone: a resample of two gives no more than the two
FEW_SEEDS = 5  # below, the spread over seeds is hardly known, and a resample of them is too narrow


def uncertainty_table(
    predictions: Mapping[object, pd.DataFrame],
    metrics: Sequence[str] = METRICS,
    split: str = "test",
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Uncertainty of one model's scores by images, by seeds, and by both: predictions is a table for each seed.

    Columns metric, mean, sampling_sd, seed_sd, sampling_low, sampling_high, seed_low, seed_high, total_low, total_high, seeds,
    note.
    sampling_sd: how far the score of one run moves with other test images (bootstrap standard deviation, mean over the seeds).
    seed_sd: standard deviation (n - 1) of the scores of the runs. The intervals are those of the mean over the seeds:
    sampling_ draws the images of all seeds and keeps the seeds, seed_ draws the seeds and keeps the images, total_ draws both
    (Owen, arXiv 0712.1111). An image that several seeds have tested is drawn for all of them at once.

    Where each seed draws its own split, as in vitlab, the runs also differ in the images they test: seed_sd then holds part of
    what sampling_sd measures, the two do not add up, and total_ is rather too wide than too narrow: in simulations with 3 to 10
    seeds, each testing 400 of 2,000 images, the 95 % interval held the truth in 97 to 99 % of 150 data sets, that of the images
    alone in 81 to 95 %, that of the seeds alone in 71 to 83 %; of two seeds the last is not given. No resampling of one data set
    can know how images from elsewhere would fare.
    """
    check_metrics(metrics)
    if not predictions:
        raise UserError("no predictions to measure; give a table for each seed: {0: predictions, 1: ...}")
    runs = {number: read_scores(table, split) for number, table in predictions.items()}
    first, scores = next(iter(runs.items()))
    for number, other in runs.items():
        if other.classes != scores.classes:
            one, two = ", ".join(scores.classes), ", ".join(other.classes)
            raise UserError(f"seed {first} has the classes {one}, seed {number} {two}: give the predictions of one data set")
    ids = [select_split(table, split)["sample_id"] for table in predictions.values()]
    images = pd.Index(pd.concat(ids).unique())
    places = [images.get_indexer(column) for column in ids]
    targets, chosen = target_classes(scores.classes, positive), [METRICS.index(name) for name in metrics]
    measures = [prepare_metrics(run, targets) for run in runs.values()]
    values = np.array([measure(np.ones((1, len(place))))[0] for measure, place in zip(measures, places, strict=True)])[:, chosen]

    def measure_all(weights: np.ndarray) -> np.ndarray:  # (R, images) -> (R, seeds * metrics)
        pairs = zip(measures, places, strict=True)
        return np.concatenate([measure(weights[:, place])[:, chosen] for measure, place in pairs], axis=1)

    drawn = bootstrap(measure_all, len(images), replicates, seed).reshape(replicates, len(runs), len(chosen))
    count = len(runs)
    shares = np.random.default_rng([seed, 1]).multinomial(count, np.full(count, 1 / count), size=replicates) / count
    intervals = {
        "sampling": percentile_interval(drawn.mean(axis=1), confidence),
        "seed": percentile_interval(shares @ values, confidence),
        "total": percentile_interval(np.einsum("rs,rsm->rm", shares, drawn), confidence),
    }
    unknown = {"seed": FEWEST_SEEDS, "total": 2}
    for name in (name for name, fewest in unknown.items() if count < fewest):
        for end in intervals[name][:2]:
            end[:] = np.nan
    table = {
        "metric": list(metrics),
        "mean": values.mean(axis=0),
        "sampling_sd": _spread(drawn).mean(axis=0),
        "seed_sd": values.std(axis=0, ddof=1) if count > 1 else np.full(len(chosen), np.nan),
    }
    table |= {f"{name}_{end}": interval[i] for name, interval in intervals.items() for i, end in enumerate(("low", "high"))}
    without = [f"seed {number}: {describe_classes(run)}" for number, run in runs.items() if describe_classes(run)]
    few = f"only {count} seeds: their spread is hardly known" if count < FEW_SEEDS else ""
    few = "one seed: the spread over seeds is unknown" if count == 1 else few
    notes = ["; ".join(without) if np.isnan(mean) else few for mean in table["mean"]]
    for column, undefined in enumerate(intervals["sampling"][2]):
        if replicates and not np.isnan(table["mean"][column]) and describe_undefined(undefined):
            notes[column] = "; ".join(filter(None, [notes[column], describe_undefined(undefined)]))
    result = pd.DataFrame({**table, "seeds": count, "note": notes})
    ends = [name for name in result.columns if name.endswith(("_low", "_high", "_sd"))]
    result.loc[result["mean"].isna(), ends] = np.nan
    return result


def _spread(drawn: np.ndarray) -> np.ndarray:
    """Standard deviation over the replicates (R, seeds, metrics) that are defined; NaN where none is."""
    count = (~np.isnan(drawn)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(drawn, axis=0) / count
        return np.sqrt(np.nansum((drawn - mean) ** 2, axis=0) / np.where(count > 1, count - 1, np.nan))
