"""Planted truth: does a map point at the stamp that decides the label, and does the model use the
stamp at all?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from vitlab.data import load_images
from vitlab.data.planted import replace_stamps
from vitlab.errors import UserError
from vitlab.explain.inspection import inspecting
from vitlab.schema import AttributionMap, DataBundle, ModelBundle

MIN_ACCURACY = 0.9  # on stamped images, for a model that uses the stamp
BATCH = 32  # images at once


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
    chance: the expected value for a map independent of the image, the stamp's share of the area.

    UserError where shapes do not fit, and for an image whose stamp is not visible.
    """
    masks = np.asarray(masks, dtype=bool)
    if masks.shape != maps.values.shape:
        raise UserError(f"masks {masks.shape} do not fit maps {maps.values.shape}")
    rows = []
    for values, mask, sample_id in zip(
        maps.values.astype(float), masks, maps.sample_ids, strict=True
    ):
        if not mask.any():
            raise UserError(f"the stamp of {sample_id} is not visible; leave the image out")
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
    model: ModelBundle, data: DataBundle, sample_ids: Sequence[str]
) -> pd.DataFrame:
    """Whether the model uses the stamp: one row for each of these stamped images.

    Columns: sample_id, label (that of the stamp), right (whether it is predicted), right_without
    (with a decoy in place of the stamp), right_other (with the stamp of the other class), and
    decides: right, and wrong with the other stamp. A model that uses nothing but the stamp has
    means of about 1, 0.5 and 0. Where `right` is low, this is no test of explanations. UserError
    for data or images without planted stamps."""
    variants = {
        "right": data,
        "right_without": replace_stamps(data, "decoy"),
        "right_other": replace_stamps(data, "other"),
    }
    samples = data.samples.set_index("sample_id").loc[list(sample_ids)]
    if not len(samples) or not samples["stamped"].all():
        raise UserError(f"choose images of {data.name} where the column stamped is true")
    table = samples[["label"]].reset_index()
    for name, variant in variants.items():
        found = _predict(model, variant, table["sample_id"].tolist())
        table[name] = found == table["label"].to_numpy()
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
    lowest = np.partition(values, -size, axis=None)[-size]
    above, tied = values > lowest, values == lowest
    room = (size - above.sum()) / tied.sum()
    return float(((above & mask).sum() + room * (tied & mask).sum()) / size)


def _predict(model: ModelBundle, data: DataBundle, sample_ids: list[str]) -> np.ndarray:
    """The predicted class of each image."""
    weight = next(model.module.parameters())
    found: list[int] = []
    with inspecting(model.module), torch.no_grad():
        for start in range(0, len(sample_ids), BATCH):
            images = load_images(data, sample_ids[start : start + BATCH], model.transform)
            logits = model.module(images.to(weight.device, weight.dtype))
            found += logits.argmax(dim=1).tolist()
    return np.array(model.classes)[found]
