"""Figures with a row for each model, class, slice or metric: names on the left, dots with intervals
to their right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.extremes import keep_extremes
from vitlab.plots.style import GREY, few_ticks, readable, shorten


def list_rows(ax: Axes, names: Sequence[str], ticks: int = 4) -> None:
    """Name the rows 0, 1, 2 ... from top to bottom. ticks: about how many values the x axis
    shows.
    """
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    _dress(ax, ticks)


def list_grouped_rows(
    ax: Axes, places: list[float], names: list[str], heads: dict[float, str]
) -> None:
    """Name the rows and, in bold, the headings of `stack_rows`."""
    ax.set_yticks([*heads, *places], [*heads.values(), *names])
    for text in ax.get_yticklabels()[: len(heads)]:
        text.set_fontweight("bold")
    ax.set_ylim(places[-1] + 0.6, -0.6)
    _dress(ax, 5)


def _dress(ax: Axes, ticks: int) -> None:
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
    """A dot with its interval; the note in place of a value that is missing."""
    if np.isnan(value):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        middle = {"ha": "center", "va": "center", "transform": ax.get_yaxis_transform()}
        ax.text(0.5, place, shorten(note, 40), color=GREY, fontsize=7, bbox=box, **middle)
        return
    ax.plot([low, high], [place, place], color=color, marker="|", markersize=6, linewidth=1.2)
    ax.plot(
        value,
        place,
        color=color,
        marker=marker,
        markersize=5,
        markerfacecolor=color if filled else "white",
    )


def draw_zero(ax: Axes, at: float = 0) -> None:
    """A dotted vertical line that values are compared with."""
    ax.axvline(at, color=GREY, linewidth=0.8, linestyle=":", zorder=0)


def cut_slices(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """Of each column with more than a dozen slices, those with the lowest and the highest values in
    the column `by`.
    """
    parts = [keep_extremes(part, by) for _, part in table.groupby("column", sort=False)]
    return pd.concat(parts) if parts else table


def stack_rows(table: pd.DataFrame) -> tuple[list[float], list[str], dict[float, str]]:
    """Where each slice (column, slice, n) is drawn, its name, and the headings: each column's name
    on a line above its slices.
    """
    places, texts, heads, place, before = [], [], {}, -1.0, ""
    for column, name, count in zip(table["column"], table["slice"], table["n"], strict=True):
        if column and column != before:
            place += 1.1
            heads[place] = readable(column)
        place, before = place + 1, column
        places.append(place)
        texts.append(f"{shorten(str(name))} (n = {count:,})")
    return places, texts, heads
