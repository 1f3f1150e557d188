"""Images divided into cells that are kept or removed as a whole, and what is shown instead of a
removed cell.
"""

from __future__ import annotations

import torch
from torchvision.transforms.v2.functional import gaussian_blur

from vitlab.errors import UserError
from vitlab.registry import unknown
from vitlab.schema import Anatomy, Transform

# cells along the longer side where the model has no grid of its own, as a ViT-16 has at 224 pixels
CELLS = 14
BASELINES = ("mean", "black", "blur")
BLUR = 0.05  # standard deviation of the blur, as a share of the image's longer side


def choose_grid(anatomy: Anatomy, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns: the token grid of a model with attention, else nearly square cells, 14
    along the longer side.
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
    """The cell of each pixel, (h, w) int64, numbered row by row from 0.

    Cells differ by a pixel where sides do not divide evenly. ValueError for a grid that is finer
    than the image, or has no cell."""
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
    """Means of maps (B, h, w) over numbered cells (h, w): (B, n)."""
    index = cells.to(values.device).expand_as(values).flatten(1)
    count = int(cells.max()) + 1
    sums = values.new_zeros(len(values), count).scatter_add_(1, index, values.flatten(1))
    return sums / torch.bincount(cells.to(values.device).flatten())


def spread_cells(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Each cell's value at all of its pixels: (B, n) with cells (h, w) to (B, h, w)."""
    return values[:, cells.to(values.device)]


def replace_cells(
    images: torch.Tensor, baseline: torch.Tensor, removed: torch.Tensor, cells: torch.Tensor
) -> torch.Tensor:
    """Images (B, 3, h, w) that show the baseline, of the same shape, in the cells marked in
    `removed` (B, n), bool.
    """
    return torch.where(spread_cells(removed, cells)[:, None], baseline, images)


def make_baseline(kind: str, images: torch.Tensor, transform: Transform) -> torch.Tensor:
    """The images (B, 3, h, w), normalised by this transform, with everything removed.

    There is no neutral choice. mean: the mean colour of the data that the weights were trained
    with, 0 after normalisation. black: black pixels, which remove nothing from what is black. blur:
    the image without detail, which is closest to what the model has seen."""
    match kind:
        case "mean":
            return torch.zeros_like(images)
        case "black":
            mean = images.new_tensor(transform.mean)[:, None, None]
            std = images.new_tensor(transform.std)[:, None, None]
            return (-mean / std).expand_as(images).clone()
        case "blur":
            sigma = BLUR * max(images.shape[-2:])
            # of the kernel, along w and h
            widths = [2 * min(round(3 * sigma), side - 1) + 1 for side in images.shape[:-3:-1]]
            return gaussian_blur(images, kernel_size=widths, sigma=[sigma, sigma])
    raise UserError(unknown("baseline", kind, list(BASELINES)))
