"""Images in rows, and what is drawn over them: samples, mistakes, corruptions and attacks;
explanations, and the smallest change that changes a prediction.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Patch

from vitlab.errors import UserError
from vitlab.extremes import MAX_SHOWN
from vitlab.plots.style import (
    ARROW,
    DIVERGING,
    PALETTE,
    WIDTH,
    class_colors,
    count_columns,
    empty_axes,
    few_ticks,
    frame,
    image_shape,
    new_figure,
    readable,
    shorten,
    show_image,
)
from vitlab.schema import AttributionMap

LABEL_WIDTH = 0.8  # inches, for the name of a row of images
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
UNIT = "99th percentile of the map"
UNREADABLE = np.full((8, 8), 235, dtype=np.uint8)


def plot_image_rows(
    rows: Sequence[Sequence],
    names: Sequence[str] = (),
    titles: Sequence[Sequence[str]] = (),
    frames: Sequence[Sequence[str | None]] = (),
    *,
    columns: int = 6,
    title_size: float = 7,
    legend: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Rows of images: an array of axes (rows, longest row), None where there is no image.

    names: one for each row, on its left. titles: a text above each image. frames: a colour around
    each image, or None. columns: as many images, at least, share the width of the page. legend:
    what the colours of the frames mean."""
    images = [image for row in rows for image in row]
    if not images:
        raise UserError("there is no image to draw")
    longest = max(map(len, rows))
    columns = max(columns, longest)
    left = LABEL_WIDTH if any(names) else 0.01
    side = 0.97 * (WIDTH - left) / columns
    ratio = max(height / width for height, width in map(image_shape, images))
    letters = max(8, int(side / (title_size * 0.0078)))
    titles = [[_wrap_lines(title, letters) for title in row] for row in titles]
    lines = max((title.count("\n") + 1 for row in titles for title in row), default=0)
    height = len(rows) * (side * ratio + 0.05 + 0.02 * title_size * lines) + 0.1
    across = min(5, count_columns(legend or ()))
    figure = new_figure(height + 0.2 * -(-len(legend or ()) // across))
    widths = [left, *[side] * columns]
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=widths)
    axes = np.full((len(rows), longest), None, dtype=object)
    for place, row in enumerate(rows):
        if any(names):
            grid[place, 0].set_axis_off()
            middle = {"va": "center", "transform": grid[place, 0].transAxes}
            grid[place, 0].text(0, 0.5, names[place], fontsize=7.5, **middle)
        else:
            grid[place, 0].remove()
        for column, ax in enumerate(grid[place, 1:]):
            if column >= len(row):
                ax.remove()
                continue
            axes[place, column] = ax
            show_image(ax, row[column])
            if titles:
                ax.set_title(titles[place][column], fontsize=title_size, pad=3)
            if frames and frames[place][column]:
                frame(ax, frames[place][column])
    if legend:
        handles = [Patch(color=color, label=shorten(name)) for name, color in legend.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=across)
    return axes


def _wrap_lines(text, letters):
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))


def plot_sample_grid(
    images: Sequence,
    titles: Sequence[str],
    labels: Sequence[str] | None = None,
    classes: Sequence[str] = (),
    columns: int = 6,
) -> np.ndarray:
    """A grid of images, with `labels` and `classes` each framed in the colour of its class: an
    array of axes (N,).

    >>> axes = plot_sample_grid([np.zeros((8, 8)), np.ones((8, 8))], ["black", "white"])
    >>> [ax.get_title() for ax in axes]
    ['black', 'white']
    """
    if len(images) != len(titles):
        raise UserError(f"{len(images)} images and {len(titles)} titles: give one title per image")
    colors, frames = {}, []
    if labels is not None:
        colors = class_colors(classes)
        frames = [colors[label] for label in labels]
        if len(colors) > MAX_SHOWN:  # the titles say it
            colors = {}
    columns = max(1, min(columns, len(images)))
    rows = [_split_rows(part, columns) for part in (images, titles, frames)]
    axes = plot_image_rows(rows[0], (), *rows[1:], columns=max(columns, 3), legend=colors)
    return np.array([ax for ax in axes.ravel() if ax is not None])


def _split_rows(values: Sequence, columns: int) -> list[list]:
    values = list(values)
    return [values[start : start + columns] for start in range(0, len(values), columns)]


def plot_worst(images: Mapping[str, object], worst: pd.DataFrame) -> np.ndarray:
    """A row of images for each issue, the worst first, with their scores; a frame marks those that
    the issue's rule flags.

    worst: issue, sample_id, score, flagged, as from `vitlab.data.worst_images`; images: sample_id
    to image. One that is missing (it is unreadable) is a grey square with its name."""
    rows, names, titles, frames = [], [], [], []
    for issue, part in worst.groupby("issue", sort=False):
        names.append(readable(issue).replace(" ", "\n"))
        rows.append([images.get(name, UNREADABLE) for name in part["sample_id"]])
        scores = part["score"].map(_write_score)
        known = part["sample_id"].isin(list(images))
        titles.append(list(scores.where(known, part["sample_id"].map(lambda x: shorten(x, 10)))))
        frames.append([PALETTE[3] if flagged else None for flagged in part["flagged"]])
    return plot_image_rows(rows, names, titles, frames, title_size=6.5)


def _write_score(score: float) -> str:
    return "0" if score == 0 else f"{score:.0e}" if score < 0.0005 else f"{score:.3f}"


def plot_mistakes(images: Sequence, mistakes: pd.DataFrame) -> np.ndarray:
    """The images of a `mistakes_table`, in its order, each with its true class, the prediction and
    its confidence.
    """
    if mistakes.empty:
        return np.array([empty_axes("no mistakes")])
    titles = [
        f"{row.sample_id}\ntrue: {row.label}\npredicted: {row.pred} ({row.confidence:.0%})"
        for row in mistakes.itertuples()
    ]
    return plot_sample_grid(images, titles, columns=4)


def plot_lost(images: Sequence, changed_images: pd.DataFrame) -> np.ndarray:
    """The images of a `changed_images` table, in its order: true class, both predictions, and the
    probability of the true class.
    """
    titles = [
        f"{row.sample_id}\ntrue: {row.label}\n{row.pred_before} {ARROW} {row.pred_after}\n"
        f"p(true): {row.prob_before:.0%} {ARROW} {row.prob_after:.0%}"
        for row in changed_images.itertuples()
    ]
    return plot_sample_grid(images, titles, columns=4)


def plot_corruptions(images: Mapping[str, Sequence], severities: Sequence[int]) -> np.ndarray:
    """An image under each corruption (columns, keys of `images`) at each severity (rows, 0 is
    clean): an array of axes (rows, columns).
    """
    rows = list(zip(*images.values(), strict=True))
    names = [f"severity {severity}" if severity else "clean" for severity in severities]
    axes = plot_image_rows(rows, names, columns=4)
    for ax, name in zip(axes[0], images, strict=True):
        ax.set_title(readable(name), fontsize=8, pad=3)
    return axes


def plot_attack_images(
    before: np.ndarray, after: np.ndarray, predictions: pd.DataFrame
) -> np.ndarray:
    """Images, the change that an attack made, and the result, each with the model's prediction: an
    array of axes (3, N).

    before, after: (N, h, w, 3) floats in 0..1; predictions: a row an image, all from
    `attack_images`. The change is magnified to the full range of grey levels: grey is no change."""
    largest = max(np.abs(after - before).max(), 1e-12)
    change = 0.5 + (after - before) / (2 * largest)
    names = ["image", f"change,\n{0.5 / largest:,.0f} times", "image +\nchange"]
    above, below = [], []
    for row in predictions.itertuples():
        above.append(f"true: {row.label}\n{row.pred} ({row.confidence:.0%})")
        below.append(f"{row.changed_pred} ({row.changed_confidence:.0%})")
    titles = [above, [""] * len(predictions), below]
    return plot_image_rows([before, change, after], names, titles, columns=3)


# Explanations


def plot_attributions(
    images: np.ndarray, maps: Sequence[AttributionMap], chosen: pd.DataFrame | None = None
) -> np.ndarray:
    """Each image and every method's map over it: an array of axes (N, 1 + methods).

    Up to three images are rows, with the maps beside and below each; more images are columns, in
    blocks of at most eight, with a row for each method. images: (N, h, w, 3) floats in 0..1.
    chosen: a row of predictions for each image, for its title: kind, group, label, pred,
    confidence. Signed maps get a two-sided scale with zero in the middle. Maps of single pixels
    would be speckle at the size of a panel, so means over blocks are drawn. Methods measure in
    different units, so each map is shown relative to the 99th percentile of its own absolute
    values."""
    if not len(images) or not len(maps):
        raise UserError(f"{len(images)} images and {len(maps)} maps: give at least one of each")
    titles = [""] * len(images) if chosen is None else _title_images(chosen)
    names = ["image", *(readable(attribution.method) for attribution in maps)]
    kinds = sorted({attribution.signed for attribution in maps})  # one colour bar for each
    axes, bars = _lay_out(images.shape, names, titles, len(kinds))
    for column, attribution in enumerate(maps, 1):
        values = block_means(attribution.values)
        for ax, image, own in zip(axes[:, column], images, values, strict=True):
            _overlay(ax, image, relative(own), attribution.signed)
    for ax, image in zip(axes[:, 0], images, strict=True):
        show_image(ax, image)
    for bar, signed in zip(bars, kinds, strict=True):
        label = f"evidence (±1 = {UNIT})" if signed else f"attribution (1 = {UNIT})"
        shades = ScalarMappable(Normalize(-1 if signed else 0, 1), overlay_colors(signed))
        ends = {"orientation": "horizontal", "ticks": few_ticks(4)}
        bar.figure.colorbar(shades, cax=bar, **ends).set_label(label, fontsize=8)
        # the grey of an image, which shows through where a map is near zero
        bar.set_facecolor("0.7" if signed else "0.5")
    return axes


def _title_images(table: pd.DataFrame) -> list[str]:
    return [
        f"{row.kind}\n{row.group}\n{row.label}\n{ARROW} {row.pred}\n({row.confidence:.2f})"
        for row in table.itertuples()
    ]


def _lay_out(
    shape: tuple[int, ...], names: Sequence[str], titles: Sequence[str], bars: int
) -> tuple[np.ndarray, np.ndarray]:
    """Axes for each image (rows) and its panels (columns), with their texts; and axes for the
    colour bars below them.
    """
    count, height, width = shape[:3]
    panels, few = len(names), count <= FEW
    if few:  # each image has rows of its own
        deep = -(-panels // ACROSS)
        across, rows, page = -(-panels // deep), count * deep, WIDTH
        side, between = 0.95 * WIDTH / max(across, 3), 0.32
    else:  # images lie side by side, a row for each panel
        across, page = min(BLOCK, count), BROAD
        rows = -(-count // across) * panels
        lines = max(title.count("\n") + 1 for title in titles)
        side, between = (BROAD - NAME) / max(across, 6), 0.13 * lines / panels
    high = rows * (side * height / width + between) + 0.1
    above, below = new_figure(high + BAR, page).subfigures(2, 1, height_ratios=[high, BAR])
    grid = above.subplots(rows, across, squeeze=False)
    axes = np.empty((count, panels), dtype=object)
    for image in range(count):
        for panel, name in enumerate(names):
            row = image * deep + panel // across if few else image // across * panels + panel
            axes[image, panel] = ax = grid[row, panel % across if few else image % across]
            if few:
                ax.set_title(textwrap.fill(name, 16), fontsize=7.5, pad=3)
            elif image % across == 0:
                style = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 8}
                ax.set_ylabel(textwrap.fill(name, 14), **style)
        if few:
            axes[image, 0].set_ylabel(titles[image], fontsize=6.5)
        else:
            axes[image, 0].set_title(titles[image], fontsize=8.5 if across <= 6 else 7.5)
    for ax in set(grid.flat) - set(axes.flat):
        ax.remove()
    return axes, below.subplots(1, bars, squeeze=False)[0]


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
    kind: str,
) -> np.ndarray:
    """Each image, and below it the changed one with its changed patches outlined: an array of axes
    (N, 2).

    images, changed: (N, h, w, 3) floats in 0..1. removed: (N, rows, columns), bool: the patches
    that were changed. before, after: the class predicted for each image and for the changed one.
    found: whether the prediction changed. kind: what was done to the patches, a word for the label
    of the row ("removed", "blurred")."""
    per_row = -(-len(images) // -(-len(images) // ACROSS))  # rows of even length, at most ACROSS
    captions = []
    for place, cells in enumerate(removed):
        caption = f"{ARROW} {after[place]}\n{cells.sum()} of {cells.size} patches"
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
