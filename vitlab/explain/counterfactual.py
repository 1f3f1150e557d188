"""The fewest cells of an image whose removal changes the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from vitlab.errors import UserError
from vitlab.explain.grid import (
    choose_grid,
    coarsen_grid,
    make_baseline,
    number_cells,
    replace_cells,
)
from vitlab.explain.inspection import inspecting
from vitlab.explain.methods import check_images, fit_anatomy
from vitlab.schema import ModelBundle

CANDIDATES = 16  # cells tried in each step after the first
# a margin must be so far below 0: the same image in another batch has logits that differ by less
ROUNDING = 1e-5


@dataclass(frozen=True)
class Counterfactual:
    """The removed cells of each image and what the model decides without them.

    removed: (N, rows, columns), bool, all False where nothing was found. before, after: the class
    predicted for the image and for the changed one. images: (N, 3, h, w) float32, changed,
    normalised as the model takes them."""

    removed: np.ndarray = field(repr=False)
    sample_ids: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    found: tuple[bool, ...]
    images: np.ndarray = field(repr=False)

    def table(self) -> pd.DataFrame:
        """One row an image: sample_id, before, after, found, cells (removed), share (of all)."""
        cells = self.removed.sum(axis=(1, 2))
        return pd.DataFrame(
            {
                "sample_id": self.sample_ids,
                "before": self.before,
                "after": self.after,
                "found": self.found,
                "cells": cells,
                "share": cells / self.removed[0].size,
            }
        )

    def describe(self) -> str:
        """For how many images a change was found, and how many patches it takes."""
        table = self.table()
        share = table.loc[table["found"], "share"]
        text = f"For {len(share)} of {len(table)} images a change was found that turns the decision"
        if not len(share):
            return f"{text}."
        return f"{text}; it takes {share.min():.0%} to {share.max():.0%} of the patches."


def find_counterfactual(
    model: ModelBundle,
    images: torch.Tensor,
    sample_ids: Sequence[str] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    baseline: str = "blur",
    max_share: float = 0.5,
    batch_size: int = 16,
) -> Counterfactual:
    """A small set of cells of each image (N, 3, h, w) without which the model decides for another
    class.

    grid: (rows, columns); by default as for occlusion. baseline: what removed cells show.
    max_share: of the cells that may be removed; an image that needs more is reported as not found.

    Finding the smallest set would need all sets to be tried, so the search is greedy. In each step
    the cell that lowers the margin of the decided class most is removed; after the first step only
    the 16 cells that lowered it most when last tried are candidates. Then cells are put back, one
    by one, while the decision stays changed. So each removed cell is needed, given the others, but
    a smaller set of other cells may exist. Source: Martens and Provost 2014,
    10.25300/MISQ/2014/38.1.04; Vermeire et al. 2022, arXiv 2004.07511 (in images)."""
    sample_ids = check_images(images, sample_ids, batch_size)
    if not 0 < max_share <= 1:
        raise UserError(
            f"max_share must be a share of the cells, above 0 and at most 1, not {max_share!r}"
        )
    size = tuple(images.shape[-2:])
    model = fit_anatomy(model, size)
    grid = coarsen_grid(choose_grid(model.anatomy, size)) if grid is None else tuple(grid)
    cells = number_cells(grid, size)
    count = grid[0] * grid[1]
    weight = next(model.module.parameters())
    images = images.detach().to(weight.device, weight.dtype, copy=True)
    blank = make_baseline(baseline, images, model.transform)
    with inspecting(model.module), torch.no_grad():
        decided = _decide(model.module, images, batch_size)
        removed = torch.zeros(len(images), count, dtype=torch.bool)
        for i, before in enumerate(decided):
            search = _Search(model.module, images[i], blank[i : i + 1], cells, before, batch_size)
            found = search.remove_cells(count, int(max_share * count))
            if found is not None:
                removed[i] = search.put_back(found)
        changed = replace_cells(images, blank, removed.to(images.device), cells)
        after = _decide(model.module, changed, batch_size)
    return Counterfactual(
        removed.reshape(-1, *grid).numpy(),
        sample_ids,
        tuple(model.classes[index] for index in decided),
        tuple(model.classes[index] for index in after),
        tuple(removed.any(dim=1).tolist()),
        changed.float().cpu().numpy(),
    )


class _Search:
    """The search for one image (3, h, w) with its baseline (1, 3, h, w)."""

    def __init__(self, module, image, blank, cells, decided, batch_size):
        self.module, self.image, self.blank, self.cells = module, image, blank, cells
        self.decided, self.batch_size = decided, batch_size

    def margins(self, removed: torch.Tensor) -> torch.Tensor:
        """Logit of the decided class minus the largest other one without cells (K, n): (K,). Below
        0 the decision changes.
        """
        margins = []
        for part in removed.split(self.batch_size):
            part = part.to(self.image.device)
            logits = self.module(replace_cells(self.image, self.blank, part, self.cells)).float()
            own = logits[:, self.decided].clone()
            logits[:, self.decided] = -torch.inf
            margins.append(own - logits.amax(dim=1))
        return torch.cat(margins).cpu() + ROUNDING

    def remove_cells(self, count: int, most: int) -> torch.Tensor | None:
        """Cells (n,), bool, whose removal changes the decision, at most so many; None if there are
        none.
        """
        removed = torch.zeros(count, dtype=torch.bool)
        # each cell's margin when it was last tried; those never tried come first
        latest = torch.full((count,), -torch.inf)
        for step in range(most):
            free = (~removed).nonzero()[:, 0]
            tried = free[latest[free].argsort(stable=True)]
            tried = tried if step == 0 else tried[:CANDIDATES]
            trials = removed.repeat(len(tried), 1)
            trials[torch.arange(len(tried)), tried] = True
            latest[tried] = self.margins(trials)
            best = tried[latest[tried].argmin()]
            removed[best] = True
            if latest[best] < 0:
                return removed
        return None

    def put_back(self, removed: torch.Tensor) -> torch.Tensor:
        """Without the removals, one by one, that the new decision does not need: first the one
        without which the margin is lowest.
        """
        while removed.sum() > 1:
            changed = removed.nonzero()[:, 0]
            trials = removed.repeat(len(changed), 1)
            trials[torch.arange(len(changed)), changed] = False
            margins = self.margins(trials)
            best = margins.argmin()
            if not margins[best] < 0:
                break
            removed = trials[best]
        return removed


def _decide(module, images, batch_size) -> list[int]:
    """The predicted class of each image."""
    return [
        index
        for batch in images.split(batch_size)
        for index in module(batch).argmax(dim=1).tolist()
    ]
