"""ROAD: removal that leaves no hole. Pixels are guessed from their neighbours, so that the shape of
a mask gives nothing away.
"""

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
from vitlab.explain.removal import CellScorer, check_maps
from vitlab.schema import AttributionMap
from vitlab.seeds import derive_seed

SHARES = (0.2, 0.4, 0.6, 0.8)  # of the cells
NOISE = 0.01  # standard deviation, in normalised values
DETAIL = 2  # guessed points along the side of a cell; between them, values are interpolated
WEIGHTS = {(0, 1): 1 / 6, (0, -1): 1 / 6, (1, 0): 1 / 6, (-1, 0): 1 / 6}
# of the eight neighbours, as in the authors' code
WEIGHTS |= {(down, right): 1 / 12 for down in (-1, 1) for right in (-1, 1)}


def road(
    scorer: CellScorer,
    maps: Sequence[AttributionMap],
    shares: Sequence[float] = SHARES,
    noise: float = NOISE,
    detail: int = DETAIL,
    seed: int = 0,
) -> pd.DataFrame:
    """Half of: score without the lowest cells less that without the highest; mean over shares.
    Better high. A scores table.

    What was removed is filled by noisy linear imputation, on `detail` x `detail` points a cell (the
    authors: on every pixel, which takes minutes); the scorer's baseline has no part in it. Source:
    Rong et al. 2022, arXiv 2202.00449; both orders in one number as in pytorch-grad-cam's
    ROADCombined."""
    maps = check_maps(maps, scorer)
    for share in shares:
        if not 0 < share < 1:
            raise UserError(f"shares of the cells lie between 0 and 1, such as 0.2; got {share}")
    values = []
    for found in maps:
        places = scorer.order(found, seed)  # (N, n)
        scores = []
        for share in shares:
            count = min(max(1, round(share * scorer.count)), scorer.count - 1)
            # the lowest, the highest
            for removed in (places >= scorer.count - count, places < count):
                scores.append(_score_filled(scorer, removed, noise, detail, seed))
        lowest, highest = np.array(scores[::2]), np.array(scores[1::2])  # (shares, N)
        values.append((lowest - highest).mean(axis=0) / 2)
    return pd.concat(
        [scorer.table(found.method, "road", row) for found, row in zip(maps, values, strict=True)],
        ignore_index=True,
    )


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The image (C, h, w) in which each pixel marked in removed (h, w) is the weighted mean of its
    eight neighbours.

    Direct neighbours weigh 1/6, diagonal ones 1/12, those beyond the border nothing; all removed
    pixels are solved for at once. ValueError where no pixel is left."""
    if removed.all():
        raise UserError(
            "every pixel is removed, so there is nothing to guess them from; leave some"
        )
    height, width = removed.shape
    rows, columns = np.nonzero(removed)
    number = np.full(removed.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    diagonal, right = np.zeros(len(rows)), np.zeros((len(rows), len(image)))
    entries = []
    for (down, across), weight in WEIGHTS.items():
        i, j = rows + down, columns + across
        inside = np.flatnonzero((i >= 0) & (i < height) & (j >= 0) & (j < width))
        i, j = i[inside], j[inside]
        diagonal[inside] += weight
        unknown = removed[i, j]
        entries.append(
            (inside[unknown], number[i[unknown], j[unknown]], np.full(unknown.sum(), -weight))
        )
        right[inside[~unknown]] += weight * image[:, i[~unknown], j[~unknown]].T
    entries.append((np.arange(len(rows)), np.arange(len(rows)), diagonal))
    at, to, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    filled = image.astype(np.float64).copy()
    if len(rows):
        filled[:, rows, columns] = (
            splu(coo_array((value, (at, to)), shape=(len(rows),) * 2).tocsc()).solve(right).T
        )
    return filled


def _score_filled(scorer, removed, noise, detail, seed) -> np.ndarray:
    """Scores (N,) of the images with the cells marked in removed (N, n) guessed."""
    size = scorer.images.shape[-2:]
    points = [min(cells * detail, pixels) for cells, pixels in zip(scorer.grid, size, strict=True)]
    coarse = F.interpolate(scorer.images.float().cpu(), size=points, mode="area").numpy()
    masks = spread_cells(torch.from_numpy(removed), scorer.cells)  # (N, h, w)
    middle = [
        ((torch.arange(count) + 0.5) * side / count).long()
        for count, side in zip(points, size, strict=True)
    ]
    holes = masks[:, middle[0]][:, :, middle[1]].numpy()
    guessed = []
    for image, hole, name in zip(coarse, holes, scorer.sample_ids, strict=True):
        filled = impute(image, hole)
        filled += (
            noise
            * hole
            * np.random.default_rng(derive_seed(seed, "noise", name)).standard_normal(filled.shape)
        )
        guessed.append(filled)
    enlarged = F.interpolate(
        torch.from_numpy(np.stack(guessed)).float(), size=size, mode="bilinear", align_corners=False
    )
    mixed = torch.where(masks[:, None], enlarged, scorer.images.float().cpu())
    return scorer.score_images(np.arange(len(mixed)), mixed)
