"""How far maps agree, by Spearman's rank correlation over the cells of a grid. Agreement does not
show that any of them is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from vitlab.errors import UserError
from vitlab.evaluation.inference import mean_interval
from vitlab.explain.grid import pool_cells
from vitlab.explain.removal import CellScorer, check_maps
from vitlab.schema import AttributionMap

DIGITS = 12  # of the largest value of a map: values that differ by less are tied


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN where one side is constant."""
    centred = []
    for values in (a, b):
        rest = values - values.mean(axis=-1, keepdims=True)
        largest = np.abs(values).max(axis=-1, keepdims=True)
        constant = np.abs(rest).max(axis=-1, keepdims=True) <= 1e-9 * largest
        centred.append(np.where(constant, np.nan, rest))
    a, b = centred
    return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def correlate_ranks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; NaN where one side is constant.

    As scipy.stats.spearmanr row by row, but for all rows at once and with broadcasting. Values are
    rounded to 12 digits of the largest one before they are ranked."""
    ranks = []
    for values in (a, b):
        scale = np.abs(values).max(axis=-1, keepdims=True)
        ranks.append(rankdata(np.round(values / np.where(scale > 0, scale, 1), DIGITS), axis=-1))
    return correlate(*ranks)


def compare_maps(maps: AttributionMap, others: AttributionMap, cells: torch.Tensor) -> pd.DataFrame:
    """Similarity of two maps of each image: method, sample_id, similarity, absolute, other_image.

    similarity: rank correlation over the cells (h, w). absolute: that of the absolute values, which
    stays high where only the sign has changed. other_image: the mean absolute similarity of the
    first map with the maps of the other images, which maps of one method always have. A blank map
    is like another blank one (1) and like nothing else (0)."""
    first, second = (
        pool_cells(torch.from_numpy(found.values).double(), cells).numpy()
        for found in (maps, others)
    )
    among = _correlate_maps(np.abs(first)[:, None], np.abs(first)[None])  # (N, N)
    count = len(first)
    return pd.DataFrame(
        {
            "method": maps.method,
            "sample_id": list(maps.sample_ids),
            "similarity": _correlate_maps(first, second),
            "absolute": _correlate_maps(np.abs(first), np.abs(second)),
            "other_image": (among.sum(axis=1) - 1) / (count - 1) if count > 1 else np.nan,
        }
    )


def agreement_table(scorer: CellScorer, maps: Sequence[AttributionMap]) -> pd.DataFrame:
    """Mean rank correlation of the absolute values of each two methods over the images.

    Columns method_a, method_b, value, low, high, n. low, high: 95% t interval over images, NaN for
    a single one. Images on which one of the two maps is blank are not counted in n."""
    maps = check_maps(maps, scorer)
    if len(maps) < 2:
        raise UserError(f"agreement needs at least two methods; there is only {maps[0].method}")
    cells = [np.abs(scorer.pool(found)) for found in maps]
    pairs = list(combinations(range(len(maps)), 2))
    values = np.stack([correlate_ranks(cells[a], cells[b]) for a, b in pairs], axis=1)
    mean, low, high, count = mean_interval(values, limits=(-1, 1))
    names = {
        "method_a": [maps[a].method for a, _ in pairs],
        "method_b": [maps[b].method for _, b in pairs],
    }
    return pd.DataFrame({**names, "value": mean, "low": low, "high": high, "n": count})


def _correlate_maps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both_blank = (np.ptp(a, axis=-1) == 0) & (np.ptp(b, axis=-1) == 0)
    return np.where(both_blank, 1.0, np.nan_to_num(correlate_ranks(a, b)))
