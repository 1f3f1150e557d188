"""Does a map name what the model used? Cells are taken away, in the map's order or at random, and
the score is watched.

All of it sees images that the model never saw in training, and a score may fall for that alone:
compare with the controls (`vitlab.explain.controls`), which suffer from it as much, and with
another baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.explain.removal import SCORE_COLUMNS, CellScorer, check_maps
from vitlab.registry import unknown
from vitlab.schema import AttributionMap
from vitlab.seeds import derive_seed

KINDS = ("deletion", "insertion")
STEPS = 20
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the cells; those of DeYoung et al.
SUBSETS = 32
SIZES = (0.1, 0.3, 0.5)  # shares of the cells


def curve_table(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    kinds: Sequence[str] = KINDS,
    steps: int = STEPS,
    seed: int = 0,
) -> pd.DataFrame:
    """The score while cells are taken from the image, or put back, the highest of the map first.

    Columns method, kind, sample_id, share (of the cells taken or put back, 0 to 1), score. steps:
    how many, at most the number of cells. Deletion begins with the image and ends with the
    baseline, insertion the other way round. Source: Petsiuk et al. 2018, arXiv 1806.07421."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(unknown("kind", kind, list(KINDS)))
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps must be a whole number of at least 1, not {steps!r}")
    counts = np.unique(
        np.round(np.linspace(0, scorer.count, min(steps, scorer.count) + 1)).astype(int)
    )
    # (methods, kinds, N, steps + 1)
    scores = _score_first(scorer, check_maps(maps, scorer), kinds, counts, seed)
    index = pd.MultiIndex.from_product(
        [[found.method for found in maps], kinds, scorer.sample_ids, counts / scorer.count],
        names=["method", "kind", "sample_id", "share"],
    )
    return pd.Series(scores.ravel(), index=index, name="score").reset_index()


def area_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Scores table of the areas under perturbation curves (trapezoids). Metrics: deletion, better
    low; insertion, better high.
    """
    curves = curves.sort_values("share", kind="stable")
    rows = [
        (method, kind, sample_id, float(np.trapezoid(curve["score"], curve["share"])))
        for (method, kind, sample_id), curve in curves.groupby(
            ["method", "kind", "sample_id"], sort=False
        )
    ]
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def comprehensiveness(
    scorer: CellScorer, maps: Sequence[AttributionMap], shares=SHARES, seed: int = 0
) -> pd.DataFrame:
    """How far the score falls without the highest cells, mean over several shares of them. Better
    high. A scores table.

    Source: DeYoung et al. 2020, arXiv 1911.03429 (AOPC).
    """
    return _mean_fall(scorer, maps, "comprehensiveness", "deletion", shares, seed)


def sufficiency(
    scorer: CellScorer, maps: Sequence[AttributionMap], shares=SHARES, seed: int = 0
) -> pd.DataFrame:
    """How far the score falls when nothing but the highest cells is left, mean over several shares.
    Better low. A scores table.

    Source: DeYoung et al. 2020, arXiv 1911.03429 (AOPC).
    """
    return _mean_fall(scorer, maps, "sufficiency", "insertion", shares, seed)


def sensitivity_n(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    sizes: Iterable[float] = SIZES,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> pd.DataFrame:
    """Do the values add up? Correlation of a random set's sum of values with the fall of the score
    without it. Better high.

    Pearson's correlation over `subsets` sets of n cells, mean over several n, given as shares of
    the cells; the sets are the same for all maps. NaN for a blank map, and for images whose score
    does not move. A scores table. Source: Ancona et al. 2018, arXiv 1711.06104."""
    if subsets < 3:
        raise UserError(f"subsets must be at least 3 for a correlation, not {subsets}")
    maps, sizes = check_maps(maps, scorer), [_count(share, scorer.count) for share in sizes]
    correlations = []
    for size in sizes:
        removed = draw_sets(scorer, size, subsets, seed)  # (N, subsets, n)
        falls = score_falls(scorer, removed)  # (N, subsets)
        # (methods, N, subsets)
        sums = np.stack([(removed * scorer.sum(found)[:, None]).sum(axis=-1) for found in maps])
        correlations.append(correlate(sums, falls[None]))
    values = np.mean(correlations, axis=0)
    return pd.concat(
        [
            scorer.table(found.method, "sensitivity_n", row)
            for found, row in zip(maps, values, strict=True)
        ]
    )


def draw_sets(scorer: CellScorer, size: int, subsets: int, seed: int) -> np.ndarray:
    """Random sets of `size` cells, own ones for each image: (N, subsets, n) bool."""
    found = []
    for name in scorer.sample_ids:
        chance = np.random.default_rng(derive_seed(seed, "sets", size, name)).random(
            (subsets, scorer.count)
        )
        found.append(chance.argsort(axis=1).argsort(axis=1) < size)
    return np.stack(found)


def score_falls(scorer: CellScorer, removed: np.ndarray) -> np.ndarray:
    """How far the score of each image falls without each of its sets of cells (N, sets, n): (N,
    sets).
    """
    index = np.repeat(np.arange(len(removed)), removed.shape[1])
    scores = scorer.score_removed(index, removed.reshape(-1, scorer.count)).reshape(
        removed.shape[:2]
    )
    return scorer.score_clean()[:, None] - scores


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; NaN where one side is constant to rounding."""
    centred = []
    for values in (a, b):
        rest = values - values.mean(axis=-1, keepdims=True)
        level = np.abs(rest).max(axis=-1, keepdims=True) <= 1e-9 * np.abs(values).max(
            axis=-1, keepdims=True
        )
        centred.append(np.where(level, np.nan, rest))
    a, b = centred
    return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def _mean_fall(scorer, maps, metric, kind, shares, seed) -> pd.DataFrame:
    maps, counts = (
        check_maps(maps, scorer),
        np.array([_count(share, scorer.count) for share in shares]),
    )
    scores = _score_first(scorer, maps, [kind], counts, seed)[:, 0]  # (methods, N, shares)
    falls = (scorer.score_clean()[:, None] - scores).mean(axis=-1)
    return pd.concat(
        [scorer.table(found.method, metric, row) for found, row in zip(maps, falls, strict=True)],
        ignore_index=True,
    )


def _score_first(scorer, maps, kinds, counts, seed) -> np.ndarray:
    """Scores without (deletion) or with only (insertion) the first cells of each map: (methods,
    kinds, N, counts).
    """
    places = np.stack([scorer.order(found, seed) for found in maps])  # (methods, N, n)
    first = places[:, :, None] < counts[:, None]  # (methods, N, counts, n)
    # (methods, kinds, N, counts, n)
    removed = np.stack([first if kind == "deletion" else ~first for kind in kinds], axis=1)
    shape = removed.shape[:-1]
    index = np.broadcast_to(np.arange(shape[2])[:, None], shape)
    return scorer.score_removed(index.ravel(), removed.reshape(-1, scorer.count)).reshape(shape)


def _count(share: float, count: int) -> int:
    """A share of the cells as a number of them, at least 1."""
    if not 0 < share < 1:
        raise UserError(f"shares of the cells lie between 0 and 1, such as 0.1; got {share}")
    return max(1, round(share * count))
