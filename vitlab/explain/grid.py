"""An image cut into cells that are kept or taken away as a whole: patches of a grid, or segments of
any shape.
"""

from __future__ import annotations

import torch

from vitlab.errors import UserError
from vitlab.schema import Anatomy

# cells along the longer side where the model itself has no grid: those of a ViT with 16-pixel
# patches at 224
CELLS = 14


def choose_grid(anatomy: Anatomy, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns: the token grid of a model with attention, else cells as square as may be,
    14 along the longer side.
    """
    if anatomy.attention and min(anatomy.grid) > 0:
        return anatomy.grid
    rows, columns = (max(1, round(CELLS * side / max(size))) for side in size)
    return min(rows, size[0]), min(columns, size[1])


def coarsen_grid(grid: tuple[int, int], most: int = 8) -> tuple[int, int]:
    """The grid with neighbours merged, the same number along both sides, until neither side has
    more than `most` cells.
    """
    merged = -(-max(grid) // most)
    return -(-grid[0] // merged), -(-grid[1] // merged)


def number_cells(grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """The cell of each pixel, (h, w) int64, numbered row by row from 0; cells differ by a pixel
    where sides do not divide evenly.

    ValueError for a grid that is finer than the image, or without a cell.
    """
    for cells, pixels in zip(grid, size, strict=True):
        if not 1 <= cells <= pixels:
            raise UserError(
                f"a grid of {grid[0]}x{grid[1]} cells does not fit images of {size[0]}x{size[1]}"
                " pixels"
            )
    rows, columns = (
        torch.arange(pixels) * cells // pixels for cells, pixels in zip(grid, size, strict=True)
    )
    return rows[:, None] * grid[1] + columns


def pool_cells(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Means of maps (B, h, w) over numbered cells (h, w) or (B, h, w): (B, n)."""
    index = cells.to(values.device).expand_as(values).flatten(1)
    count = int(cells.max()) + 1
    sums = values.new_zeros(len(values), count).scatter_add_(1, index, values.flatten(1))
    sizes = values.new_zeros(len(values), count).scatter_add_(
        1, index, torch.ones_like(values).flatten(1)
    )
    return sums / sizes.clamp(min=1)


def spread_cells(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Each cell's value at all of its pixels: (B, n) with cells (h, w) or (B, h, w) to (B, h,
    w).
    """
    index = cells.to(values.device).expand(len(values), *cells.shape[-2:])
    return values.gather(1, index.flatten(1)).unflatten(1, index.shape[1:])


def replace_cells(
    images: torch.Tensor, baseline: torch.Tensor, removed: torch.Tensor, cells: torch.Tensor
) -> torch.Tensor:
    """Images (B, 3, h, w) that show the baseline, of the same shape, in the cells marked in
    `removed` (B, n), bool.
    """
    return torch.where(spread_cells(removed, cells)[:, None], baseline, images)
