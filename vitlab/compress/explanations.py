"""Does the compressed model still look where the full one looks? Maps of both for the same images and classes, held together.

A model may keep its accuracy and decide by something else. What two maps of *different* images have in common stands beside each
number: a measure that does not do better than that says nothing of compression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from torch import nn

from vitlab.compress.sides import Side, make_side
from vitlab.errors import UserError
from vitlab.evaluation.few_images import mean_interval
from vitlab.explain import perturbation
from vitlab.explain.grid import choose_grid, number_cells
from vitlab.explain.methods import available, explain, methods
from vitlab.explain.randomisation import compare_maps
from vitlab.registry import unknown
from vitlab.schema import ModelBundle

NO_OPTIONS: Mapping[str, Mapping] = MappingProxyType({})
MEASURES = {"similarity": "other_image", "absolute": "other_image", "peak_shift": "other_peak", "mass_shift": "other_mass"}
LEVEL = 1e-6  # of a map's range: values this near its largest one are as large


def compare_explanations(
    model: ModelBundle,
    compressed: ModelBundle | Path | str | Callable,
    images: torch.Tensor,
    names: Sequence[str],
    *,
    sample_ids: Sequence[str] | None = None,
    options: Mapping[str, Mapping] = NO_OPTIONS,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Maps of the full and the compressed model, image by image, for the class that the full one predicts.

    compressed: a ModelBundle; or an ONNX file or a function from pixels to logits, which has no gradients and no layers, so that
    only the methods of `vitlab.explain.perturbation` can explain it. names: of methods; options: of methods, by name.
    Columns: method, sample_id; similarity, absolute (rank correlations over the cells of the full model's grid, of the maps and
    of their absolute values); peak_shift, mass_shift (pixels between the largest values, or the centres of mass of what is
    positive); other_image, other_peak, other_mass: the same (absolute, and both shifts) between the full model's map of this
    image and its maps of the others, on average. Where several pixels share the largest value, their centre counts; a map
    without anything positive has its centre in the middle. ValueError where classes differ, or a method cannot explain one of
    the two.
    """
    other = _bundle(model, compressed, names)
    if tuple(model.classes) != tuple(other.classes):
        raise UserError(
            f"{model.name} tells apart {', '.join(model.classes)}, and the compressed model {', '.join(other.classes)}; "
            "compare two models of the same classes"
        )
    size = tuple(images.shape[-2:])
    cells = number_cells(choose_grid(model.anatomy, size), size)
    settings, parts = {"sample_ids": sample_ids, "batch_size": batch_size}, []
    for name in names:
        before = explain(model, images, name, **settings, **options.get(name, {}))
        after = explain(other, images, name, before.target, **settings, **options.get(name, {}))
        table = compare_maps(before, after, cells)
        peaks, masses = ([find(maps.values) for maps in (before, after)] for find in (find_peaks, find_masses))
        for kind, (own, moved) in {"peak": peaks, "mass": masses}.items():
            table[f"{kind}_shift"] = np.linalg.norm(moved - own, axis=1)
            table[f"other_{kind}"] = _mean_distance(own)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def explanation_shift_table(
    model: ModelBundle,
    compressed: ModelBundle | Path | str | Callable,
    images: torch.Tensor,
    names: Sequence[str],
    *,
    confidence: float = 0.95,
    **settings,
) -> pd.DataFrame:
    """Means of `compare_explanations` over the images, with t intervals; settings are its own.

    Columns method, measure (similarity, absolute, peak_shift, mass_shift), value, low, high, n, other: what maps of different
    images give. Correlations are best at 1, shifts (pixels) at 0.
    """
    table = compare_explanations(model, compressed, images, names, **settings)
    rows = []
    for method, part in table.groupby("method", sort=False):
        mean, low, high, count = mean_interval(part[list(MEASURES)].to_numpy(float), confidence)
        for place, (measure, other) in enumerate(MEASURES.items()):
            row = {"method": method, "measure": measure, "value": mean[place], "low": low[place], "high": high[place]}
            rows.append(row | {"n": int(count[place]), "other": part[other].mean()})
    return pd.DataFrame(rows)


def find_peaks(values: np.ndarray) -> np.ndarray:
    """Row and column (N, 2) of the largest value of each map (N, h, w): the mean of all pixels that share it."""
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
    return np.stack([weights.sum(axis=2) @ rows / total, weights.sum(axis=1) @ columns / total], axis=1)


def _mean_distance(points: np.ndarray) -> np.ndarray | float:
    """Mean distance (N,) of each point to the others; NaN for a single one."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    return distance.sum(axis=1) / (len(points) - 1) if len(points) > 1 else np.nan


def _bundle(model: ModelBundle, compressed, names: Sequence[str]) -> ModelBundle:
    for name in names:
        if name not in available():
            raise UserError(unknown("method", name, available()))
    if not names:
        raise UserError("names is empty: give at least one method, such as occlusion")
    if isinstance(compressed, ModelBundle):
        return compressed
    inside = [name for name in names if methods[name].compute.__module__ != perturbation.__name__]
    if inside:
        possible = [name for name in available() if methods[name].compute.__module__ == perturbation.__name__]
        raise UserError(
            f"{', '.join(inside)} looks inside the model, and an ONNX file or a function has neither gradients nor layers; "
            f"methods that go without: {', '.join(possible)}"
        )
    name = Path(compressed).stem if isinstance(compressed, str | Path) else "compressed"
    return replace(model, name=name, module=Outside(compressed))


class Outside(nn.Module):
    """A module around what is computed elsewhere: pixels go out, logits come back, and no gradient passes."""

    def __init__(self, model):
        super().__init__()
        self.side: Side = make_side(model)
        self.weight = nn.Parameter(torch.zeros(()))  # says device and number format; takes no part

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.side(images.detach().cpu().numpy()), np.float32))
