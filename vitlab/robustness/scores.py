"""Scores under corruption, on the same images at every severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vitlab.data import ImageDataset
from vitlab.data.reading import map_images
from vitlab.errors import UserError
from vitlab.evaluation.calibration import binned_error
from vitlab.evaluation.inference import bootstrap, percentile_interval
from vitlab.evaluation.scores import number_clusters
from vitlab.models.anatomy import evaluating
from vitlab.robustness.corruptions import (
    CORRUPTIONS,
    check_corruption,
    corrupt_image,
    to_eight_bits,
)
from vitlab.schema import DataBundle, ModelBundle
from vitlab.seeds import derive_seed
from vitlab.training.devices import choose_precision
from vitlab.training.scores import compute_logits

CLEAN = "clean"
METRICS = ("accuracy", "overconfidence", "calibration_error")


def robustness_table(
    model: ModelBundle,
    data: DataBundle,
    severities: Sequence[int] = (1, 3, 5),
    images: int = 200,
    replicates: int = 1000,
) -> pd.DataFrame:
    """The model's scores on at most `images` test images, clean and under every corruption.

    Columns: corruption, severity, n, metric, value, low, high, change, change_low, change_high. The
    rows of the clean images (corruption "clean", severity 0) come first. change: value minus that
    of the same clean images; its paired bootstrap interval is narrower than those of the two values
    suggest. metric: accuracy, overconfidence (mean confidence minus accuracy) and calibration_error
    (as in `vitlab.evaluation`; without intervals, because resampling inflates it). Images with the
    same value in a column `cluster` of the samples are drawn together."""
    conditions = [(name, level) for name in CORRUPTIONS for level in sorted(set(severities) - {0})]
    for name, severity in conditions:
        check_corruption(name, severity)
    samples = draw_test_images(data, images)
    ids, cluster = samples["sample_id"].tolist(), number_clusters(samples)
    units = len(ids) if cluster is None else int(cluster.max()) + 1
    decoded = map_images(lambda name: to_eight_bits(data.read(name)), ids, "reading images")
    decoded = dict(zip(ids, decoded, strict=True))

    def read(sample_id: str, corruption: str, severity: int):
        return corrupt_image(decoded[sample_id], corruption, severity, sample_id)

    clean, tables = None, []
    progress = tqdm([(CLEAN, 0), *conditions], desc="corruptions", unit="condition", leave=False)
    for name, severity in progress:
        changed = decoded.__getitem__
        if severity:
            changed = partial(read, corruption=name, severity=severity)
        value, drawn = _measure(model, replace(data, read=changed), ids, replicates, cluster)
        clean = clean or (value, drawn)
        table = {"corruption": name, "severity": severity, "n": len(ids), "metric": METRICS}
        table["value"] = value
        table["low"], table["high"], _ = percentile_interval(drawn, value, units)
        table["change"] = change = value - clean[0]
        moved = percentile_interval(drawn - clean[1], change, units)
        table["change_low"], table["change_high"], _ = moved
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def draw_test_images(data: DataBundle, images: int) -> pd.DataFrame:
    """At most `images` test samples, drawn at random, each class in proportion, in the order of the
    table."""
    if images < 1:
        raise UserError(f"images must be at least 1, got {images}")
    samples = data.split("test")
    if samples.empty:
        raise UserError(f"{data.name} has no image in split 'test'")
    shuffled = samples.sample(frac=1, random_state=derive_seed(0, "subset", "test") % 2**32)
    place = shuffled.groupby("label", sort=False).cumcount() + 0.5  # of each image within its class
    quantile = place / shuffled.groupby("label")["label"].transform("size")
    chosen = quantile.sort_values(kind="stable").index[:images]
    return samples.loc[samples.index.isin(chosen)]


def _measure(
    model: ModelBundle,
    data: DataBundle,
    ids: Sequence[str],
    replicates: int,
    cluster: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """METRICS (3,) and their replicates (R, 3), which draw the same images at each call."""
    device = next(model.module.parameters()).device
    with evaluating(model.module):
        dataset = ImageDataset(data, ids, model.transform)
        logits, labels = compute_logits(model.module, dataset, device, choose_precision(device))
    prob = logits.double().softmax(dim=1).numpy()
    confidence, right = prob.max(axis=1), prob.argmax(axis=1) == labels

    def measure(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)
        accuracy = weights @ right / total
        overconfidence = weights @ confidence / total - accuracy
        error = np.full(len(weights), np.nan)
        return np.stack([accuracy, overconfidence, error], axis=1)

    once = np.ones((1, len(right)))
    value = measure(once)[0]
    value[2] = binned_error(confidence, right, once)[0]
    return value, bootstrap(measure, len(right), replicates, cluster=cluster)


def corruption_cost_table(table: pd.DataFrame) -> pd.DataFrame:
    """What each corruption of a `robustness_table` costs, as means over its severities, and over
    all corruptions in the last row of each metric.

    Columns: metric, corruption, clean, corrupted, change (corrupted minus clean)."""
    means = table.groupby(["metric", "corruption"], sort=False)["value"].mean().unstack(sort=False)
    clean = means.pop(CLEAN)
    means["all"] = means.mean(axis=1)
    costs = means.stack().rename("corrupted").reset_index()
    costs.insert(2, "clean", costs["metric"].map(clean))
    return costs.assign(change=costs["corrupted"] - costs["clean"])


def describe_corruption_costs(table: pd.DataFrame, accuracy: float, images: int) -> str:
    """Sentences on a `robustness_table`: the mean loss, the largest one, and how many are shown.

    accuracy, images: of the whole test split."""
    costs = corruption_cost_table(table).set_index(["metric", "corruption"])
    overall = costs.loc[("accuracy", "all")]
    tried = table[(table["metric"] == "accuracy") & (table["severity"] > 0)].sort_values("change")
    worst, shown = tried.iloc[0], (tried["change_high"] < 0).sum()
    return (
        f"Over all corruptions the accuracy is {overall['corrupted']:.3f}, and"
        f" {overall['clean']:.3f} on the same {table['n'].max()} images without corruption. They"
        f" are too few to estimate the accuracy itself (all {images} test images: {accuracy:.3f});"
        " what counts is the change on the same images. The largest loss is under"
        f" {worst['corruption'].replace('_', ' ')} of severity {worst['severity']}:"
        f" {worst['change']:+.3f} [{worst['change_low']:+.3f}, {worst['change_high']:+.3f}]. A loss"
        f" is shown in {shown} of {len(tried)} conditions; in the others so few images may hide"
        " one."
    )
