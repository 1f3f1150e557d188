"""Does a map say how the score answers to changes, and is it itself steady under small ones?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from vitlab.errors import UserError
from vitlab.explain.faithfulness import score_falls
from vitlab.explain.methods import explain
from vitlab.explain.removal import CellScorer, check_maps
from vitlab.schema import AttributionMap, ModelBundle
from vitlab.seeds import derive_seed

SQUARES = 32
RADIUS = 0.05
SAMPLES = 5


def infidelity(scorer: CellScorer, maps: Sequence[AttributionMap], squares: int = SQUARES, seed: int = 0) -> pd.DataFrame:
    """Mean squared error of a map as a forecast: the sum of its values in a square, for the fall of the score without it.

    Better low. A map has no unit, so it is first multiplied by the factor that serves it best, one for each image; a blank map
    forecasts no fall anywhere. Squares of cells, with sides up to half of the grid, are the same for all maps. Large squares cost
    more than small ones whatever is in them, so an even map does well here, and a fine signed one badly. A scores table.
    Source: Yeh et al. 2019, arXiv 1901.09392; as captum.metrics.infidelity with normalize=True.
    """
    if squares < 2:
        raise UserError(f"squares must be at least 2, not {squares}: one is forecast without error by any map")
    maps = check_maps(maps, scorer)
    removed = draw_squares(scorer, squares, seed)  # (N, squares, n)
    falls = score_falls(scorer, removed)  # (N, squares)
    tables = []
    for found in maps:
        sums = (removed * scorer.sum(found)[:, None]).sum(axis=-1)  # (N, squares)
        power = (sums**2).sum(axis=1, keepdims=True)
        factor = (sums * falls).sum(axis=1, keepdims=True) / np.where(power > 0, power, 1)
        tables.append(scorer.table(found.method, "infidelity", ((factor * sums - falls) ** 2).mean(axis=1)))
    return pd.concat(tables, ignore_index=True)


def draw_squares(scorer: CellScorer, squares: int, seed: int) -> np.ndarray:
    """Random squares of cells, own ones for each image: (N, squares, n) bool."""
    rows, columns = scorer.grid
    found = np.zeros((len(scorer.sample_ids), squares, rows, columns), bool)
    for image, name in enumerate(scorer.sample_ids):
        generator = np.random.default_rng(derive_seed(seed, "squares", name))
        for square in range(squares):
            side = generator.integers(1, max(1, min(rows, columns) // 2), endpoint=True)
            top, left = generator.integers(rows - side, endpoint=True), generator.integers(columns - side, endpoint=True)
            found[image, square, top : top + side, left : left + side] = True
    return found.reshape(len(found), squares, -1)


def max_sensitivity(
    model: ModelBundle,
    images: torch.Tensor,
    found: AttributionMap,
    options: dict | None = None,
    radius: float = RADIUS,
    samples: int = SAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """The largest change of a map, as a share of its size, under noise too small to be seen. Low is steady, not right.

    found: the maps of these images by explain(model, images, found.method, **options), explained again `samples` times with
    uniform noise up to `radius` (in normalised values), for the same targets. A map that ignores the image is steady, so the
    controls say nothing here. NaN for a blank map. A scores table.
    Source: Yeh et al. 2019, arXiv 1901.09392; as captum.metrics.sensitivity_max.
    """
    if not radius > 0 or samples < 1:
        raise UserError(f"radius must be above 0 and samples at least 1, not {radius} and {samples}")
    largest = np.zeros(len(images))
    size = np.sqrt((found.values.astype(float) ** 2).sum(axis=(1, 2)))
    for sample in range(samples):
        generators = [np.random.default_rng(derive_seed(seed, "noise", sample, name)) for name in found.sample_ids]
        noise = np.stack([generator.uniform(-radius, radius, images.shape[1:]) for generator in generators])
        moved = images + torch.from_numpy(noise).to(images)
        again = explain(
            model, moved, found.method, found.target, found.sample_ids, versus=found.versus or None, **(options or {})
        )
        change = np.sqrt(((again.values - found.values.astype(float)) ** 2).sum(axis=(1, 2)))
        largest = np.maximum(largest, change)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(size > 0, largest / size, np.nan)
    return pd.DataFrame(
        {"method": found.method, "metric": "max_sensitivity", "sample_id": list(found.sample_ids), "value": value}
    )
