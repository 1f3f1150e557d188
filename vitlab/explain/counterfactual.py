"""The fewest cells of an image that, taken away or exchanged, change the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import nn

from vitlab.errors import UserError
from vitlab.explain.baselines import make_baseline
from vitlab.explain.grid import choose_grid, coarsen_grid, number_cells, pool_cells, replace_cells
from vitlab.explain.inspection import check_count, inspecting
from vitlab.explain.methods import check_images, fit_anatomy
from vitlab.registry import unknown
from vitlab.schema import AttributionMap, ModelBundle

KINDS = ("remove", "swap")
NEAREST = ("features", "pixels")
# a margin must be so far below 0: the same image in another batch has logits that differ by less
ROUNDING = 1e-5
LADDER = 1.5  # sizes tried along a ranking, before bisection: each so many times the one before


@dataclass(frozen=True)
class Counterfactual:
    """One changed image for each: the cells that were taken away or exchanged, and what the model
    then decides.

    removed: (N, rows, columns), bool, without a True where nothing was found. before, after: the
    class predicted for the image and for the changed one, the same where nothing was found. images:
    (N, 3, h, w) float32, changed, normalised as the model takes them. donors: where cells were
    exchanged, the sample_id of each image's donor ("" where there was none); else empty."""

    removed: np.ndarray = field(repr=False)
    sample_ids: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    found: tuple[bool, ...]
    images: np.ndarray = field(repr=False)
    kind: str = "remove"
    donors: tuple[str, ...] = ()

    def table(self) -> pd.DataFrame:
        """One row an image: sample_id, before, after, found, cells (how many were changed), share
        (of all cells), and donor.
        """
        cells = self.removed.sum(axis=(1, 2))
        rows = {
            "sample_id": self.sample_ids,
            "before": self.before,
            "after": self.after,
            "found": self.found,
            "cells": cells,
            "share": cells / self.removed[0].size,
        }
        return pd.DataFrame({**rows, "donor": self.donors} if self.donors else rows)


def find_counterfactual(
    model: ModelBundle,
    images: torch.Tensor,
    sample_ids: Sequence[str] | None = None,
    *,
    kind: str = "remove",
    donors: torch.Tensor | None = None,
    donor_ids: Sequence[str] | None = None,
    nearest: str = "features",
    grid: tuple[int, int] | None = None,
    baseline: str = "blur",
    order: AttributionMap | None = None,
    candidates: int | None = 16,
    max_share: float = 0.5,
    batch_size: int = 16,
) -> Counterfactual:
    """The few cells of each image (N, 3, h, w) without which the model decides for another class,
    or with those of a donor.

    kind: `remove` shows the baseline in the cells; `swap` the same places of the nearest of the
    `donors` (M, 3, h, w) that the model puts into another class, nearest in the `features` that the
    classifier reads, or in `pixels`. grid: (rows, columns); by default as for the methods that take
    cells away. max_share: of the cells that may be changed; an image that takes more is reported as
    not found.

    The smallest set is a problem that only trying all sets would solve. The search is greedy: cell
    by cell, the one that lowers the margin of the decided class most. Then cells are put back, one
    by one, while the decision stays changed. So every cell that is left is needed, given the
    others, but a smaller set of other cells may exist. Two ways bound the time: after the first
    step only the `candidates` that lowered the margin most when last tried (None: all of them); or,
    with `order`, an attribution map of the same images, whose ranking of the cells is followed as
    far as it takes, found by bisection.

    Source: Martens and Provost 2014, 10.25300/MISQ/2014/38.1.04 (removing); Vermeire et al. 2022,
    arXiv 2004.07511 (in images); Goyal et al. 2019, arXiv 1904.07451 (exchanging, which there may
    move a part to another place; here it stays where it was)."""
    sample_ids = check_images(images, sample_ids, batch_size)
    _check_options(kind, nearest, candidates, max_share)
    _check_order(order, images)
    if (kind == "swap") != (donors is not None):
        raise UserError(
            "kind='swap' takes cells from donors, images (M, 3, h, w) of several classes; give both"
            " or neither"
        )
    if donors is not None and donor_ids is not None and len(donor_ids) != len(donors):
        raise UserError(
            f"{len(donor_ids)} donor_ids for {len(donors)} donors; give one for each, in their"
            " order"
        )
    size = tuple(images.shape[-2:])
    model = fit_anatomy(model, size)
    grid = coarsen_grid(choose_grid(model.anatomy, size)) if grid is None else tuple(grid)
    cells = number_cells(grid, size)
    weight = next(model.module.parameters())
    images = images.detach().to(weight.device, weight.dtype, copy=True)
    ranking = (
        None
        if order is None
        else pool_cells(torch.from_numpy(order.values), cells).argsort(dim=1, descending=True)
    )
    most = int(max_share * grid[0] * grid[1])
    with inspecting(model.module), torch.no_grad():
        decided, features = _run(model.module, images, batch_size, nearest)
        if kind == "swap":
            chosen, filling = _choose_donors(
                model, images, decided, features, donors, batch_size, nearest
            )
        removed = []
        for i in range(len(images)):
            other = (
                make_baseline(baseline, images[i : i + 1], model.transform)
                if kind == "remove"
                else filling[i]
            )
            search = (
                None
                if other is None
                else _Search(
                    model.module, images[i : i + 1], other, cells, int(decided[i]), batch_size
                )
            )
            removed.append(
                _search_cells(
                    search, grid, most, candidates, None if ranking is None else ranking[i]
                )
            )
            if removed[i].any():
                images[i] = search.change(removed[i][None])[0]
        removed = torch.stack(removed)
        after, _ = _run(model.module, images, batch_size, None)
    if kind == "swap":
        names = tuple(map(str, range(len(donors)) if donor_ids is None else donor_ids))
        chosen = tuple(names[index] if index is not None else "" for index in chosen)
    return Counterfactual(
        removed.reshape(-1, *grid).numpy(),
        sample_ids,
        tuple(model.classes[index] for index in decided),
        tuple(model.classes[index] for index in after),
        tuple(removed.any(dim=1).tolist()),
        images.float().cpu().numpy(),
        kind,
        chosen if kind == "swap" else (),
    )


class _Search:
    """One image, what its cells can be exchanged for, and how the margin of the decided class then
    stands.
    """

    def __init__(self, module, image, other, cells, decided, batch_size):
        self.module, self.image, self.other, self.cells = (
            module,
            image,
            other,
            cells.to(image.device),
        )
        self.decided, self.batch_size = decided, batch_size

    def change(self, removed):
        return replace_cells(self.image, self.other, removed.to(self.image.device), self.cells)

    def margins(self, removed: torch.Tensor) -> torch.Tensor:
        """Logit of the decided class minus the largest other one, (K,), with cells (K, n) changed;
        below 0 it is overruled.
        """
        margins = []
        for part in removed.split(self.batch_size):
            logits = self.module(self.change(part)).float()
            own = logits[:, self.decided].clone()
            logits[:, self.decided] = -torch.inf
            margins.append(own - logits.amax(dim=1))
        return torch.cat(margins).cpu() + ROUNDING


def _search_cells(search, grid, most, candidates, ranking) -> torch.Tensor:
    """The cells (n,), bool, that change the decision, none of which can be put back; all False
    where none were found.
    """
    count = grid[0] * grid[1]
    none = torch.zeros(count, dtype=torch.bool)
    if search is None or not most:
        return none
    found = (
        _add_cells(search, count, most, candidates)
        if ranking is None
        else _follow_ranking(search, ranking, most)
    )
    return none if found is None else _put_back(search, found)


def _add_cells(search, count, most, candidates) -> torch.Tensor | None:
    """Greedy: to the cells changed so far, the one that lowers the margin most."""
    removed = torch.zeros(count, dtype=torch.bool)
    # each cell's margin when it was last tried; those never tried come first
    latest = torch.full((count,), -torch.inf)
    for step in range(most):
        free = (~removed).nonzero()[:, 0]
        tried = free[latest[free].argsort(stable=True)][: None if step == 0 else candidates]
        trials = removed.repeat(len(tried), 1)
        trials[torch.arange(len(tried)), tried] = True
        latest[tried] = search.margins(trials)
        best = tried[latest[tried].argmin()]
        removed[best] = True
        if latest[best] < 0:
            return removed
    return None


def _follow_ranking(search, ranking, most) -> torch.Tensor | None:
    """The first cells of the ranking that change the decision; between two sizes of the ladder,
    found by bisection.
    """
    # row k: the first k of the ranking
    sets = torch.zeros(most + 1, len(ranking), dtype=torch.bool)
    for size in range(1, most + 1):
        sets[size:, ranking[size - 1]] = True
    ladder = [1]
    while ladder[-1] < most:
        ladder.append(min(most, max(ladder[-1] + 1, int(LADDER * ladder[-1]))))
    changed = (search.margins(sets[ladder]) < 0).nonzero()[:, 0]
    if not len(changed):
        return None
    first = int(changed[0])
    # not changed at low, changed at high
    low, high = (ladder[first - 1] if first else 0), ladder[first]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if search.margins(sets[middle : middle + 1]) < 0 else (middle, high)
        )
    return sets[high]


def _put_back(search, removed: torch.Tensor) -> torch.Tensor:
    """Undo changes, one by one, that the new decision does not need: first the one without which it
    is most certain.
    """
    while removed.sum() > 1:
        changed = removed.nonzero()[:, 0]
        trials = removed.repeat(len(changed), 1)
        trials[torch.arange(len(changed)), changed] = False
        margins = search.margins(trials)
        best = margins.argmin()
        if not margins[best] < 0:
            break
        removed = trials[best]
    return removed


def _choose_donors(model, images, decided, features, donors, batch_size, nearest):
    """For each image its donor's index and the donor itself, (1, 3, h, w); None and None where all
    are of the image's class.
    """
    if donors.shape[1:] != images.shape[1:] or not len(donors):
        expected = ", ".join(map(str, images.shape[1:]))
        raise UserError(
            f"donors must be images (M, {expected}), at least one, not {tuple(donors.shape)}"
        )
    donors = donors.detach().to(images)
    classes, theirs = _run(model.module, donors, batch_size, nearest)
    distance = torch.cdist(features, theirs)  # (N, M)
    distance[decided[:, None] == classes[None]] = torch.inf
    chosen = [int(row.argmin()) if row.isfinite().any() else None for row in distance]
    return chosen, [None if index is None else donors[index : index + 1] for index in chosen]


def _run(module, images, batch_size, space) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Predicted class of each image (N,), and where it lies: its pixels, or what the classifier's
    last layer reads: (N, F).
    """
    leaves = [part for part in module.modules() if list(part.parameters(recurse=False))]
    read: list[torch.Tensor] = []

    def keep(part: nn.Module, inputs, output):
        read[:] = [inputs[0].flatten(1)]

    classes, places = [], []
    handles = [part.register_forward_hook(keep) for part in leaves] if space == "features" else []
    try:
        for batch in images.split(batch_size):
            classes.append(module(batch).argmax(dim=1))
            places.append(read[0] if space == "features" else batch.flatten(1))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(classes).cpu(), torch.cat(places).float().cpu() if space else None


def _check_options(kind, nearest, candidates, max_share) -> None:
    for what, value, choices in (("kind", kind, KINDS), ("nearest", nearest, NEAREST)):
        if value not in choices:
            raise UserError(unknown(what, value, list(choices)))
    if candidates is not None:
        check_count("candidates", candidates)
    if not 0 < max_share <= 1:
        raise UserError(
            f"max_share must be a share of the cells, above 0 and at most 1, not {max_share!r}"
        )


def _check_order(order, images) -> None:
    expected = (len(images), *images.shape[-2:])
    if order is not None and order.values.shape != expected:
        raise UserError(
            f"order must be the map of these images, with values {expected}, not"
            f" {order.values.shape}; explain(model, images, method) makes one"
        )
