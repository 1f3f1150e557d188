"""What is gained by answering less, or with sets: risk against coverage, and conformal promises beside what was kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from vitlab.extremes import describe_cut, keep_extremes
from vitlab.plots.rows import list_rows
from vitlab.plots.style import (
    GREY,
    MARKERS,
    PALETTE,
    SERIES,
    few_ticks,
    legend_below,
    new_axes,
    new_figure,
    note_above,
    series_colors,
    shorten,
)

WORST = {"linestyle": "", "marker": "v", "markersize": 5, "markerfacecolor": "none"}


def plot_risk_coverage(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of wrong answers against the share of images that are answered, those with the highest confidence first.

    table: a `risk_coverage_table`, drawn with its 95 % band, the best order and the error rate.
    """
    ax = new_axes(ax, 3.4)
    at, color = table["coverage"], SERIES[0]
    ax.plot(at, table["risk"], color=color, label="by confidence", zorder=3)
    ax.fill_between(at, table["low"], table["high"], color=color, alpha=0.2, linewidth=0, label="95% band")
    ax.plot(at, table["oracle"], color=PALETTE[0], linestyle="--", label="best order of these answers")
    ax.axhline(table["risk"].iloc[-1], color=GREY, linestyle=":", linewidth=0.8, label="in random order")
    highest = table.loc[at > 0.05, "risk"].max()
    ax.set(xlim=(0, 1.005), ylim=(0, max(1.4 * highest, 0.02)), xlabel="share of images answered (coverage)")
    ax.set_ylabel("wrong answers among them (risk)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_locator(few_ticks(7))
    ax.grid(True)
    legend_below(ax, 4)
    return ax


def plot_conformal(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Left, how often the sets hold the true class against how often they promised to; right, how large they are for it.

    tables: a `conformal_table` for each name (by class, all alike).
    """
    left, right = new_figure(3.2).subplots(1, 2)
    promises = np.concatenate([table["promise"] for table in tables.values()])
    ends = [promises.min() - 0.02, 1.0]
    entries = left.plot(ends, ends, color=GREY, linestyle=":", linewidth=0.8, label="as promised")
    for place, (name, color) in enumerate(series_colors(tables).items()):
        table = tables[name]
        at = table["promise"] + 0.004 * (place - (len(tables) - 1) / 2)
        reach = np.abs(table[["coverage_low", "coverage_high"]].to_numpy().T - table["coverage"].to_numpy())
        look = {"color": color, "marker": MARKERS[place % len(MARKERS)], "markersize": 4, "linewidth": 1.2}
        entries += [left.errorbar(at, table["coverage"], reach, capsize=2, elinewidth=0.9, label=name, **look)]
        left.plot(at, table["worst_coverage"], **WORST, color=color)
        right.plot(table["promise"], table["size"], **look)
    entries += [Line2D([], [], **WORST, color=GREY, label="worst class")]
    left.set(xlabel="promised coverage", ylabel="sets that hold the true class")
    right.set(xlabel="promised coverage", ylabel="classes in a set (mean)")
    right.set_ylim(bottom=0)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in (left, right):
        ax.set_xticks(np.unique(promises), [f"{promise:.0%}" for promise in np.unique(promises)])
        ax.grid(True)
    left.figure.legend(handles=entries, loc="outside lower center", ncols=len(entries))
    return np.array([left, right])


def plot_class_coverage(tables: Mapping[str, pd.DataFrame], promise: float, ax: Axes | None = None) -> Axes:
    """How often the sets of each class's images hold that class, with 95 % intervals; the dotted line is the promise.

    Of more than a dozen classes, those with the lowest and the highest coverage in the first table are shown.

    tables: a `conformal_class_table` for each name.
    """
    first = next(iter(tables.values()))
    classes = list(keep_extremes(first, "coverage")["class"])
    ax = new_axes(ax, 1.3 + 0.22 * len(classes) * max(1, len(tables) / 1.4))
    for place, (name, color) in enumerate(series_colors(tables).items()):
        table = tables[name].set_index("class").loc[classes]
        at = np.arange(len(classes)) + 0.24 * (place - (len(tables) - 1) / 2)
        reach = np.abs(table[["coverage_low", "coverage_high"]].to_numpy().T - table["coverage"].to_numpy())
        look = {"color": color, "marker": MARKERS[place % len(MARKERS)], "markersize": 5, "linestyle": "", "elinewidth": 1.2}
        ax.errorbar(table["coverage"], at, xerr=reach, label=name, **look)
    ax.axvline(promise, color=GREY, linestyle=":", linewidth=0.8, label=f"promised ({promise:.0%})")
    counts = first.set_index("class")["n"]
    list_rows(ax, [f"{shorten(name)} (n = {counts[name]:,})" for name in classes], ticks=7)
    note_above(ax.figure, describe_cut(len(classes), len(first), by="coverage"))
    ax.set_xlabel("sets that hold the true class")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(ax, 3)
    return ax
