"""Images without some of their cells: what stands in for a removed cell, and the scores that the
measures of faithfulness need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm.auto import tqdm

from vitlab.errors import UserError
from vitlab.models.anatomy import evaluating
from vitlab.registry import unknown
from vitlab.schema import Anatomy, AttributionMap, ModelBundle, Transform
from vitlab.seeds import derive_seed

# cells along the longer side where the model has no grid of its own, as a ViT-16 has at 224 pixels
CELLS = 14
BASELINES = ("mean", "black", "blur")
BLUR = 0.05  # standard deviation of the blur, as a share of the image's longer side
# of a map's largest value: values that differ by less are tied; float32 has seven digits
DIGITS = 6
SCORE_COLUMNS = ["method", "metric", "sample_id", "value"]


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

    Cells differ by a pixel where sides do not divide evenly. UserError for a grid that is finer
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


def round_maps(values: np.ndarray) -> np.ndarray:
    """Values divided by the largest absolute one along the last axis, and rounded to six digits: a
    map is float32, and rounding in its computation must not decide which of two values is higher.
    """
    scale = np.abs(values).max(axis=-1, keepdims=True)
    return np.round(values / np.where(scale > 0, scale, 1), DIGITS)


class CellScorer:
    """Probabilities of the target for images that lack some of their cells; each such image is
    computed only once.

    images: (N, 3, h, w), normalised, those that the maps explain. maps: one or several of the same
    images and targets. grid: rows and columns of cells; by default the model's own (see
    `choose_grid`). baseline: what is shown in place of a cell. UserError where maps and images do
    not belong together.

    >>> scorer = CellScorer(model, images, maps)  # doctest: +SKIP
    >>> scores = score_maps(scorer, maps)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: ModelBundle,
        images: torch.Tensor,
        maps: AttributionMap | Sequence[AttributionMap],
        *,
        grid: tuple[int, int] | None = None,
        baseline: str = "mean",
        batch_size: int = 8,
    ):
        maps = check_maps([maps] if isinstance(maps, AttributionMap) else maps)
        size = tuple(images.shape[-2:])
        if maps[0].values.shape != (len(images), *size):
            raise UserError(f"maps {maps[0].values.shape} do not fit images {tuple(images.shape)}")
        self.model, self.images, self.batch_size = model, images, batch_size
        self.like = maps[0]
        self.sample_ids = self.like.sample_ids
        self.targets = np.array([model.classes.index(name) for name in self.like.target])
        self.baseline = make_baseline(baseline, images, model.transform)
        self.grid = tuple(grid or choose_grid(model.anatomy, size))
        self.cells = number_cells(self.grid, size)
        self.count = self.grid[0] * self.grid[1]
        self._known: dict[bytes, float] = {}

    def pool(self, found: AttributionMap) -> np.ndarray:
        """The cells' mean values of each map: (N, n) float64."""
        check_maps([self.like, found], names=False)
        return pool_cells(torch.from_numpy(found.values).double(), self.cells).numpy()

    def sum(self, found: AttributionMap) -> np.ndarray:
        """The sums of each map's values over the cells: (N, n) float64."""
        return self.pool(found) * torch.bincount(self.cells.flatten()).numpy()

    def order(self, found: AttributionMap, seed: int = 0) -> np.ndarray:
        """Place of each cell in each map, 0 the highest value: (N, n). The most negative cells of a
        signed map come last.

        Tied cells (see `round_maps`) come in a random order, the same for all maps of an image: a
        fixed order would give a blank map a score that depends on where the objects are."""
        chance = np.stack(
            [
                np.random.default_rng(derive_seed(seed, "ties", name)).permutation(self.count)
                for name in self.sample_ids
            ]
        )
        return np.lexsort((chance, -round_maps(self.pool(found))), axis=1).argsort(axis=1)

    def score_removed(self, index: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Scores (M,) of the images index (M,) without the cells marked in removed (M, n), bool."""
        index = np.asarray(index, np.int32)
        packed = np.packbits(removed, axis=1)
        keys = [number.tobytes() + row.tobytes() for number, row in zip(index, packed, strict=True)]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}

        def make(part):
            where = index[part]
            without = torch.from_numpy(removed[part]).to(self.images.device)
            return replace_cells(self.images[where], self.baseline[where], without, self.cells)

        self._known.update(zip(new, self._compute(list(new.values()), make, index), strict=True))
        return np.array([self._known[key] for key in keys])

    def score_images(self, images: torch.Tensor) -> np.ndarray:
        """Scores (N,) of changed images (N, 3, h, w), one for each of the scorer's images."""
        places = list(range(len(images)))
        return self._compute(places, lambda part: images[part], np.array(places))

    def score_clean(self) -> np.ndarray:
        """Scores (N,) of the images as they are."""
        count = len(self.images)
        return self.score_removed(np.arange(count), np.zeros((count, self.count), bool))

    def table(self, method: str, metric: str, values: np.ndarray) -> pd.DataFrame:
        """One row for each image: method, metric, sample_id, value."""
        ids = list(self.sample_ids)
        rows = {"method": method, "metric": metric, "sample_id": ids, "value": values}
        return pd.DataFrame(rows)

    @torch.inference_mode()
    def _compute(self, places, make, index) -> np.ndarray:
        """Scores of the images that `make` makes of a batch of places in `index`."""
        weight = next(self.model.module.parameters())
        scores = [np.zeros(0)]
        starts = range(0, len(places), self.batch_size)
        bar = tqdm(starts, "changed images", unit="batch", leave=False, disable=len(starts) < 20)
        with evaluating(self.model.module):
            for start in bar:
                part = places[start : start + self.batch_size]
                logits = self.model.module(make(part).to(weight.device, weight.dtype)).double()
                probs = logits.cpu().softmax(dim=1).numpy()
                scores.append(probs[range(len(part)), self.targets[index[part]]])
        return np.concatenate(scores)


def check_maps(maps: Sequence[AttributionMap], names: bool = True) -> list[AttributionMap]:
    """The maps as a list; UserError for none, for maps of different images, targets or sizes, and
    (with names) for two of one name.
    """
    maps = list(maps)
    if not maps:
        raise UserError("no maps; pass at least one AttributionMap")
    first = maps[0]
    for found in maps:
        if found.sample_ids != first.sample_ids or found.values.shape != first.values.shape:
            raise UserError(
                f"the maps of {found.method} are not of the same images as those of {first.method}"
            )
        if found.target != first.target:
            raise UserError(
                f"the maps of {found.method} explain other classes than those of {first.method};"
                " name the target in explain()"
            )
    methods = [found.method for found in maps]
    for name in methods if names else []:
        if methods.count(name) > 1:
            raise UserError(f"two maps are called {name!r}; rename one with dataclasses.replace")
    return maps
