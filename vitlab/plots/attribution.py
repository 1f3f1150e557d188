"""Explanations over the images they explain, and the smallest change that changes a prediction."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize

from vitlab.errors import UserError
from vitlab.plots.elements import plot_image_rows
from vitlab.plots.style import (
    DIVERGING,
    PALETTE,
    WIDTH,
    check_table,
    few_ticks,
    new_figure,
    readable,
    show_image,
)
from vitlab.schema import AttributionMap

# percentile that counts as full strength: single pixels of a gradient would otherwise pale all the
# rest
CLIP = 99.0
UNSIGNED = "inferno"
CELLS = 28  # blocks a side, about, of which a map is drawn
# inches: the text width of an HTML page, so that eight panels side by side can still be read
BROAD = 8.0
FEW = 3  # images that each get their own rows of maps
ACROSS = 7  # panels side by side, and counterfactuals
BLOCK = 8  # images side by side where there are many; the others come below them
NAME = 1.05  # inches for the names of the rows
BAR = 0.62  # inches for a colour bar with its label
STRONG = 0.75  # opacity of full strength
PALE = 0.4  # how far an image is bleached under red and blue, which are dark themselves
MARK = PALETTE[3]


def plot_attributions(
    images: np.ndarray, maps: Sequence[AttributionMap], chosen: pd.DataFrame | None = None
) -> np.ndarray:
    """Each image and every method's map over it: an array of axes (N, 1 + methods).

    Up to three images are rows, with the maps beside and below each; more images are columns, in
    blocks of at most eight, with a row for each method. images: (N, h, w, 3) floats in 0..1.
    chosen: a row of predictions for each image, for its title: kind and group (where there are such
    columns), label → prediction, confidence. Signed maps get a two-sided scale with zero in
    the middle. Maps of single pixels would be speckle at the size of a panel, so means over blocks
    are drawn. Methods measure in different units, so each map is shown relative to the 99th
    percentile of its own absolute values."""
    if not len(images) or not len(maps):
        raise UserError(f"{len(images)} images and {len(maps)} maps: give at least one of each")
    for attribution in maps:
        if len(attribution.values) != len(images):
            raise UserError(
                f"{attribution.method}: {len(attribution.values)} maps do not match"
                f" {len(images)} images"
            )
    titles = [""] * len(images) if chosen is None else _title_images(chosen)
    if len(titles) != len(images):
        raise UserError(f"{len(titles)} rows of predictions do not match {len(images)} images")
    kinds = sorted({attribution.signed for attribution in maps})  # one colour bar for each
    lay_out = _lay_out_rows if len(images) <= FEW else _lay_out_columns
    axes, bars = lay_out(images, maps, titles, len(kinds))
    for column, attribution in enumerate(maps, 1):
        values = block_means(attribution.values)
        for row, image in enumerate(images):
            _overlay(axes[row, column], image, relative(values[row]), attribution.signed)
    for ax, image in zip(axes[:, 0], images, strict=True):
        show_image(ax, image)
    for bar, signed in zip(bars, kinds, strict=True):
        unit = "99th percentile of the map"
        label = f"evidence (±1 = {unit})" if signed else f"attribution (1 = {unit})"
        shades = ScalarMappable(Normalize(-1 if signed else 0, 1), overlay_colors(signed))
        ends = {"orientation": "horizontal", "ticks": few_ticks(4)}
        bar.get_figure().colorbar(shades, cax=bar, **ends).set_label(label, fontsize=8)
        # the grey of an image, which shows through where a map is near zero
        bar.set_facecolor("0.7" if signed else "0.5")
    return axes


def _title_images(table: pd.DataFrame) -> list[str]:
    check_table(table, ("label", "pred"), "table of chosen images")
    titles = []
    for row in table.to_dict("records"):
        lines = [str(row[name]) for name in ("kind", "group") if name in row]
        sure = [f"({row['confidence']:.2f})"] if "confidence" in row else []
        titles.append("\n".join([*lines, str(row["label"]), f"→ {row['pred']}", *sure]))
    return titles


def _lay_out_rows(images, maps, titles, bars):
    """Each image with all of its maps in as many rows as they need, the names above the panels."""
    height, width = images.shape[1:3]
    rows = -(-(1 + len(maps)) // ACROSS)
    columns = -(-(1 + len(maps)) // rows)
    panel = 0.95 * WIDTH / max(columns, 3) * height / width
    above, below = _split_page(len(images) * rows * (panel + 0.32) + 0.1, WIDTH)
    grid = above.subplots(len(images) * rows, columns, squeeze=False)
    grid = grid.reshape(len(images), rows * columns)
    for ax in grid[:, 1 + len(maps) :].ravel():
        ax.remove()
    axes = grid[:, : 1 + len(maps)]
    for panels, title in zip(axes, titles, strict=True):
        panels[0].set_ylabel(title, fontsize=6.5)
        for ax, name in zip(panels, _name_maps(maps), strict=True):
            ax.set_title(textwrap.fill(name, 16), fontsize=7.5, pad=3)
    return axes, below.subplots(1, bars, squeeze=False)[0]


def _lay_out_columns(images, maps, titles, bars):
    """Images from left to right, in blocks, methods from top to bottom with their names on the
    left.
    """
    height, width = images.shape[1:3]
    columns, rows = min(BLOCK, len(images)), 1 + len(maps)
    blocks = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    panel = (BROAD - NAME) / max(columns, 6) * height / width
    above, below = _split_page(blocks * (rows * panel + 0.13 * lines + 0.1), BROAD)
    parts = np.ravel(above.subfigures(blocks, 1))
    grid = np.array([part.subplots(rows, columns, squeeze=False) for part in parts])
    for block in grid:
        for ax, name in zip(block[:, 0], _name_maps(maps), strict=True):
            style = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8}
            ax.set_ylabel(textwrap.fill(name, 14), **style)
    axes = grid.swapaxes(1, 2).reshape(blocks * columns, rows)
    for ax in axes[len(images) :].ravel():
        ax.remove()
    axes = axes[: len(images)]
    for ax, title in zip(axes[:, 0], titles, strict=True):
        ax.set_title(title, fontsize=8.5 if columns <= 6 else 7.5)
    return axes, below.subplots(1, bars, squeeze=False)[0]


def _split_page(height: float, width: float):
    """Two parts of a new figure: `height` inches for the pictures, and what the colour bars need
    below them.
    """
    return new_figure(height + BAR, width).subfigures(2, 1, height_ratios=[height, BAR])


def _name_maps(maps) -> list[str]:
    return ["image", *(readable(attribution.method) for attribution in maps)]


def block_means(values: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Maps (N, H, W) as means over square blocks of pixels, about `cells` along the longer side;
    smaller maps as they are.
    """
    height, width = values.shape[1:]
    side = max(1, round(max(height, width) / cells))
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=1), columns, axis=2)
    # blocks at the edge may be smaller
    return sums / np.outer(np.diff([*rows, height]), np.diff([*columns, width]))


def relative(values: np.ndarray) -> np.ndarray:
    """One map (H, W) divided by what counts as full strength, cut to -1..1; zeros where the map is
    blank.
    """
    full = np.percentile(np.abs(values), CLIP)
    return np.clip(values / full, -1, 1) if full > 0 else np.zeros_like(values)


def overlay_colors(signed: bool) -> ListedColormap:
    """The colours of a map over an image: the less a value says, the more of the image shows
    through.
    """
    colors = colormaps[DIVERGING if signed else UNSIGNED](np.linspace(0, 1, 256))  # (256, RGBA)
    colors[:, 3] = STRONG * np.abs(np.linspace(-1 if signed else 0, 1, 256))
    return ListedColormap(colors)


def _overlay(ax: Axes, image: np.ndarray, values: np.ndarray, signed: bool) -> None:
    height, width = image.shape[:2]
    show_image(ax, image.mean(axis=-1) * (1 - PALE * signed) + PALE * signed)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(
        values,
        overlay_colors(signed),
        vmin=-1 if signed else 0,
        vmax=1,
        extent=extent,
        interpolation="bilinear",
    )


def plot_counterfactuals(
    images: np.ndarray,
    changed: np.ndarray,
    removed: np.ndarray,
    before: Sequence[str],
    after: Sequence[str],
    found: Sequence[bool],
    kind: str = "removed",
) -> np.ndarray:
    """Each image, and below it the changed one with its changed patches outlined: an array of axes
    (N, 2).

    images, changed: (N, h, w, 3) floats in 0..1. removed: (N, rows, columns), bool: the patches
    that were changed. before, after: the class predicted for each image and for the changed one.
    found: whether the prediction changed. kind: what was done to the patches, a word for the label
    of the row ("removed", "blurred")."""
    counts = [len(part) for part in (images, changed, removed, before, after, found)]
    if len(set(counts)) > 1 or not counts[0]:
        raise UserError(
            f"images, changed, removed, before, after, found have {', '.join(map(str, counts))}"
            " entries: give as many of each, and at least one"
        )
    per_row = -(-len(images) // -(-len(images) // ACROSS))  # rows of even length, at most ACROSS
    captions = []
    for place, cells in enumerate(removed):
        caption = f"→ {after[place]}\n{cells.sum()} of {cells.size} patches"
        captions.append(caption if found[place] else "no change found")
    rows, titles = [], []
    for start in range(0, len(images), per_row):
        part = slice(start, start + per_row)
        rows += [images[part], changed[part]]
        titles += [before[part], captions[part]]
    names = ["image", f"patches\n{kind}"] * (len(rows) // 2)
    grid = plot_image_rows(rows, names, titles, columns=3)
    pairs = []
    for above, below in zip(grid[::2], grid[1::2], strict=True):
        pairs += zip(above, below, strict=True)
    axes = np.array(pairs[: len(images)])
    for ax, cells in zip(axes[:, 1], removed, strict=True):
        _outline(ax, np.asarray(cells, bool), *images.shape[1:3])
    return axes


def _outline(ax: Axes, cells: np.ndarray, height: int, width: int) -> None:
    """A line around the marked cells (rows, columns)."""
    if not cells.any():
        return
    rows, columns = cells.shape
    pixels = cells[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
    limits = {"xlim": ax.get_xlim(), "ylim": ax.get_ylim()}
    x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
    ax.contour(x, y, np.pad(pixels, 1), [0.5], colors=MARK, linewidths=1.4)
    ax.set(**limits)
