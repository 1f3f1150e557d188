"""How far a model can be pruned or its tokens merged: the score along the way, and the time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vitlab.plots.checking import check_table
from vitlab.plots.compression import latency_label
from vitlab.plots.style import GREY, MARKERS, PALETTE, legend_below, new_axes, panel_grid, readable, series_colors

CURVE = ("importance", "keep", "multiply_adds", "metric", "value", "low", "high")
MERGING = ("merged", "metric", "value", "low", "high", "p50_ms", "ratio")


def plot_pruning_curve(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The score of pruned models, not trained again, by the share of the multiply-adds that is left; a line for each importance.

    table: a `pruning_curve_table`. The dotted line is the model itself; bars are intervals over the images.
    """
    check_table(table, CURVE, "table of a pruning curve")
    ax = new_axes(ax, 2.9, 5.2)
    names = table["importance"].unique()
    for number, (name, color) in enumerate(series_colors(names).items()):
        rows = table[table["importance"] == name].sort_values("multiply_adds")
        shift = 0.003 * (number - (len(names) - 1) / 2)  # bars of several lines stand side by side
        style = {"color": color, "marker": MARKERS[number % len(MARKERS)], "markersize": 4.5, "linewidth": 1.2, "capsize": 2}
        ax.errorbar(rows["multiply_adds"] + shift, rows["value"], _reach(rows), elinewidth=0.9, label=readable(name), **style)
    ax.axhline(table.sort_values("keep")["value"].iloc[-1], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="multiply-adds left, of the whole model", ylabel=readable(table["metric"].iloc[0]))
    ax.grid(True)
    legend_below(ax, min(len(names), 4), title="importance by")
    return ax


def plot_merging_curve(table: pd.DataFrame) -> np.ndarray:
    """The score, and the time of one image, by the number of tokens merged in a block: two panels.

    table: a `merging_curve_table`. Dotted lines are the model that merges none; the share beside a time is of its time.
    """
    check_table(table, MERGING, "table of a merging curve")
    rows = table.sort_values("merged")
    axes = panel_grid(2, 2, 2.5, sharex=True)
    line = {"color": PALETTE[0], "marker": MARKERS[0], "markersize": 4.5, "linewidth": 1.2}
    axes[0].errorbar(rows["merged"], rows["value"], _reach(rows), elinewidth=0.9, capsize=2, **line)
    axes[1].plot(rows["merged"], rows["p50_ms"], **line)
    for row in rows.iloc[1:].itertuples():
        axes[1].annotate(
            f"{row.ratio:.0%}", (row.merged, row.p50_ms), (0, 5), textcoords="offset points", ha="center", fontsize=7
        )
    for ax, name in zip(axes, ("value", "p50_ms"), strict=True):
        ax.axhline(rows[name].iloc[0], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        ax.set_xticks(rows["merged"])
        ax.grid(True)
    axes[1].set_ylim(0, 1.15 * rows["p50_ms"].max())
    axes[0].set_title(readable(rows["metric"].iloc[0]))
    axes[1].set_title(latency_label(rows))
    axes[0].figure.supxlabel("tokens merged in a block", fontsize=8)
    return axes


def _reach(rows: pd.DataFrame) -> np.ndarray:
    """How far the interval reaches to either side of the value, (2, N)."""
    return np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]]).clip(min=0)
