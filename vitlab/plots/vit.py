"""The parts of a Vision Transformer: patches, positions, one attention head."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from vitlab.errors import UserError
from vitlab.plots.style import (
    DIVERGING,
    PALETTE,
    SEQUENTIAL,
    TIMES,
    hide_ticks,
    image_shape,
    new_figure,
    show_image,
)

MARK = PALETTE[3]  # what marks the query on an image


def plot_patches(image, patch_size: int, shown: int = 12) -> np.ndarray:
    """An image, the same split into patches, and the first `shown` patches of the sequence that
    the transformer reads.
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
    show_image(axes["grid"], _spread(split, gap, white))
    axes["grid"].set_title(
        f"{rows} {TIMES} {columns} = {rows * columns} patches of {patch_size} {TIMES} {patch_size}"
    )
    shown = min(shown, rows * columns)
    sequence = split.reshape(1, rows * columns, *split.shape[2:])[:, :shown]
    show_image(axes["row"], _spread(sequence, gap, white))
    centers = np.arange(shown) * (size + gap) + (size - 1) / 2
    axes["row"].set_xticks(centers, [str(i + 1) for i in range(shown)])
    axes["row"].tick_params(length=0)
    axes["row"].set_title(f"the sequence, row by row: patches 1 to {shown} of {rows * columns}")
    return np.array(list(axes.values()))


def _spread(tiles: np.ndarray, gap: int, fill: float) -> np.ndarray:
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
    positions, (rows, columns) = np.asarray(positions, float), grid
    if positions.ndim != 2 or len(positions) < rows * columns:
        raise UserError(
            f"positions {positions.shape} do not cover a grid of {rows} x {columns}: expected"
            f" (T, C) with T >= {rows * columns}"
        )
    positions = positions[-rows * columns :]
    figure = new_figure(3.3)
    left, right = figure.subplots(1, 2)
    limit = np.abs(positions).max()
    matrix = left.imshow(
        positions, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    left.set(title="encoding of each position", xlabel="channel", ylabel="position, row by row")
    left.grid(False)
    figure.colorbar(matrix, ax=left, location="bottom", label="value", shrink=0.8)
    unit = positions / np.linalg.norm(positions, axis=1, keepdims=True).clip(1e-12)
    # from (row, column) to (row, column)
    similarity = (unit @ unit.T).reshape(rows, columns, rows, columns)
    mosaic = _spread(similarity, 1, np.nan)
    image = right.imshow(
        mosaic, cmap=SEQUENTIAL, vmin=similarity.min(), vmax=1, interpolation="nearest"
    )
    right.set_title("similarity to all positions")
    hide_ticks(right)
    right.set(xlabel="a small map for each position,\nplaced where the position is")
    figure.colorbar(image, ax=right, location="bottom", label="cosine similarity", shrink=0.8)
    return np.array([left, right])


def plot_attention_head(
    image, attention: np.ndarray, grid: tuple[int, int], query: tuple[int, int] | None = None
) -> np.ndarray:
    """What one token attends to in one attention head: the query marked on the image, its attention
    over the grid beside it.

    attention: (T, T), a row for each query. query: row and column of a patch; None is the first
    prefix token (the class token), or the middle patch of a model without one."""
    weights, prefix, query = read_attention(attention, grid, query)
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2)
    show_image(left, image)
    shown = draw_attention(right, weights[prefix:], grid, image, query)
    place = "the class token"
    if query is not None:
        height, width = image_shape(image)
        outline_cell(left, query, height / grid[0], width / grid[1])
        place = f"patch in row {query[0] + 1}, column {query[1] + 1}"
    left.set_title(f"query: {place}")
    title = "attention to each patch"
    if prefix:
        title += f"; to the {name_prefix(prefix)}: {weights[:prefix].sum():.0%}"
    right.set_title(title)
    figure.colorbar(shown, ax=right, label="attention weight")
    return np.array([left, right])


def draw_attention(
    ax: Axes,
    weights: np.ndarray,
    grid: tuple[int, int],
    image,
    query: tuple[int, int] | None,
    limit: float | None = None,
) -> AxesImage:
    """The weights of the patches as a map in the shape of the image, the query framed. limit: the
    weight of the brightest colour.
    """
    height, width = image_shape(image)
    aspect = height / grid[0] * grid[1] / width
    style = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": limit, "interpolation": "nearest"}
    shown = ax.imshow(np.reshape(weights, grid), aspect=aspect, **style)
    hide_ticks(ax)
    if query is not None:
        outline_cell(ax, query, 1, 1)
    return shown


def name_prefix(count: int) -> str:
    return "class token" if count == 1 else "prefix tokens"


def read_attention(
    attention: np.ndarray, grid: tuple[int, int], query: tuple[int, int] | None
) -> tuple[np.ndarray, int, tuple[int, int] | None]:
    """A query's row of (T, T), the number of prefix tokens, and the query: None for the class
    token, else row and column.

    Without a prefix token and a query, it is the patch in the middle.
    """
    attention = np.asarray(attention, float)
    tokens = attention.shape[0]
    if attention.shape != (tokens, tokens):
        raise UserError(
            f"attention must be (T, T) of one head and one image, got {attention.shape}"
        )
    rows, columns = grid
    prefix = tokens - rows * columns
    if prefix < 0:
        raise UserError(
            f"attention over {tokens} tokens does not cover a grid of {rows} x {columns}"
        )
    if query is None and prefix == 0:
        query = (rows // 2, columns // 2)
    if query is not None and not (0 <= query[0] < rows and 0 <= query[1] < columns):
        raise UserError(
            f"the query {query} lies outside the grid of {rows} x {columns}; rows and columns count"
            " from 0"
        )
    return attention[0 if query is None else prefix + query[0] * columns + query[1]], prefix, query


def outline_cell(
    ax: Axes,
    cell: tuple[float, float],
    height: float,
    width: float,
    color: str = MARK,
    linewidth: float = 2,
    inside: float = 0,
) -> None:
    """A frame around a cell (row, column) of a grid whose cells have this height and width;
    `inside` moves it in by as much.
    """
    # imshow's first pixel is centred on 0
    corner = (cell[1] * width - 0.5 + inside, cell[0] * height - 0.5 + inside)
    size = (width - 2 * inside, height - 2 * inside)
    ax.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=linewidth))
