"""Does a map show what the model used? Cells are removed, in the map's order or at random, and the
score is observed.

Images without cells are unlike any that the model was trained on, and a score may fall for that
alone: compare with the controls (`vitlab.explain.controls`), which suffer from it as much, and with
another baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.explain.grid import spread_cells
from vitlab.explain.inspection import check_count
from vitlab.explain.removal import SCORE_COLUMNS, CellScorer, check_maps
from vitlab.explain.similarity import correlate
from vitlab.registry import unknown
from vitlab.schema import AttributionMap
from vitlab.seeds import derive_seed

KINDS = ("deletion", "insertion")
STEPS = 20
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the cells; those of DeYoung et al.
SUBSETS = 32
SIZES = (0.1, 0.3, 0.5)  # shares of the cells
ROAD_SHARES = (0.2, 0.4, 0.6, 0.8)  # of the cells
NOISE = 0.01  # standard deviation, in normalised values
DETAIL = 2  # imputed points along the side of a cell; between them, values are interpolated
# of the eight neighbours, as in the authors' code
WEIGHTS = {(0, 1): 1 / 6, (0, -1): 1 / 6, (1, 0): 1 / 6, (-1, 0): 1 / 6}
WEIGHTS |= {(down, right): 1 / 12 for down in (-1, 1) for right in (-1, 1)}


def curve_table(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    kinds: Sequence[str] = KINDS,
    steps: int = STEPS,
    seed: int = 0,
) -> pd.DataFrame:
    """The score while cells are removed from the image, or put back, the highest of the map first.

    Columns method, kind, sample_id, share (of the cells removed or put back, 0 to 1), score.
    Deletion begins with the image and ends with the baseline, insertion the other way round. steps:
    at most the number of cells. Source: Petsiuk et al. 2018, arXiv 1806.07421."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(unknown("kind", kind, list(KINDS)))
    check_count("steps", steps)
    points = np.linspace(0, scorer.count, min(steps, scorer.count) + 1)
    counts = np.unique(np.round(points).astype(int))
    # (methods, kinds, N, steps + 1)
    scores = _score_first(scorer, check_maps(maps, scorer), kinds, counts, seed)
    index = pd.MultiIndex.from_product(
        [[found.method for found in maps], kinds, scorer.sample_ids, counts / scorer.count],
        names=["method", "kind", "sample_id", "share"],
    )
    return pd.Series(scores.ravel(), index=index, name="score").reset_index()


def area_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Areas under perturbation curves (trapezoids) as scores. Metrics: deletion, better low;
    insertion, better high.
    """
    curves = curves.sort_values("share", kind="stable")
    groups = curves.groupby(["method", "kind", "sample_id"], sort=False)
    rows = [(*key, np.trapezoid(curve["score"], curve["share"])) for key, curve in groups]
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def comprehensiveness(
    scorer: CellScorer, maps: Sequence[AttributionMap], shares=SHARES, seed: int = 0
) -> pd.DataFrame:
    """How far the score falls without the highest cells, mean over several shares of them. Better
    high. Source: DeYoung et al. 2020, arXiv 1911.03429 (AOPC).
    """
    return _mean_fall(scorer, maps, "comprehensiveness", "deletion", shares, seed)


def sufficiency(
    scorer: CellScorer, maps: Sequence[AttributionMap], shares=SHARES, seed: int = 0
) -> pd.DataFrame:
    """How far the score falls with only the highest cells, mean over several shares of them. Better
    low. Source: DeYoung et al. 2020, arXiv 1911.03429 (AOPC).
    """
    return _mean_fall(scorer, maps, "sufficiency", "insertion", shares, seed)


def sensitivity_n(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    sizes: Sequence[float] = SIZES,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlation of a random set's sum of values with the fall of the score without it. Better
    high.

    Pearson's correlation over `subsets` sets of n cells, mean over several n, given as shares of
    the cells; the sets are the same for all maps. NaN for a blank map, and for images whose score
    does not change. Source: Ancona et al. 2018, arXiv 1711.06104."""
    if subsets < 3:
        raise UserError(f"subsets must be at least 3 for a correlation, not {subsets}")
    maps = check_maps(maps, scorer)
    clean = scorer.score_clean()[:, None]
    correlations = []
    for share in sizes:
        removed = _draw_sets(scorer, _count(share, scorer.count), subsets, seed)
        index = np.repeat(np.arange(len(removed)), subsets)
        scores = scorer.score_removed(index, removed.reshape(-1, scorer.count))
        falls = clean - scores.reshape(removed.shape[:2])  # (N, subsets)
        # (methods, N, subsets)
        sums = np.stack([(removed * scorer.sum(found)[:, None]).sum(axis=-1) for found in maps])
        correlations.append(correlate(sums, falls[None]))
    return _stack_scores(scorer, maps, "sensitivity_n", np.mean(correlations, axis=0))


def road(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    shares: Sequence[float] = ROAD_SHARES,
    seed: int = 0,
) -> pd.DataFrame:
    """Half of: score without the lowest cells minus that without the highest; mean over shares.
    Better high.

    Removed cells are filled by noisy linear imputation, on 2 x 2 points a cell (the authors: on
    every pixel, which takes minutes), so that the shape of a hole reveals nothing; the scorer's
    baseline has no part in it. Source: Rong et al. 2022, arXiv 2202.00449; both orders in one
    number as in pytorch-grad-cam's ROADCombined."""
    maps = check_maps(maps, scorer)
    values = []
    for found in maps:
        places = scorer.order(found, seed)  # (N, n)
        gaps = []
        for share in shares:
            count = min(_count(share, scorer.count), scorer.count - 1)
            without_lowest = _score_filled(scorer, places >= scorer.count - count, seed)
            without_highest = _score_filled(scorer, places < count, seed)
            gaps.append(without_lowest - without_highest)
        values.append(np.mean(gaps, axis=0) / 2)
    return _stack_scores(scorer, maps, "road", values)


def sparseness(scorer: CellScorer, maps: Sequence[AttributionMap], seed: int = 0) -> pd.DataFrame:
    """Gini index of the cells' absolute values: 0 when all are equal, near 1 when one has it all.

    NaN for a map of zeros. A sparse map is easier to read, which does not make it right. Source:
    Chalasani et al. 2020, arXiv 1810.06583."""
    maps = check_maps(maps, scorer)
    return _stack_scores(
        scorer, maps, "sparseness", [compute_gini(scorer.pool(found)) for found in maps]
    )


def compute_gini(values: np.ndarray) -> np.ndarray:
    """Gini index of the absolute values in each row (N, n): (N,), NaN for a row of zeros."""
    ordered = np.sort(np.abs(values), axis=1)
    count = ordered.shape[1]
    total = ordered.sum(axis=1)
    weighted = ((2 * np.arange(1, count + 1) - count - 1) * ordered).sum(axis=1)
    return np.where(total > 0, weighted / np.where(total > 0, count * total, 1), np.nan)


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The image (C, h, w) in which each pixel marked in removed (h, w) is the weighted mean of its
    eight neighbours.

    Direct neighbours weigh 1/6, diagonal ones 1/12, those beyond the border nothing; all removed
    pixels are solved for at once. ValueError where no pixel is left."""
    if removed.all():
        raise UserError("every pixel is removed, so there is nothing to impute from; leave some")
    height, width = removed.shape
    rows, columns = np.nonzero(removed)
    number = np.full(removed.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    diagonal, right = np.zeros(len(rows)), np.zeros((len(rows), len(image)))
    entries = []  # row, column and value of the sparse matrix
    for (down, across), weight in WEIGHTS.items():
        i, j = rows + down, columns + across
        inside = np.flatnonzero((i >= 0) & (i < height) & (j >= 0) & (j < width))
        i, j = i[inside], j[inside]
        diagonal[inside] += weight
        unknown = removed[i, j]
        off_diagonal = np.full(unknown.sum(), -weight)
        entries.append((inside[unknown], number[i[unknown], j[unknown]], off_diagonal))
        right[inside[~unknown]] += weight * image[:, i[~unknown], j[~unknown]].T
    entries.append((np.arange(len(rows)), np.arange(len(rows)), diagonal))
    at, to, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    filled = image.astype(np.float64).copy()
    if len(rows):
        matrix = coo_array((value, (at, to)), shape=(len(rows),) * 2).tocsc()
        filled[:, rows, columns] = splu(matrix).solve(right).T
    return filled


def _draw_sets(scorer: CellScorer, size: int, subsets: int, seed: int) -> np.ndarray:
    """Random sets of `size` cells, own ones for each image: (N, subsets, n) bool."""
    found = []
    for name in scorer.sample_ids:
        generator = np.random.default_rng(derive_seed(seed, "sets", size, name))
        chance = generator.random((subsets, scorer.count))
        found.append(chance.argsort(axis=1).argsort(axis=1) < size)
    return np.stack(found)


def _mean_fall(scorer, maps, metric, kind, shares, seed) -> pd.DataFrame:
    maps = check_maps(maps, scorer)
    counts = np.array([_count(share, scorer.count) for share in shares])
    scores = _score_first(scorer, maps, [kind], counts, seed)[:, 0]  # (methods, N, shares)
    falls = (scorer.score_clean()[:, None] - scores).mean(axis=-1)
    return _stack_scores(scorer, maps, metric, falls)


def _stack_scores(scorer, maps, metric, values) -> pd.DataFrame:
    """Scores of several maps, (methods, N), as one table."""
    tables = [
        scorer.table(found.method, metric, row) for found, row in zip(maps, values, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


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


def _score_filled(scorer, removed, seed) -> np.ndarray:
    """Scores (N,) of the images with the cells marked in removed (N, n) imputed."""
    size = scorer.images.shape[-2:]
    images = scorer.images.float().cpu()
    points = [min(cells * DETAIL, pixels) for cells, pixels in zip(scorer.grid, size, strict=True)]
    coarse = F.interpolate(images, size=points, mode="area").numpy()
    masks = spread_cells(torch.from_numpy(removed), scorer.cells)  # (N, h, w)
    rows, columns = (
        ((torch.arange(count) + 0.5) * side / count).long()
        for count, side in zip(points, size, strict=True)
    )
    holes = masks[:, rows][:, :, columns].numpy()
    imputed = []
    for image, hole, name in zip(coarse, holes, scorer.sample_ids, strict=True):
        generator = np.random.default_rng(derive_seed(seed, "noise", name))
        noise = NOISE * hole * generator.standard_normal(image.shape)
        imputed.append(impute(image, hole) + noise)
    enlarged = F.interpolate(
        torch.from_numpy(np.stack(imputed)).float(), size=size, mode="bilinear", align_corners=False
    )
    mixed = torch.where(masks[:, None], enlarged, images)
    return scorer.score_images(np.arange(len(mixed)), mixed)


def _count(share: float, count: int) -> int:
    """A share of the cells as a number of them, at least 1."""
    if not 0 < share < 1:
        raise UserError(f"shares of the cells lie between 0 and 1, such as 0.1; got {share}")
    return max(1, round(share * count))
