"""Scores of images without some of their cells, which most measures of faithfulness need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from vitlab.errors import UserError
from vitlab.explain.grid import (
    choose_grid,
    make_baseline,
    number_cells,
    pool_cells,
    replace_cells,
)
from vitlab.models.anatomy import evaluating
from vitlab.registry import unknown
from vitlab.schema import AttributionMap, ModelBundle
from vitlab.seeds import derive_seed

SCORES = ("probability", "logit")
DIGITS = 6  # of a map's largest value: cells that differ by less are tied
SCORE_COLUMNS = ["method", "metric", "sample_id", "value"]


class CellScorer:
    """Scores of the target on images that lack some of their cells; each such image is computed
    only once.

    images: (N, 3, h, w), normalised, those that the maps explain. maps: one or several of the same
    images and targets. grid: rows and columns of cells; by default the model's own (see
    `choose_grid`). baseline: what is seen in place of a cell. score: the target's probability, or
    its logit. Maps with `versus` are scored by the difference of the two logits, or the probability
    that it gives. ValueError where maps and images do not belong together.

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
        score: str = "probability",
        batch_size: int = 8,
    ):
        first = maps if isinstance(maps, AttributionMap) else check_maps(maps)[0]
        if first.values.shape != (len(images), *images.shape[-2:]):
            raise UserError(
                f"maps {first.values.shape} do not fit images {tuple(images.shape)}; hand over"
                " those explained"
            )
        if score not in SCORES:
            raise UserError(unknown("score", score, list(SCORES)))
        self.model, self.images, self.score, self.batch_size = model, images, score, batch_size
        self.sample_ids = first.sample_ids
        self.target, self.versus = (
            [model.classes.index(name) for name in names] for names in (first.target, first.versus)
        )
        self.baseline = make_baseline(baseline, images, model.transform)
        self.grid = tuple(grid or choose_grid(model.anatomy, tuple(images.shape[-2:])))
        self.cells = number_cells(self.grid, tuple(images.shape[-2:]))
        self.count = self.grid[0] * self.grid[1]
        self._known: dict[bytes, float] = {}

    def pool(self, found: AttributionMap) -> np.ndarray:
        """The cells' mean values of each map: (N, n) float64."""
        check_maps([found], self)
        return pool_cells(torch.from_numpy(found.values).double(), self.cells).numpy()

    def sum(self, found: AttributionMap) -> np.ndarray:
        """The sums of each map's values over the cells: (N, n) float64."""
        return self.pool(found) * torch.bincount(self.cells.flatten()).numpy()

    def order(self, found: AttributionMap, seed: int = 0) -> np.ndarray:
        """Place of each cell in each map, 0 the highest value: (N, n). The most negative cells of a
        signed map come last.

        Cells that are tied (to six digits of the map's largest value) come in a random order, the
        same for all maps of an image: a fixed order would give a blank map a score that depends on
        where the objects are."""
        values = self.pool(found)
        scale = np.abs(values).max(axis=1, keepdims=True)
        values = np.round(values / np.where(scale > 0, scale, 1), DIGITS)
        chance = np.stack(
            [
                np.random.default_rng(derive_seed(seed, "ties", name)).permutation(self.count)
                for name in self.sample_ids
            ]
        )
        return np.lexsort((chance, -values), axis=1).argsort(axis=1)

    def score_removed(self, index: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Scores (M,) of the images index (M,) without the cells marked in removed (M, n), bool."""
        keys = [
            number.tobytes() + row.tobytes()
            for number, row in zip(
                np.asarray(index, np.int32), np.packbits(removed, axis=1), strict=True
            )
        ]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}

        def make(part):
            where = np.asarray(index)[part]
            without = torch.from_numpy(removed[part]).to(self.images.device)
            return replace_cells(self.images[where], self.baseline[where], without, self.cells)

        self._known.update(zip(new, self._compute(list(new.values()), make, index), strict=True))
        return np.array([self._known[key] for key in keys])

    def score_images(self, index: np.ndarray, images: torch.Tensor) -> np.ndarray:
        """Scores (M,) of changed images (M, 3, h, w), for the targets of the images index (M,)."""
        return self._compute(list(range(len(images))), lambda part: images[part], index)

    def score_clean(self) -> np.ndarray:
        """Scores (N,) of the images as they are."""
        return self.score_removed(
            np.arange(len(self.images)), np.zeros((len(self.images), self.count), bool)
        )

    def table(self, method: str, metric: str, values: np.ndarray) -> pd.DataFrame:
        """One row an image: method, metric, sample_id, value."""
        return pd.DataFrame(
            {
                "method": method,
                "metric": metric,
                "sample_id": list(self.sample_ids),
                "value": values,
            }
        )

    @torch.inference_mode()
    def _compute(self, places, make, index) -> np.ndarray:
        """Scores of the images that `make` makes of a batch of places in `index`."""
        weight = next(self.model.module.parameters())
        scores = [np.zeros(0)]
        starts = range(0, len(places), self.batch_size)
        with evaluating(self.model.module):
            for start in tqdm(
                starts, desc="changed images", unit="batch", leave=False, disable=len(starts) < 20
            ):
                part = places[start : start + self.batch_size]
                logits = (
                    self.model.module(make(part).to(weight.device, weight.dtype)).double().cpu()
                )
                scores.append(self._select(logits, np.asarray(index)[part]).numpy())
        return np.concatenate(scores)

    def _select(self, logits: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        """(B, num_classes) to the score (B,) of each image's target."""
        rows = torch.arange(len(logits))
        target = torch.tensor(self.target)[index]
        if self.versus:
            gap = logits[rows, target] - logits[rows, torch.tensor(self.versus)[index]]
            return gap if self.score == "logit" else gap.sigmoid()
        return (logits if self.score == "logit" else logits.softmax(dim=1))[rows, target]


def check_maps(
    maps: Sequence[AttributionMap], like: CellScorer | None = None
) -> list[AttributionMap]:
    """The maps as a list; ValueError for none, two of one name, or maps of different images,
    targets or sizes.
    """
    maps = list(maps)
    if not maps:
        raise UserError("no maps to judge; hand over at least one AttributionMap")
    names = [found.method for found in maps]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two maps are called {name!r}; rename one with dataclasses.replace(found,"
                " method=...)"
            )
    first = maps[0]
    ids, size = (
        (like.sample_ids, tuple(like.images.shape[-2:]))
        if like
        else (first.sample_ids, first.values.shape[1:])
    )
    classes = like.model.classes if like else ()
    target = tuple(classes[place] for place in like.target) if like else first.target
    versus = tuple(classes[place] for place in like.versus) if like else first.versus
    for found in maps:
        if found.sample_ids != ids or found.values.shape[1:] != size:
            raise UserError(
                f"the maps of {found.method} are not of the images judged: other sample_ids, or"
                " another size"
            )
        if (found.target, found.versus) != (target, versus):
            raise UserError(
                f"the maps of {found.method} explain other classes; name the target in explain()"
            )
    return maps
