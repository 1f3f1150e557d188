"""Scores under corruption, on the same images at every severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from vitlab.data import ImageDataset
from vitlab.data.reading import map_images
from vitlab.errors import UserError
from vitlab.evaluation.bootstrap import bootstrap, percentile_interval, read_clusters
from vitlab.evaluation.calibration import binned_error
from vitlab.models.anatomy import evaluating
from vitlab.robustness.corruptions import (
    CORRUPTIONS,
    corrupt_image,
    find_corruption,
    to_eight_bits,
)
from vitlab.schema import DataBundle, ModelBundle
from vitlab.seeds import derive_seed
from vitlab.training.precision import choose_precision
from vitlab.training.scores import compute_logits

CLEAN = "clean"
METRICS = ("accuracy", "overconfidence", "calibration_error")


def robustness_table(
    model: ModelBundle,
    data: DataBundle,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 3, 5),
    images: int = 200,
    replicates: int = 1000,
    seed: int = 0,
    cluster=None,
) -> pd.DataFrame:
    """The model's scores on at most `images` test images, clean and under every corruption (None:
    all there are).

    Columns: corruption, severity, n, metric, value, low, high, change, change_low, change_high. The
    rows of the clean images (corruption "clean", severity 0) come first. change: value minus that
    of the same clean images; its paired bootstrap interval is narrower than those of the two values
    suggest. metric: accuracy, overconfidence (mean confidence minus accuracy: above 0 the model is
    more confident than it is right) and calibration_error (as in `vitlab.evaluation`; without
    intervals, because resampling inflates it). cluster: as in `vitlab.evaluation.metrics_table`."""
    names = CORRUPTIONS.names() if corruptions is None else list(corruptions)
    conditions = [(CLEAN, 0)] + [
        (name, severity) for name in names for severity in sorted(set(severities) - {0})
    ]
    for name, severity in conditions[1:]:
        find_corruption(name, severity)  # wrong names are reported before any work
    ids = draw_subset(data, images, "test", seed)
    clusters = read_clusters(pd.DataFrame({"sample_id": ids}), cluster)
    decoded = map_images(
        lambda sample_id: to_eight_bits(data.read(sample_id)), ids, "reading images"
    )
    decoded = dict(zip(ids, decoded, strict=True))
    clean, tables = None, []
    for name, severity in tqdm(conditions, desc="corruptions", unit="condition", leave=False):
        read = decoded.__getitem__
        if severity:
            read = _read_corrupted(decoded, name, severity, seed)
        scores = _predict_hits(model, replace(data, read=read), ids)
        value, drawn = _resample(*scores, replicates, seed, clusters)
        clean = clean or (value, drawn)
        table = pd.DataFrame(
            {"corruption": name, "severity": severity, "n": len(ids), "metric": METRICS}
        )
        table["value"] = value
        table["low"], table["high"], _ = percentile_interval(drawn, estimate=value)
        table["change"] = value - clean[0]
        table["change_low"], table["change_high"], _ = percentile_interval(
            drawn - clean[1], estimate=value - clean[0]
        )
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


def corruption_cost_table(table: pd.DataFrame) -> pd.DataFrame:
    """What each corruption of a `robustness_table` costs, as means over its severities, and over
    all corruptions in the last row of each metric.

    Columns: metric, corruption, clean, corrupted, change (corrupted minus clean), relative (change
    as a share of the clean accuracy; NaN for the other metrics, of which 0 is best)."""
    is_clean = table["corruption"] == CLEAN
    clean = table[is_clean].set_index("metric")["value"]
    rows = []
    for metric, part in table[~is_clean].groupby("metric", sort=False):
        means = part.groupby("corruption", sort=False)["value"].mean()
        means["all"] = means.mean()
        for name, corrupted in means.items():
            change, relative = corrupted - clean[metric], np.nan
            if metric == "accuracy" and clean[metric] > 0:
                relative = change / clean[metric]
            rows.append((metric, name, clean[metric], corrupted, change, relative))
    return pd.DataFrame(
        rows, columns=["metric", "corruption", "clean", "corrupted", "change", "relative"]
    )


def describe_corruption_costs(table: pd.DataFrame, accuracy: float, images: int) -> str:
    """Sentences on a `robustness_table`: the mean loss, the largest one, and how many are shown.

    accuracy, images: of the whole test split, beside which these images are few."""
    costs = corruption_cost_table(table)
    overall = costs[(costs["metric"] == "accuracy") & (costs["corruption"] == "all")].iloc[0]
    tried = table[(table["metric"] == "accuracy") & (table["severity"] > 0)].sort_values("change")
    shown = tried[tried["change_high"] < 0]
    sentences = [
        f"Over all corruptions the accuracy is {overall['corrupted']:.3f}, and"
        f" {overall['clean']:.3f} on the same {table['n'].max()} images without corruption. They"
        f" are too few to estimate the accuracy itself (all {images} test images: {accuracy:.3f});"
        " what counts is the change on the same images."
    ]
    for row in shown.head(1).itertuples():
        sentences.append(
            f"The largest loss is under {row.corruption.replace('_', ' ')} of severity"
            f" {row.severity}: {row.change:+.3f} [{row.change_low:+.3f}, {row.change_high:+.3f}]."
        )
    sentences.append(
        f"A loss is shown in {len(shown)} of {len(tried)} conditions; in the others so few images"
        " may hide one."
    )
    return " ".join(sentences)


def _read_corrupted(decoded, corruption: str, severity: int, seed: int):
    return lambda sample_id: corrupt_image(
        decoded[sample_id], corruption, severity, seed, sample_id
    )


def _predict_hits(model, data: DataBundle, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence (N,) of the predicted class, and whether it is right (N,)."""
    device = next(model.module.parameters()).device
    with evaluating(model.module):
        dataset = ImageDataset(data, ids, model.transform)
        logits, labels = compute_logits(model.module, dataset, device, choose_precision(device))
    prob = logits.double().softmax(dim=1).numpy()
    return prob.max(axis=1), prob.argmax(axis=1) == labels


def _resample(confidence, right, replicates, seed, clusters) -> tuple[np.ndarray, np.ndarray]:
    """METRICS (3,) and their replicates (R, 3). The same seed draws the same images each time."""

    def measure(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1)
        accuracy = weights @ right / total
        overconfidence = weights @ confidence / total - accuracy
        return np.stack([accuracy, overconfidence, np.full(len(weights), np.nan)], axis=1)

    once = np.ones((1, len(right)))
    value = measure(once)[0]
    value[2] = binned_error(confidence, right, once)[0]
    return value, bootstrap(measure, len(right), replicates, seed, clusters)
