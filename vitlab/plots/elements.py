"""What several figures are made of: rows with a dot and its interval, lines with their intervals,
rows of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from vitlab.errors import UserError
from vitlab.extremes import describe_cut, keep_extremes
from vitlab.plots.style import (
    GREY,
    PALETTE,
    WIDTH,
    few_ticks,
    frame,
    image_shape,
    new_axes,
    new_figure,
    note_above,
    readable,
    shorten,
    show_image,
)

BAND = 0.18  # opacity of an interval
LABEL_WIDTH = 0.8  # inches, for the name of a row of images


def list_rows(ax: Axes, names: Sequence[str], ticks: int = 4) -> None:
    """Name the rows 0, 1, 2 ... from top to bottom. ticks: about how many values the x axis
    shows.
    """
    ax.set_yticks(range(len(names)), [shorten(name, 40) for name in names])
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(few_ticks(ticks))
    ax.grid(axis="x")


def draw_interval(
    ax: Axes,
    place: float,
    value: float,
    low: float,
    high: float,
    color: str,
    filled: bool = True,
    note: str = "",
    marker: str = "o",
) -> None:
    """A dot with its interval; the note in place of a missing value."""
    if np.isnan(value):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        middle = {"ha": "center", "va": "center", "transform": ax.get_yaxis_transform()}
        ax.text(0.5, place, shorten(note, 40), color=GREY, fontsize=7, bbox=box, **middle)
        return
    inside = color if filled else "white"
    ax.plot([low, high], [place, place], color=color, marker="|", markersize=6, linewidth=1.2)
    ax.plot(value, place, color=color, marker=marker, markersize=5, markerfacecolor=inside)


def draw_zero(ax: Axes, at: float = 0) -> None:
    """A dotted vertical line that values are compared with."""
    ax.axvline(at, color=GREY, linewidth=0.8, linestyle=":", zorder=0)


def draw_band(ax: Axes, x, table: pd.DataFrame, value: str = "value", **look) -> None:
    """A line with the area between the columns low and high."""
    ax.fill_between(
        x, table["low"], table["high"], color=look.get("color"), alpha=BAND, linewidth=0
    )
    ax.plot(x, table[value], **{"markersize": 3.5} | look)


def draw_bars(
    ax: Axes, x, table: pd.DataFrame, value: str = "value", low="low", high="high", **look
) -> None:
    """A line with a vertical bar from low to high at each point."""
    reach = np.stack([table[value] - table[low], table[high] - table[value]]).clip(min=0)
    style = {"markersize": 4, "linewidth": 1.2, "elinewidth": 0.9, "capsize": 2}
    ax.errorbar(x, table[value], reach, **style | look)


def cut_slices(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Of each column with more than a dozen slices, those with the lowest and the highest values in
    the column `by`.
    """
    parts = [keep_extremes(part, by) for _, part in table.groupby("column", sort=False)]
    return pd.concat(parts) if parts else table


def list_slices(axes: Sequence[Axes], table: pd.DataFrame) -> list[float]:
    """Name a row for each slice (column, slice, n), with the name of the column in bold on a line
    above its slices. Returns where each slice is drawn.
    """
    places, names, heads, place, before = [], [], {}, -1.0, ""
    for column, name, count in zip(table["column"], table["slice"], table["n"], strict=True):
        if column and column != before:
            place += 1.1
            heads[place] = readable(column)
        place, before = place + 1, column
        places.append(place)
        names.append(f"{shorten(str(name))} (n = {count:,})")
    for ax in axes:
        list_rows(ax, names, ticks=5)
        ax.set_yticks([*heads, *places], [*heads.values(), *names])
        for text in ax.get_yticklabels()[: len(heads)]:
            text.set_fontweight("bold")
        ax.set_ylim(places[-1] + 0.6, -0.6)
    return places


def slices_height(table: pd.DataFrame) -> float:
    """Inches that the rows of `list_slices` need."""
    return 0.75 + 0.2 * (len(table) + 1.1 * table["column"].replace("", np.nan).nunique())


def plot_slice_changes(
    slice_table: pd.DataFrame, value: str, shown: Sequence[bool], label: str, ax: Axes | None = None
) -> Axes:
    """A row for each slice with its interval around zero, filled where `shown`; of more than a
    dozen slices of a column, the lowest and the highest.
    """
    table = cut_slices(slice_table.assign(shown=shown), value)
    ax = new_axes(ax, slices_height(table), 5.2)
    for place, row in zip(list_slices([ax], table), table.to_dict("records"), strict=True):
        color = PALETTE[2] if row["shown"] else GREY
        draw_interval(
            ax, place, row[value], row["low"], row["high"], color, row["shown"], row["note"]
        )
    draw_zero(ax)
    ax.set_xlabel(label)
    note_above(ax.figure, describe_cut(len(table), len(slice_table), "slices", value))
    return ax


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
    what the colours of the frames mean.
    """
    images = [image for row in rows for image in row if image is not None]
    if not images:
        raise UserError("there is no image to draw")
    longest = max(map(len, rows))
    columns = max(columns, longest)
    left = LABEL_WIDTH if any(names) else 0
    side = 0.97 * (WIDTH - left) / columns
    ratio = max(height / width for height, width in map(image_shape, images))
    lines = max((title.count("\n") + 1 for row in titles for title in row), default=0)
    height = len(rows) * (side * ratio + 0.05 + 0.02 * title_size * lines) + 0.1
    figure = new_figure(height + 0.2 * -(-len(legend or ()) // 5))
    widths = [max(left, 0.01), *[side] * columns]
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=widths)
    axes = np.full((len(rows), longest), None, dtype=object)
    for place, row in enumerate(rows):
        if any(names):
            name_row(grid[place, 0], names[place])
        else:
            grid[place, 0].remove()
        for column, ax in enumerate(grid[place, 1:]):
            if column >= len(row) or row[column] is None:
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
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return axes


def name_row(ax: Axes, name: str) -> None:
    """A name in place of an image."""
    ax.set_axis_off()
    ax.text(0, 0.5, name, fontsize=7.5, va="center", transform=ax.transAxes)
