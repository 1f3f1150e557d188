"""The parts of a Vision Transformer: patches, positions, and attention by layer and head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from vitlab.errors import UserError
from vitlab.plots.style import (
    DIVERGING,
    GREY,
    PALETTE,
    SEQUENTIAL,
    TIMES,
    WIDTH,
    draw_heatmap,
    few_ticks,
    hide_ticks,
    image_shape,
    new_axes,
    new_figure,
    panel_grid,
    shared_legend,
    show_image,
)

MARK = PALETTE[3]  # what marks the query on an image
UNITS = {
    "distance": "attention distance (pixels)",
    "entropy": "attention entropy (nats)",
    "similarity": "similarity to before",
}
MAPS = 7  # side by side
NUMBERS = 12  # heads of which the value is written into its cell
SHOWN = 0.05  # false discovery rate among the heads whose change is shown
MANY_LAYERS = 12  # of more layers, every second one or fewer have a number


def plot_patches(image, patch_size: int, shown: int = 12) -> np.ndarray:
    """An image, the same split into patches, and the first `shown` patches of the sequence that
    the transformer reads.

    >>> axes = plot_patches(np.zeros((8, 8)), 4)
    >>> axes[1].get_title()
    '2 × 2 = 4 patches of 4 × 4'
    """
    pixels = np.asarray(image)
    height, width = image_shape(pixels)
    if height % patch_size or width % patch_size:
        raise UserError(
            f"patches of {patch_size} pixels do not fill an image of {height} x {width}: resize or"
            " pad it to a multiple"
        )
    rows, columns = height // patch_size, width // patch_size
    enlarge = -(-16 // patch_size)  # so that the gaps between tiny patches can be narrow
    size, gap = patch_size * enlarge, max(2, patch_size * enlarge // 8)
    pixels = pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    white = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    # (rows, columns, p, p, ...)
    split = pixels.reshape(rows, size, columns, size, *pixels.shape[2:]).swapaxes(1, 2)
    figure = new_figure(4.3)
    axes = figure.subplot_mosaic([["image", "grid"], ["row", "row"]], height_ratios=[4, 1])
    show_image(axes["image"], image)
    axes["image"].set_title(f"image, {height} {TIMES} {width} pixels")
    show_image(axes["grid"], _join_tiles(split, gap, white))
    axes["grid"].set_title(
        f"{rows} {TIMES} {columns} = {rows * columns} patches of {patch_size} {TIMES} {patch_size}"
    )
    shown = min(shown, rows * columns)
    sequence = split.reshape(1, rows * columns, *split.shape[2:])[:, :shown]
    show_image(axes["row"], _join_tiles(sequence, gap, white))
    centers = np.arange(shown) * (size + gap) + (size - 1) / 2
    axes["row"].set_xticks(centers, [str(i + 1) for i in range(shown)])
    axes["row"].tick_params(length=0)
    axes["row"].set_title(f"the sequence, row by row: patches 1 to {shown} of {rows * columns}")
    return np.array(list(axes.values()))


def _join_tiles(tiles: np.ndarray, gap: int, fill: float) -> np.ndarray:
    """Tiles (rows, columns, h, w[, 3]) as one picture with gaps between them."""
    pad = [(0, 0), (0, 0), (0, gap), (0, gap), *[(0, 0)] * (tiles.ndim - 4)]
    padded = np.pad(tiles, pad, constant_values=fill).swapaxes(1, 2)
    rows, height, columns, width = padded.shape[:4]
    return padded.reshape(rows * height, columns * width, *tiles.shape[4:])[:-gap, :-gap]


def plot_position_encodings(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The encodings as a matrix (positions by channels), and how much each position resembles every
    other.

    positions: (T, C); rows before the last grid[0] * grid[1] are prefix tokens and left out. The
    right panel is a grid of small maps: the one in row i, column j holds the cosine similarity of
    position (i, j) to all positions."""
    rows, columns = grid
    positions = np.asarray(positions, float)[-rows * columns :]
    figure = new_figure(3.3)
    left, right = figure.subplots(1, 2)
    limit = np.abs(positions).max()
    scale = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    matrix = left.imshow(positions, aspect="auto", **scale)
    left.set(title="encoding of each position", xlabel="channel", ylabel="position, row by row")
    left.grid(False)
    figure.colorbar(matrix, ax=left, location="bottom", label="value", shrink=0.8)
    unit = positions / np.linalg.norm(positions, axis=1, keepdims=True).clip(1e-12)
    # from (row, column) to (row, column)
    similarity = (unit @ unit.T).reshape(rows, columns, rows, columns)
    scale = {"cmap": SEQUENTIAL, "vmin": similarity.min(), "vmax": 1, "interpolation": "nearest"}
    image = right.imshow(_join_tiles(similarity, 1, np.nan), **scale)
    right.set_title("similarity to all positions")
    hide_ticks(right)
    right.set(xlabel="a small map for each position,\nplaced where the position is")
    figure.colorbar(image, ax=right, location="bottom", label="cosine similarity", shrink=0.8)
    return np.array([left, right])


# Attention over an image


def plot_heads(
    image, attention: np.ndarray, grid: tuple[int, int], query: tuple[int, int] | None = None
) -> np.ndarray:
    """What one token attends to in every head of a layer: the image and a map for each head, axes
    (1 + H,).

    All maps have one scale. attention: (H, T, T), a row for each query. query: row and column of a
    patch; None is the class token, or the middle patch of a model without one. The title of a head
    says how much of its attention goes to the prefix tokens, which the map does not show."""
    attention, prefix = read_attention(attention, grid)
    query = (grid[0] // 2, grid[1] // 2) if query is None and not prefix else query
    weights = attention[:, 0 if query is None else prefix + query[0] * grid[1] + query[1]]
    titles = [f"head {number}" for number in range(1, 1 + len(weights))]
    label = "attention weight"
    if prefix:
        shares = weights[:, :prefix].sum(axis=1)
        titles = [f"{title}\n({share:.0%})" for title, share in zip(titles, shares, strict=True)]
        label += f"\n(in brackets: to the\n{'class token' if prefix == 1 else 'prefix tokens'})"
    maps = weights[:, prefix:].reshape(-1, *grid)
    axes = draw_attention_maps(image, maps, [query] * len(maps), titles, label)
    axes[0].set_title(f"query:\n{'class token' if query is None else 'framed patch'}", fontsize=7)
    return axes


def read_attention(attention: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The attention (N, T, T), and the number of its prefix tokens. UserError where it does not fit
    the grid.
    """
    attention = np.asarray(attention, np.float32)
    if attention.ndim != 3 or attention.shape[1] != attention.shape[2] or not attention.size:
        raise UserError(
            "attention must be (N, T, T): the heads of one layer, or layers with their heads"
            f" averaged, for one image; got {attention.shape}"
        )
    prefix = attention.shape[1] - grid[0] * grid[1]
    if prefix < 0:
        raise UserError(
            f"attention over {attention.shape[1]} tokens does not fit a grid of {grid[0]} x"
            f" {grid[1]} patches"
        )
    return attention, prefix


def draw_attention_maps(
    image,
    maps: np.ndarray,
    queries: Sequence[tuple[int, int] | None],
    titles: Sequence[str],
    label: str,
) -> np.ndarray:
    """The image with its queries framed, and a map (rows, columns) of each beside it on one scale:
    axes (1 + N,).
    """
    height, width = image_shape(image)
    count, grid = 1 + len(maps), maps.shape[1:]
    cell = height / grid[0], width / grid[1]
    rows = -(-count // MAPS)
    columns = -(-count // rows)  # rows of even length
    side = 0.84 * WIDTH / max(columns, 2.6)
    axes = panel_grid(count, columns, side * height / width + 0.35)
    show_image(axes[0], image)
    for query in dict.fromkeys(queries):
        if query is not None:
            outline_cell(axes[0], query, *cell)
    scale = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": maps.max(), "interpolation": "nearest"}
    for ax, weights, query, title in zip(axes[1:], maps, queries, titles, strict=True):
        shown = ax.imshow(weights, aspect=cell[0] / cell[1], **scale)
        hide_ticks(ax)
        ax.set_title(title, fontsize=7, pad=3)
        if query is not None:
            outline_cell(ax, query, 1, 1)
    bar = {"shrink": 0.9, "aspect": 12 * rows, "ticks": few_ticks(4)}
    axes[0].figure.colorbar(shown, ax=list(axes), **bar).set_label(label, fontsize=7.5)
    return axes


def outline_cell(
    ax: Axes,
    cell: tuple[float, float],
    height: float,
    width: float,
    color: str = MARK,
    linewidth: float = 1.6,
) -> None:
    """A frame around a cell (row, column) of a grid whose cells have this height and width."""
    # imshow's first pixel is centred on 0
    corner = (cell[1] * width - 0.5, cell[0] * height - 0.5)
    look = {"fill": False, "edgecolor": color, "linewidth": linewidth}
    ax.add_patch(Rectangle(corner, width, height, **look))


# Attention by layer and head


def plot_attention_distance(
    table: pd.DataFrame, uniform: dict[str, float] | None = None
) -> np.ndarray:
    """How far heads look, and how widely they spread their attention, by depth: an array of axes,
    distance and entropy.

    A dot with its interval for each head, a line through the means of the blocks. table: columns
    layer, head, distance (pixels), entropy (nats), and distance_low, distance_high and so on.
    uniform: distance and entropy of attention spread evenly over all patches, a dotted line."""
    axes = panel_grid(2, 2, 2.7)
    mean = {"color": PALETTE[1], "marker": "_", "markersize": 10, "markeredgewidth": 2}
    for ax, measure in zip(axes, ("distance", "entropy"), strict=True):
        x = _place_heads(ax, table, "head", MANY_LAYERS)
        ax.plot(x, table[measure], "o", color=PALETTE[0], alpha=0.6, markersize=4, label="a head")
        ends = table[f"{measure}_low"], table[f"{measure}_high"]
        ax.vlines(x, *ends, color=PALETTE[0], alpha=0.5, linewidth=0.8)
        means = table.groupby(table["layer"] + 1)[measure].mean()
        ax.plot(means, label="mean of the heads", **mean)
        if uniform and measure in uniform:
            even = {"color": GREY, "linestyle": ":", "linewidth": 1.2}
            ax.axhline(uniform[measure], label="even attention", **even)
        ax.set(ylabel=UNITS[measure], ylim=(0, None))
    shared_legend(axes, 3)
    return axes


def plot_attention_change(table: pd.DataFrame) -> np.ndarray:
    """What fine-tuning changed in the attention of each head, a panel for each measure: an array of
    axes (measures,).

    A hollow dot is a head before, the filled one it is joined to the same head after; blocks from
    left to right, the heads of a block in the order of their value before. The similarity to the
    weights before has only filled dots. table: columns layer, head, measure ("distance", "entropy",
    "similarity"), before, after, p_fdr: the line that joins two dots is dark where the change is
    shown (p_fdr below 0.05) and light where it is not."""
    measures = list(table["measure"].unique())
    axes = panel_grid(len(measures), 3, 2.5)
    for ax, measure in zip(axes, measures, strict=True):
        part = table[table["measure"] == measure]
        alone = measure == "similarity"
        x = _place_heads(ax, part, "after" if alone else "before", MANY_LAYERS // 2)
        if not alone:
            colors = np.where(part["p_fdr"] < SHOWN, "0.3", "0.8")
            ax.vlines(x, part["before"], part["after"], color=colors, linewidth=1, zorder=1)
            hollow = {"color": PALETTE[1], "markerfacecolor": "white", "markersize": 3.5}
            ax.plot(x, part["before"], "o", label="before fine-tuning", **hollow)
        ax.plot(x, part["after"], "o", color=PALETTE[0], markersize=3.5, label="after")
        ax.set_title(UNITS[measure], fontsize=8)
        if alone:
            ax.set_ylim(min(0, part["after"].min() - 0.05), 1.05)
        ax.yaxis.set_major_locator(few_ticks(5))
    shared_legend(axes, 2)
    return axes


def plot_head_ablation(table: pd.DataFrame, label: str, ax: Axes | None = None) -> Axes:
    """What switching off each head (columns) of each block (rows) changes, on a scale with zero in
    the middle.

    Heads whose change is shown (p_fdr below 0.05) have a frame. table: columns layer, head, change,
    p_fdr (corrected for the number of heads). label: what changes, and in which unit."""
    grid = table.pivot(index="layer", columns="head", values="change")
    limit = np.nanmax(np.abs(grid.to_numpy())) or 1
    decimals = max(0, 1 - math.floor(math.log10(limit)))
    words = (
        grid.map(f"{{:+.{decimals}f}}".format) if grid.shape[1] <= NUMBERS else grid.map("".format)
    )
    ax = new_axes(ax, max(2, 1.1 + 0.27 * len(grid)), min(WIDTH, 2.4 + 0.4 * grid.shape[1]))
    scale = {"vmin": -limit, "vmax": limit, "annot_kws": {"fontsize": 6.5}}
    draw_heatmap(ax, grid, words, label, DIVERGING, **scale)
    sure = table[table["p_fdr"] < SHOWN]
    rows, columns = grid.index.get_indexer(sure["layer"]), grid.columns.get_indexer(sure["head"])
    for row, column in zip(rows, columns, strict=True):
        outline_cell(ax, (row + 0.5, column + 0.5), 1, 1, color="black")
    if len(sure):
        square = {"marker": "s", "markersize": 7, "markeredgecolor": "black", "linestyle": ""}
        ax.plot([], [], **square, color="none", label="change shown (5 % false discoveries)")
        shared_legend([ax], 1)
    ax.set(xlabel="head", ylabel="block")
    ax.set_xticks(np.arange(grid.shape[1]) + 0.5, [str(head + 1) for head in grid.columns])
    ax.set_yticks(np.arange(len(grid)) + 0.5, [str(layer + 1) for layer in grid.index])
    return ax


def _place_heads(ax: Axes, table: pd.DataFrame, by: str, most: int) -> pd.Series:
    """Where each head lies: those of a block side by side, in the order of the column `by`, around
    the block's number from 1. Labels the axis, with at most so many numbers.
    """
    blocks = table["layer"] + 1
    order = table.groupby("layer")[by].rank(method="first") - 1
    count = table.groupby("layer")["head"].transform("count")
    numbers = sorted(blocks.unique())
    numbers = numbers[:: -(-len(numbers) // most)]
    ax.set_xticks(numbers, map(str, numbers))
    ax.set_xlim(blocks.min() - 0.5, blocks.max() + 0.5)
    ax.set_xlabel("block")
    ax.grid(axis="y")
    return blocks + 0.6 * (order - (count - 1) / 2) / count.clip(lower=2)
