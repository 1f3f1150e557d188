"""How concentrated maps are, and how far methods agree. Neither says that any of them is right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vitlab.errors import UserError
from vitlab.evaluation.few_images import mean_interval
from vitlab.explain.faithfulness import correlate
from vitlab.explain.removal import DIGITS, CellScorer, check_maps
from vitlab.registry import unknown
from vitlab.schema import AttributionMap

PARTS = ("absolute", "positive")


def sparseness(scorer: CellScorer, maps: Sequence[AttributionMap]) -> pd.DataFrame:
    """Gini index of the cells' absolute values: 0 when all are alike, near 1 when one has it all. A
    scores table.

    NaN for an all-zero map. Easier to read when high; whether it is true is another matter.
    Source: Chalasani et al. 2020, arXiv 1810.06583.
    """
    tables = [
        scorer.table(found.method, "sparseness", compute_gini(scorer.pool(found)))
        for found in check_maps(maps, scorer)
    ]
    return pd.concat(tables, ignore_index=True)


def compute_gini(values: np.ndarray) -> np.ndarray:
    """Gini index of the absolute values in each row (N, n): (N,), NaN for a row of zeros."""
    ordered = np.sort(np.abs(values), axis=1)
    count = ordered.shape[1]
    total = ordered.sum(axis=1)
    weighted = ((2 * np.arange(1, count + 1) - count - 1) * ordered).sum(axis=1)
    return np.where(total > 0, weighted / np.where(total > 0, count * total, 1), np.nan)


def agreement_table(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    part: str = "absolute",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Spearman's rank correlation of the cells of each two methods, mean over the images.

    Columns method_a, method_b, value, low, high, n: one row a pair. part: of signed maps, absolute
    values (what matters, for or against) or the positive ones (what speaks for the target; the rest
    is level). n: images counted; those on which one of the two maps is blank are not, and where
    none is left, value is NaN. low, high: t interval over images, NaN for a single one."""
    if part not in PARTS:
        raise UserError(unknown("part", part, list(PARTS)))
    maps = check_maps(maps, scorer)
    if len(maps) < 2:
        raise UserError(f"agreement needs at least two methods; there is only {maps[0].method}")
    ranks = [_rank_cells(scorer.pool(found), part) for found in maps]
    pairs = list(combinations(range(len(maps)), 2))
    values = np.stack([correlate(ranks[a], ranks[b]) for a, b in pairs], axis=1)  # (N, pairs)
    mean, low, high, count = mean_interval(values, confidence, (-1, 1))
    return pd.DataFrame(
        {
            "method_a": [maps[a].method for a, _ in pairs],
            "method_b": [maps[b].method for _, b in pairs],
            "value": mean,
            "low": low,
            "high": high,
            "n": count,
        }
    )


def _rank_cells(values: np.ndarray, part: str) -> np.ndarray:
    """Ranks of the cells of each map (N, n), mean ranks for those that are level."""
    values = np.abs(values) if part == "absolute" else values.clip(min=0)
    scale = values.max(axis=1, keepdims=True)
    return rankdata(np.round(values / np.where(scale > 0, scale, 1), DIGITS), axis=1)
