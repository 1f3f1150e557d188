"""Planted truth: does a map point at the stamp that decides the label, and does the model use the
stamp at all?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from vitlab.data import ImageDataset, replace_stamps
from vitlab.errors import UserError
from vitlab.explain.inspection import inspecting
from vitlab.schema import AttributionMap, DataBundle, ModelBundle

MIN_ACCURACY = 0.9  # on stamped images, for a model that uses the stamp


def pointing_table(maps: AttributionMap, masks: np.ndarray) -> pd.DataFrame:
    """How well each map points at the deciding stamp: method, sample_id, hit, mass, rank, chance.

    masks: (N, h, w) bool, where the stamp of each image is (`stamp_masks`). Take only images whose
    stamp decides (`stamp_effect_table`) and maps for the predicted class: elsewhere the truth is
    not known.

    hit: whether the largest value is in the stamp (the pointing game, arXiv 1608.00507); where
        several pixels share that value, the share of them inside, so that a blank map hits by
        chance.
    mass: share of the positive values' sum inside the stamp (arXiv 2003.07258). Without any
        positive value, the mass is that of a uniform map.
    rank: share of the k largest values inside the stamp, with k its area (arXiv 2003.07258).
    chance: what a map independent of the image gets, the stamp's share of the area.

    ValueError where shapes do not fit, and for an image whose stamp is not visible.
    """
    masks = np.asarray(masks, dtype=bool)
    if masks.shape != maps.values.shape:
        raise UserError(
            f"masks {masks.shape} do not fit the maps of {maps.method}, {maps.values.shape}: one is"
            " needed for each"
        )
    rows = []
    for values, mask, sample_id in zip(
        maps.values.astype(float), masks, maps.sample_ids, strict=True
    ):
        if not mask.any():
            raise UserError(
                f"the mask of {sample_id} is empty; fit='crop' may have cut its stamp off, so leave"
                " the image out"
            )
        positive = values.clip(min=0)
        rows.append(
            {
                "method": maps.method,
                "sample_id": sample_id,
                "hit": mask[values == values.max()].mean(),
                "mass": positive[mask].sum() / positive.sum() if positive.any() else mask.mean(),
                "rank": _rank_accuracy(values, mask),
                "chance": mask.mean(),
            }
        )
    return pd.DataFrame(rows)


def pointing_scores(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `pointing_table` as scores: method, metric, sample_id, value."""
    long = table.melt(["method", "sample_id"], ["hit", "mass", "rank"], var_name="metric")
    return long.assign(metric="pointing_" + long["metric"])[
        ["method", "metric", "sample_id", "value"]
    ]


def stamp_effect_table(
    model: ModelBundle,
    data: DataBundle,
    sample_ids: Sequence[str] | None = None,
    *,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Whether the model uses the stamp: one row for each stamped image, of the test split unless
    sample_ids are given.

    Columns: sample_id, label (that of the stamp), right (whether it is predicted), right_without
    (with a decoy in place of the stamp), right_other (with the stamp of the other class), and
    decides: right, and wrong with the other stamp. A model that uses nothing but the stamp has
    means of about 1, 0.5 and 0. Where `right` is low, this is no test of explanations. ValueError
    for data without planted stamps."""
    variants = {
        "right": data,
        "right_without": replace_stamps(data, "decoy"),
        "right_other": replace_stamps(data, "other"),
    }
    samples = (
        data.split("test")
        if sample_ids is None
        else data.samples.set_index("sample_id", drop=False).loc[list(sample_ids)]
    )
    samples = samples[samples["stamped"].to_numpy(dtype=bool)].reset_index(drop=True)
    if not len(samples):
        raise UserError(
            f"none of these images of {data.name} has a stamp; choose rows where the column stamped"
            " is true"
        )
    table = samples[["sample_id", "label"]].copy()
    for name, variant in variants.items():
        table[name] = (
            _predict(model, variant, samples["sample_id"].tolist(), batch_size)
            == table["label"].to_numpy()
        )
    return table.assign(decides=table["right"] & ~table["right_other"])


def describe_stamp_effect(effect: pd.DataFrame) -> str:
    """Whether a `stamp_effect_table` makes the planted images a valid test."""
    accuracy = effect["right"].mean()
    if accuracy >= MIN_ACCURACY:
        return "The model uses the stamp: the test is valid."
    return (
        f"With an accuracy of {accuracy:.2f} on stamped images, **this model has not learned to use"
        " the stamp** in so short a training run. Its maps are no test of the methods, and none is"
        " made."
    )


def _rank_accuracy(values: np.ndarray, mask: np.ndarray) -> float:
    """Share of the k largest values inside the mask, k its area; values equal to the k-th count as
    far as there is room.
    """
    size = int(mask.sum())
    least = np.partition(values, -size, axis=None)[-size]
    above, tied = values > least, values == least
    room = (size - above.sum()) / tied.sum()
    return float(((above & mask).sum() + room * (tied & mask).sum()) / size)


def _predict(
    model: ModelBundle, data: DataBundle, sample_ids: list[str], batch_size: int
) -> np.ndarray:
    """The predicted class of each image."""
    images, device = (
        ImageDataset(data, sample_ids, model.transform),
        next(model.module.parameters()).device,
    )
    found: list[int] = []
    with inspecting(model.module), torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = images.__getitems__(range(start, min(start + batch_size, len(images))))
            found += (
                model.module(torch.stack([item[0] for item in batch]).to(device))
                .argmax(dim=1)
                .tolist()
            )
    return np.array(model.classes)[found]
