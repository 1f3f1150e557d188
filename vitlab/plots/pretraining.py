"""What a pretraining did, epoch by epoch, and what it is worth with few images."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vitlab.plots.checking import check_table
from vitlab.plots.style import MARKERS, PALETTE, legend_below, new_axes, panel_grid, readable, series_colors, use_log_axis

LOG = ("epoch", "loss", "accuracy")
HUNGER = ("model", "images_per_class", "seed")


def plot_pretraining(log: pd.DataFrame) -> np.ndarray:
    """The training loss, and the share of validation images named rightly, over the epochs: two panels."""
    check_table(log, LOG, "log of a pretraining")
    axes = panel_grid(2, 2, 2.3, sharex=True)
    for ax, name, title in zip(axes, ("loss", "accuracy"), ("training loss", "validation accuracy"), strict=True):
        ax.plot(log["epoch"], log[name], color=PALETTE[0], marker=MARKERS[0], markersize=4)
        ax.set_title(title)
        ax.grid(True)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[1].set_ylim(bottom=0)
    axes[0].figure.supxlabel("epoch", fontsize=8)
    return axes


def plot_hunger(table: pd.DataFrame, metric: str = "accuracy", ax: Axes | None = None) -> Axes:
    """A score by the number of training images of each class, a line a model through the means, a dot a seed.

    table: rows of `hunger_table`, with numbers of images above 0.
    """
    check_table(table, (*HUNGER, metric), "table of scores by number of images")
    ax = new_axes(ax, 2.9, 5.2)
    names = table["model"].unique()
    for number, (name, color) in enumerate(series_colors(names).items()):
        rows = table[table["model"] == name]
        means = rows.groupby("images_per_class")[metric].mean()
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(means.index, means, color=color, marker=marker, markersize=5, linewidth=1.2, label=readable(name))
        ax.scatter(rows["images_per_class"], rows[metric], s=9, color=color, alpha=0.5, linewidths=0, marker=marker)
    use_log_axis(ax)
    ax.set_xticks(sorted(table["images_per_class"].unique()))
    ax.minorticks_off()
    ax.set(xlabel="training images of each class", ylabel=readable(metric))
    ax.grid(True)
    legend_below(ax, min(len(names), 4))
    return ax
