"""Scores against severity, on the same images under every corruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vitlab.data import ImageDataset
from vitlab.data.reading import map_images
from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import draw_counts, percentile_interval, read_clusters
from vitlab.evaluation.metrics import METRICS, prepare_metrics
from vitlab.evaluation.scores import Scores
from vitlab.models.anatomy import evaluating
from vitlab.registry import unknown
from vitlab.robustness.corruptions import CORRUPTIONS, corrupt_data, find_corruption, to_eight_bits
from vitlab.schema import DataBundle, ModelBundle
from vitlab.seeds import derive_seed
from vitlab.training.precision import choose_precision
from vitlab.training.scores import compute_logits

CLEAN = "clean"
CALIBRATION = ("calibration_error", "overconfidence")
BINS = 10  # of the calibration error
DEFAULT = ("accuracy", "balanced_accuracy", "roc_auc", *CALIBRATION)


def robustness_table(
    model: ModelBundle,
    data: DataBundle,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 3, 5),
    images: int = 200,
    split: str = "test",
    metrics: Sequence[str] = DEFAULT,
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    cluster=None,
) -> pd.DataFrame:
    """The model's scores on at most `images` images of a split, clean and under every corruption
    (None: all there are).

    Columns: corruption, severity, n, metric, value, low, high, change, change_low, change_high,
    note. The rows of the clean images (corruption "clean", severity 0) come first. change: value
    minus that of the same images clean; since they are the same, its bootstrap interval is narrower
    than those of the two values suggest. metrics: those of vitlab.evaluation, and calibration_error
    (mean distance of confidence and accuracy in 10 bins, as in vitlab.evaluation; without
    intervals, since drawing again adds to the error) and overconfidence (mean confidence minus
    accuracy: above 0 the model is surer than it is right). A metric that needs a class which the
    images lack is NaN, and the note says so. cluster: None, or a Series of cluster ids with
    sample_ids as index, as in `vitlab.evaluation.metrics_table`."""
    names = CORRUPTIONS.names() if corruptions is None else list(corruptions)
    conditions = [(CLEAN, 0)] + [
        (name, severity) for name in names for severity in sorted(set(severities) - {0})
    ]
    for name in metrics:
        if name not in (*METRICS, *CALIBRATION):
            raise UserError(unknown("metric", name, [*METRICS, *CALIBRATION]))
    for name, severity in conditions[1:]:
        find_corruption(name, severity)  # wrong names are told before any work
    ids = draw_subset(data, images, split, seed)
    clusters = read_clusters(pd.DataFrame({"sample_id": ids}), cluster)
    decoded = dict(
        zip(
            ids,
            map_images(
                lambda sample_id: to_eight_bits(data.read(sample_id)), ids, "reading images"
            ),
            strict=True,
        )
    )
    data = replace(data, read=decoded.__getitem__)
    clean, tables = None, []
    device = next(model.module.parameters()).device
    for name, severity in tqdm(conditions, desc="corruptions", unit="condition", leave=False):
        worse = corrupt_data(data, name, severity, seed) if severity else data
        with evaluating(model.module):
            pixels = ImageDataset(worse, ids, model.transform)
            logits, labels = compute_logits(model.module, pixels, device, choose_precision(device))
        prob = logits.double().softmax(dim=1).numpy()
        scores = Scores(data.classes, labels, prob.argmax(axis=1), prob)
        value, drawn = _resample(scores, metrics, replicates, seed, clusters)
        clean = clean or (value, drawn)
        table = pd.DataFrame(
            {
                "corruption": name,
                "severity": severity,
                "n": len(ids),
                "metric": list(metrics),
                "value": value,
            }
        )
        table["low"], table["high"], _ = percentile_interval(drawn, confidence, value)
        table["change"] = value - clean[0]
        table["change_low"], table["change_high"], _ = percentile_interval(
            drawn - clean[1], confidence, value - clean[0]
        )
        absent = ", ".join(np.array(data.classes)[~np.isin(range(len(data.classes)), labels)])
        table["note"] = np.where(np.isnan(value), f"no {absent}", "")
        table.loc[np.isnan(value), ["low", "high", "change_low", "change_high"]] = np.nan
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def draw_subset(data: DataBundle, images: int, split: str = "test", seed: int = 0) -> list[str]:
    """At most `images` sample_ids of a split, each class with its share, in the order of the
    table.
    """
    if images < 1:
        raise UserError(f"images must be at least 1, got {images}")
    samples = data.split(split)
    if samples.empty:
        raise UserError(f"{data.name} has no image in split {split!r}")
    shuffled = samples.sample(frac=1, random_state=derive_seed(seed, "subset", split) % 2**32)
    place = shuffled.groupby("label", sort=False).cumcount() + 0.5  # of each image within its class
    quantile = place / shuffled.groupby("label")["label"].transform("size")
    chosen = quantile.sort_values(kind="stable").index[:images]
    return samples.loc[samples.index.isin(chosen), "sample_id"].tolist()


def drop_table(robustness_table: pd.DataFrame) -> pd.DataFrame:
    """What each corruption costs, as means over its severities, and over all corruptions in the
    last row of each metric.

    Columns: metric, corruption, clean, worse, change (worse minus clean), relative (change as a
    share of the clean value; NaN for the measures of calibration, of which 0 is best)."""
    is_clean = robustness_table["corruption"] == CLEAN
    clean = robustness_table[is_clean].set_index("metric")["value"]
    rows = []
    for metric, part in robustness_table[~is_clean].groupby("metric", sort=False):
        means = part.groupby("corruption", sort=False)["value"].mean()
        for name, worse in [*means.items(), ("all", means.mean())]:
            change = worse - clean[metric]
            relative = (
                np.nan if metric in CALIBRATION or not clean[metric] > 0 else change / clean[metric]
            )
            rows.append((metric, name, clean[metric], worse, change, relative))
    return pd.DataFrame(
        rows, columns=["metric", "corruption", "clean", "worse", "change", "relative"]
    )


def _resample(
    scores: Scores, metrics, replicates: int, seed: int, clusters
) -> tuple[np.ndarray, np.ndarray]:
    """The metrics (M,) and their bootstrap replicates (R, M). The same seed draws the same images,
    whatever their scores.
    """
    names = [*METRICS, *CALIBRATION]
    columns = [names.index(name) for name in metrics]
    measure = prepare_metrics(scores)

    def compute(weights):
        return np.hstack([measure(weights), _compute_calibration(scores, weights)])[:, columns]

    value = compute(np.ones((1, len(scores.label))))[0]
    counts = draw_counts(len(scores.label), replicates, seed, clusters)
    drawn = np.concatenate([np.empty((0, len(columns))), *map(compute, counts)])
    drawn[:, np.array(metrics) == "calibration_error"] = np.nan
    return value, drawn


def _compute_calibration(scores: Scores, weights: np.ndarray) -> np.ndarray:
    """CALIBRATION for each row of weights (R, N): an array (R, 2)."""
    confidence = scores.prob.max(axis=1)
    excess = confidence - (scores.pred == scores.label)  # (N,)
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    # (R, bins): weight of the bin times its gap
    by_bin = weights @ (np.eye(BINS)[place] * excess[:, None])
    return np.stack([np.abs(by_bin).sum(axis=1), by_bin.sum(axis=1)], axis=1) / weights.sum(
        axis=1, keepdims=True
    )
