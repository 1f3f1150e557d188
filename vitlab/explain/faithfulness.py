"""Does a map show what the model used? Cells are removed, in the map's order or at random, and the
score is observed.

Images without cells differ from the training images, and a score may fall for that alone: compare
with the controls (`vitlab.explain.trust`), to which the same happens, and with another baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu
from torch.nn import functional as F

from vitlab.errors import UserError
from vitlab.explain.inspection import check_count
from vitlab.explain.removal import CellScorer, check_maps, spread_cells
from vitlab.explain.similarity import correlate
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

Maps = Sequence[AttributionMap]


def curve_table(scorer: CellScorer, maps: Maps, steps: int = STEPS, seed: int = 0) -> pd.DataFrame:
    """The score while cells are removed from the image, or put back, the highest of the map first.

    Columns method, kind (deletion, insertion), sample_id, share (of the cells removed or put back,
    0 to 1), score. Deletion begins with the image and ends with the baseline, insertion the other
    way round. steps: at most the number of cells. Source: Petsiuk et al. 2018, arXiv 1806.07421."""
    counts = _count_steps(scorer, steps)
    scores = np.stack([_score_first(scorer, maps, kind, counts, seed) for kind in KINDS], axis=1)
    index = pd.MultiIndex.from_product(
        [[found.method for found in maps], KINDS, scorer.sample_ids, counts / scorer.count],
        names=["method", "kind", "sample_id", "share"],
    )
    return pd.Series(scores.ravel(), index=index, name="score").reset_index()


def compute_area(
    scorer: CellScorer, maps: Maps, kind: str, steps: int = STEPS, seed: int = 0
) -> np.ndarray:
    """Area under the deletion or insertion curve (trapezoids), see `curve_table`: (methods, N)."""
    counts = _count_steps(scorer, steps)
    scores = _score_first(scorer, maps, kind, counts, seed)
    return np.trapezoid(scores, counts / scorer.count, axis=-1)


def compute_fall(
    scorer: CellScorer, maps: Maps, kind: str, shares: Sequence[float] = SHARES, seed: int = 0
) -> np.ndarray:
    """How far the score falls without (kind deletion) or with only (insertion) the highest cells,
    mean over several shares of them: (methods, N).

    Comprehensiveness and sufficiency of DeYoung et al. 2020, arXiv 1911.03429 (AOPC)."""
    counts = np.array([_count(share, scorer.count) for share in shares])
    scores = _score_first(scorer, maps, kind, counts, seed)
    return (scorer.score_clean()[:, None] - scores).mean(axis=-1)


def compute_sensitivity(
    scorer: CellScorer,
    maps: Maps,
    sizes: Sequence[float] = SIZES,
    subsets: int = SUBSETS,
    seed: int = 0,
) -> np.ndarray:
    """Correlation of a random set's sum of values with the fall of the score without it: (methods,
    N).

    Pearson's correlation over `subsets` sets of n cells, mean over several n, given as shares of
    the cells; the sets are the same for all maps. NaN for a blank map, and for images whose score
    does not change. Source: Ancona et al. 2018, arXiv 1711.06104 (sensitivity-n)."""
    if subsets < 3:
        raise UserError(f"subsets must be at least 3 for a correlation, not {subsets}")
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
    return np.mean(correlations, axis=0)


def compute_road(
    scorer: CellScorer, maps: Maps, shares: Sequence[float] = ROAD_SHARES, seed: int = 0
) -> np.ndarray:
    """Half of: score without the lowest cells minus that without the highest; mean over shares:
    (methods, N).

    Removed cells are filled by noisy linear imputation, on 2 x 2 points a cell (the authors: on
    every pixel, which takes minutes), so that the shape of a hole reveals nothing; the scorer's
    baseline has no part in it. Source: Rong et al. 2022, arXiv 2202.00449; both orders in one
    number as in pytorch-grad-cam's ROADCombined."""
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
    return np.stack(values)


def compute_sparseness(scorer: CellScorer, maps: Maps, seed: int = 0) -> np.ndarray:
    """Gini index of the cells' absolute values: 0 when all are equal, near 1 when one has it all:
    (methods, N).

    NaN for a map of zeros. A sparse map is easier to read; that does not make it right. Source:
    Chalasani et al. 2020, arXiv 1810.06583."""
    ordered = np.sort(np.abs([scorer.pool(found) for found in maps]), axis=-1)  # (methods, N, n)
    count, total = scorer.count, ordered.sum(axis=-1)
    weighted = ((2 * np.arange(1, count + 1) - count - 1) * ordered).sum(axis=-1)
    return np.where(total > 0, weighted / np.where(total > 0, count * total, 1), np.nan)


@dataclass(frozen=True)
class Metric:
    """A measure of maps.

    compute(scorer, maps, seed, **options): the scores (methods, N); None for those of
        `pointing_scores`.
    better: "high", "low", or "" for one that only describes.
    meaning: what it measures.
    """

    compute: Callable[..., np.ndarray] | None
    better: str
    meaning: str


METRICS: Mapping[str, Metric] = {
    "deletion": Metric(
        partial(compute_area, kind="deletion"),
        "low",
        "mean score while the map's highest cells are removed",
    ),
    "insertion": Metric(
        partial(compute_area, kind="insertion"),
        "high",
        "mean score while the highest cells are put into an empty image",
    ),
    "comprehensiveness": Metric(
        partial(compute_fall, kind="deletion"),
        "high",
        "fall of the score without the highest cells",
    ),
    "sufficiency": Metric(
        partial(compute_fall, kind="insertion"),
        "low",
        "fall of the score with only the highest cells",
    ),
    "sensitivity_n": Metric(
        compute_sensitivity,
        "high",
        "correlation of a random set's values with the fall of the score without it",
    ),
    "road": Metric(
        compute_road,
        "high",
        "half of: score without the lowest cells minus that without the highest, holes imputed",
    ),
    "pointing_hit": Metric(None, "high", "whether the highest point is in the planted stamp"),
    "pointing_mass": Metric(None, "high", "share of the positive values in the stamp"),
    "pointing_rank": Metric(None, "high", "share of the stamp's pixels among as many highest ones"),
    "sparseness": Metric(
        compute_sparseness, "", "Gini index of the cells: near 1 when few have it all"
    ),
}


def legend_table() -> pd.DataFrame:
    """What each metric measures: metric, better ("high", "low", or "" for one that only
    describes), meaning.
    """
    rows = [(name, metric.better, metric.meaning) for name, metric in METRICS.items()]
    return pd.DataFrame(rows, columns=["metric", "better", "meaning"])


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The image (C, h, w) in which each pixel marked in removed (h, w) is the weighted mean of its
    eight neighbours.

    Direct neighbours weigh 1/6, diagonal ones 1/12, those beyond the border nothing; all removed
    pixels are solved for at once. At least one pixel must be left."""
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


def _score_first(
    scorer: CellScorer, maps: Maps, kind: str, counts: np.ndarray, seed: int
) -> np.ndarray:
    """Scores without (deletion) or with only (insertion) the first cells of each map: (methods, N,
    counts).
    """
    places = np.stack([scorer.order(found, seed) for found in check_maps(maps)])  # (methods, N, n)
    removed = places[:, :, None] < counts[:, None]  # (methods, N, counts, n)
    removed = removed if kind == "deletion" else ~removed
    shape = removed.shape[:-1]
    index = np.broadcast_to(np.arange(shape[1])[:, None], shape)
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
    return scorer.score_images(torch.where(masks[:, None], enlarged, images))


def _count_steps(scorer: CellScorer, steps: int) -> np.ndarray:
    """How many cells are removed at each step of a curve."""
    check_count("steps", steps)
    points = np.linspace(0, scorer.count, min(steps, scorer.count) + 1)
    return np.unique(np.round(points).astype(int))


def _count(share: float, count: int) -> int:
    """A share of the cells as a number of them, at least 1."""
    if not 0 < share < 1:
        raise UserError(f"shares of the cells lie between 0 and 1, such as 0.1; got {share}")
    return max(1, round(share * count))
