"""Does the compressed model still look where the full one looks? Maps of both for the same images
and classes, held together.

A model may keep its accuracy and decide by something else. What two maps of *different* images have
in common stands beside each number: a measure that does not do better than that says nothing of
compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from vitlab.errors import UserError
from vitlab.evaluation.few_images import mean_interval
from vitlab.explain.grid import choose_grid, number_cells
from vitlab.explain.methods import explain
from vitlab.explain.similarity import compare_maps
from vitlab.schema import ModelBundle

MEASURES = {"similarity": "other_image", "peak_shift": "other_peak", "mass_shift": "other_mass"}
LIMITS = np.array([[-1, 0, 0], [1, np.inf, np.inf]])  # of the measures
LEVEL = 1e-6  # of a map's range: values this near its largest one are as large


def compare_explanations(
    model: ModelBundle,
    compressed: ModelBundle,
    images: torch.Tensor,
    names: Sequence[str],
    *,
    sample_ids: Sequence[str] | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Maps of the full and the compressed model, image by image, for the class that the full one
    predicts.

    names: of methods. Columns: method, sample_id; similarity, absolute (rank correlations over the
    cells of the full model's grid, of the maps and of their absolute values); peak_shift,
    mass_shift (pixels between the largest values, or the centres of mass of what is positive);
    other_image, other_peak, other_mass: the same (absolute, and both shifts) between the full
    model's map of this image and its maps of the others, on average. Where several pixels share the
    largest value, their centre counts; a map without anything positive has its centre in the
    middle. ValueError where classes differ, or a method cannot explain one of the two."""
    if not names:
        raise UserError("names is empty: give at least one method, such as saliency")
    if tuple(model.classes) != tuple(compressed.classes):
        raise UserError(
            f"{model.name} tells apart {', '.join(model.classes)}, and the compressed model"
            f" {', '.join(compressed.classes)}; compare two models of the same classes"
        )
    size = tuple(images.shape[-2:])
    cells = number_cells(choose_grid(model.anatomy, size), size)
    settings, parts = {"sample_ids": sample_ids, "batch_size": batch_size}, []
    for name in names:
        before = explain(model, images, name, **settings)
        after = explain(compressed, images, name, before.target, **settings)
        table = compare_maps(before, after, cells)
        peaks, masses = (
            [find(maps.values) for maps in (before, after)] for find in (find_peaks, find_masses)
        )
        for kind, (own, moved) in {"peak": peaks, "mass": masses}.items():
            table[f"{kind}_shift"] = np.linalg.norm(moved - own, axis=1)
            table[f"other_{kind}"] = _mean_distance(own)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def explanation_shift_tables(
    networks: Mapping[str, ModelBundle],
    images: torch.Tensor,
    names: Sequence[str],
    *,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Means of `compare_explanations` over the images, with t intervals, of each network against
    the first one.

    Columns model, method, measure (similarity, peak_shift, mass_shift), value, low, high, n, other:
    what maps of different images give. Correlations are best at 1, shifts (pixels) at 0. Without a
    second network the table is empty."""
    first, *others = networks
    rows = []
    for name in others:
        table = compare_explanations(networks[first], networks[name], images, names)
        for method, part in table.groupby("method", sort=False):
            mean, low, high, count = mean_interval(
                part[list(MEASURES)].to_numpy(float), confidence, LIMITS
            )
            for place, (measure, other) in enumerate(MEASURES.items()):
                row = {"model": name, "method": method, "measure": measure, "value": mean[place]}
                row |= {
                    "low": low[place],
                    "high": high[place],
                    "n": int(count[place]),
                    "other": part[other].mean(),
                }
                rows.append(row)
    return pd.DataFrame(
        rows, columns=["model", "method", "measure", "value", "low", "high", "n", "other"]
    )


def describe_shifts(table: pd.DataFrame) -> str:
    """A sentence on an `explanation_shift_tables`: whose maps are shown to be more alike than maps
    of different images.
    """
    alike = table[table["measure"] == "similarity"]
    if alike.empty:
        return "There is no smaller network whose maps could be compared."
    names = [f"{row.method.replace('_', ' ')} of *{row.model}*" for row in alike.itertuples()]
    shown = (alike["low"] > alike["other"]).tolist()
    kept, rest = (
        [name for name, one in zip(names, shown, strict=True) if one == wanted]
        for wanted in (True, False)
    )
    parts = (
        [f"Shown to be more alike than maps of different images: {', '.join(kept)}."]
        if kept
        else []
    )
    return " ".join([*parts, *([f"Not shown for {', '.join(rest)}."] if rest else [])])


def find_peaks(values: np.ndarray) -> np.ndarray:
    """Row and column (N, 2) of the largest value of each map (N, h, w): the mean of all pixels that
    share it.
    """
    highest = values.max(axis=(1, 2), keepdims=True)
    spread = highest - values.min(axis=(1, 2), keepdims=True)
    return _centre((values >= highest - LEVEL * spread).astype(float))


def find_masses(values: np.ndarray) -> np.ndarray:
    """Row and column (N, 2) of the centre of mass of the positive values of each map (N, h, w)."""
    positive = values.clip(min=0).astype(float)
    return _centre(np.where(positive.any(axis=(1, 2), keepdims=True), positive, 1.0))


def _centre(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=(1, 2))
    rows, columns = (np.arange(side) for side in weights.shape[1:])
    return np.stack(
        [weights.sum(axis=2) @ rows / total, weights.sum(axis=1) @ columns / total], axis=1
    )


def _mean_distance(points: np.ndarray) -> np.ndarray | float:
    """Mean distance (N,) of each point to the others; NaN for a single one."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    return distance.sum(axis=1) / (len(points) - 1) if len(points) > 1 else np.nan
