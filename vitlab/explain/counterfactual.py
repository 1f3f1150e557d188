"""The fewest patches of an image whose removal changes the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vitlab.errors import UserError
from vitlab.explain.inspection import inspecting
from vitlab.explain.methods import check_images, fit_anatomy
from vitlab.explain.removal import (
    choose_grid,
    coarsen_grid,
    make_baseline,
    number_cells,
    replace_cells,
)
from vitlab.schema import ModelBundle

BATCH = 16  # changed images at once
CANDIDATES = 16  # patches tried in each step after the first
# a margin must be so far below 0: the same image in another batch has logits that differ by less
ROUNDING = 1e-5


@dataclass(frozen=True)
class Counterfactual:
    """The removed patches of each image and what the model decides without them.

    removed: (N, rows, columns), bool, all False where nothing was found. before, after: the class
    predicted for the image and for the changed one. images: (N, 3, h, w) float32, changed,
    normalised as the model takes them."""

    removed: np.ndarray = field(repr=False)
    sample_ids: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    found: tuple[bool, ...]
    images: np.ndarray = field(repr=False)

    def describe(self) -> str:
        """For how many images a change was found, and how many patches it takes."""
        share = self.removed.mean(axis=(1, 2))[list(self.found)]
        text = f"For {len(share)} of {len(self.found)} images a change was found that turns the"
        text += " decision"
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
) -> Counterfactual:
    """A small set of patches of each image (N, 3, h, w) without which the model decides for another
    class.

    grid: (rows, columns); by default as for occlusion. baseline: what removed patches show.
    max_share: of the patches that may be removed; an image that needs more is reported as not
    found.

    Finding the smallest set would need all sets to be tried, so the search is greedy. In each step
    the patch that lowers the margin of the decided class most is removed; after the first step only
    the 16 patches that lowered it most when last tried are candidates. Then patches are put back,
    one by one, while the decision stays changed. So each removed patch is needed, given the others,
    but a smaller set of other patches may exist. Source: Martens and Provost 2014,
    10.25300/MISQ/2014/38.1.04; Vermeire et al. 2022, arXiv 2004.07511 (in images)."""
    sample_ids = check_images(images, sample_ids)
    if not 0 < max_share <= 1:
        raise UserError(f"max_share must be above 0 and at most 1, not {max_share!r}")
    size = tuple(images.shape[-2:])
    model = fit_anatomy(model, size)
    grid = coarsen_grid(choose_grid(model.anatomy, size)) if grid is None else tuple(grid)
    cells, count = number_cells(grid, size), grid[0] * grid[1]
    weight = next(model.module.parameters())
    images = images.detach().to(weight.device, weight.dtype, copy=True)
    blank = make_baseline(baseline, images, model.transform)
    with inspecting(model.module), torch.no_grad():
        decided = _decide(model.module, images)
        removed = torch.zeros(len(images), count, dtype=torch.bool)
        for i, before in enumerate(decided):
            search = _Search(model.module, images[i], blank[i : i + 1], cells, before)
            removed[i] = search.remove(count, int(max_share * count))
        changed = replace_cells(images, blank, removed.to(images.device), cells)
        after = _decide(model.module, changed)
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

    def __init__(self, module, image, blank, cells, decided):
        self.module, self.image, self.blank, self.cells = module, image, blank, cells
        self.decided = decided

    def margins(self, removed: torch.Tensor) -> torch.Tensor:
        """Logit of the decided class minus the largest other one without patches (K, n): (K,).
        Below 0 the decision changes.
        """
        margins = []
        for part in removed.split(BATCH):
            part = part.to(self.image.device)
            logits = self.module(replace_cells(self.image, self.blank, part, self.cells)).float()
            own = logits[:, self.decided].clone()
            logits[:, self.decided] = -torch.inf
            margins.append(own - logits.amax(dim=1))
        return torch.cat(margins).cpu() + ROUNDING

    def remove(self, count: int, most: int) -> torch.Tensor:
        """Patches (n,), bool, whose removal changes the decision, at most so many; all False if
        none are found.
        """
        removed = torch.zeros(count, dtype=torch.bool)
        # each patch's margin when it was last tried; those never tried come first
        latest = torch.full((count,), -torch.inf)
        for step in range(most):
            free = (~removed).nonzero()[:, 0]
            tried = free[latest[free].argsort(stable=True)]
            tried = tried if step == 0 else tried[:CANDIDATES]
            latest[tried] = self.margins(self._flip(removed, tried))
            best = tried[latest[tried].argmin()]
            removed[best] = True
            if latest[best] < 0:
                return self.put_back(removed)
        return torch.zeros_like(removed)

    def put_back(self, removed: torch.Tensor) -> torch.Tensor:
        """Without the removals, one by one, that the new decision does not need: first the one
        without which the margin is lowest.
        """
        while removed.sum() > 1:
            trials = self._flip(removed, removed.nonzero()[:, 0])
            margins = self.margins(trials)
            best = margins.argmin()
            if not margins[best] < 0:
                break
            removed = trials[best]
        return removed

    @staticmethod
    def _flip(removed: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Copies of removed (n,), each with one of the patches (K,) flipped: (K, n)."""
        trials = removed.repeat(len(patches), 1)
        trials[torch.arange(len(patches)), patches] ^= True
        return trials


def _decide(module, images) -> list[int]:
    """The predicted class of each image."""
    return torch.cat([module(batch).argmax(dim=1) for batch in images.split(BATCH)]).tolist()
