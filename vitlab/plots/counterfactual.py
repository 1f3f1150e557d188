"""The smallest change that turns a decision, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from vitlab.errors import UserError
from vitlab.plots.style import GREY, PALETTE, WIDTH, new_figure, show_image

MARK = PALETTE[3]
ACROSS = 6  # images side by side


def plot_counterfactuals(
    images: np.ndarray,
    changed: np.ndarray,
    removed: np.ndarray,
    before: Sequence[str],
    after: Sequence[str],
    found: Sequence[bool] | None = None,
    kind: str = "removed",
) -> np.ndarray:
    """Each image, and below it the changed one with its changed cells outlined: an array of axes (N, 2).

    images, changed: (N, h, w, 3) floats in 0..1. removed: (N, rows, columns), bool: the cells that were changed. before, after:
    the class predicted for each image and for the changed one. found: whether the decision changed; by default, where after
    differs from before. kind: what was done to the cells, a word for the label of the row ("removed", "exchanged").
    """
    found = np.asarray(before) != np.asarray(after) if found is None else np.asarray(found, bool)
    counts = [len(part) for part in (images, changed, removed, before, after, found)]
    if len(set(counts)) > 1 or not counts[0]:
        raise UserError(
            f"images, changed, removed, before, after, found have {', '.join(map(str, counts))} entries: "
            "give as many of each, and at least one"
        )
    height, width = images.shape[1:3]
    blocks = -(-len(images) // ACROSS)
    columns = -(-len(images) // blocks)
    panel = 0.96 * WIDTH / max(columns, 3) * height / width
    figure = new_figure(blocks * (2 * panel + 0.72))
    grid = figure.subplots(2 * blocks, columns, squeeze=False)  # image above, changed image below
    axes = grid.reshape(blocks, 2, columns).swapaxes(1, 2).reshape(-1, 2)
    for ax in axes[len(images) :].ravel():
        ax.remove()
    axes = axes[: len(images)]
    for i, (first, second) in enumerate(axes):
        show_image(first, images[i])
        show_image(second, changed[i])
        if removed[i].any():
            _outline(second, np.asarray(removed[i], bool), height, width)
        first.set_title(f"{before[i]}", fontsize=8)
        caption = _caption(before[i], after[i], found[i], removed[i])
        second.set_xlabel(caption, fontsize=7, color="black" if found[i] else GREY)
    for block in range(0, len(images), columns):
        axes[block, 0].set_ylabel("image", fontsize=8)
        axes[block, 1].set_ylabel(f"patches {kind}", fontsize=8)
    return axes


def _caption(before: str, after: str, found: bool, removed: np.ndarray) -> str:
    if not found:
        return f"{before}\nno change found\nthat turns it"
    return f"{before}\n→ {after} after\n{np.sum(removed)} of {removed.size} patches"


def _outline(ax: Axes, cells: np.ndarray, height: int, width: int) -> None:
    """A line along the border between marked and other cells (rows, columns)."""
    rows, columns = cells.shape
    padded = np.pad(cells, 1)
    lines = []
    for row, column in np.argwhere(padded[:, 1:] != padded[:, :-1]):  # upright: between column and its right neighbour
        lines.append([(column, row - 1), (column, row)])
    for row, column in np.argwhere(padded[1:] != padded[:-1]):
        lines.append([(column - 1, row), (column, row)])
    scale = (width / columns, height / rows)
    ax.add_collection(LineCollection(np.array(lines) * scale - 0.5, colors=MARK, linewidths=1.4, capstyle="projecting"))
