"""Whether probabilities can be trusted: reliability, rejection, and prediction sets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vitlab.plots.elements import draw_bars
from vitlab.plots.style import (
    GREY,
    PALETTE,
    SERIES,
    few_ticks,
    legend_below,
    new_axes,
    new_figure,
    panel_grid,
    series_looks,
    shared_legend,
)


def plot_reliability(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Accuracy against confidence with 95 % intervals, a panel for each name ("as trained",
    "temperature", ...), titled with its ECE: an array of axes.

    tables: a `reliability_table` for each name. The area of a dot is the share of images in its
    bin."""
    columns = min(4, max(2, len(tables)))
    axes = panel_grid(len(tables), columns, 0.9 + 5.4 / columns, sharex=True, sharey=True)
    if len(tables) == 1:
        axes[0].figure.set_size_inches(4.2, 3.6)
    filled = {name: table[table["n"] > 0] for name, table in tables.items()}
    lowest = min(table["start"].min() for table in filled.values())
    for ax, (name, table) in zip(axes, filled.items(), strict=True):
        share = table["n"] / table["n"].sum()
        error = (share * (table["accuracy"] - table["confidence"]).abs()).sum()
        ax.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle=":")
        draw_bars(ax, table["confidence"], table, "accuracy", color=PALETTE[0])
        ax.scatter(
            table["confidence"], table["accuracy"], 6 + 160 * share, color=PALETTE[0], zorder=3
        )
        ax.set(xlim=(lowest - 0.03, 1.03), ylim=(-0.03, 1.05))
        ax.set_title(f"{name}\nECE {error:.3f}, n = {table['n'].sum():,}")
        ax.grid(True)
    for ax in axes[::columns]:
        ax.set_ylabel("accuracy in the bin")
    axes[0].figure.supxlabel("confidence (probability of the predicted class)", fontsize=9)
    return axes


def plot_annotators(predicted: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The model's probability of a defect for each value of the annotators: a dot for each image, a
    box over the middle half with the median, and the mean.

    predicted: what `annotator_table` gives. The dotted steps are the annotators' own values, where
    the means would lie if both agreed."""
    ax = new_axes(ax, 3.4)
    at = {"data": predicted, "x": "annotators", "y": "predicted", "ax": ax}
    dots = {"color": PALETTE[0], "alpha": 0.35, "size": 2.8, "jitter": 0.3}
    sns.stripplot(**at, **dots, legend=False)
    ax.collections[0].set_label("image")
    box = {"fill": False, "color": "black", "width": 0.6, "whis": 0, "linewidth": 1}
    sns.boxplot(**at, **box, showfliers=False, showcaps=False, medianprops={"linewidth": 1.8})
    groups = predicted.groupby("annotators")["predicted"].agg(["mean", "size"])
    places = np.arange(len(groups))
    diamond = {"color": PALETTE[1], "marker": "D", "edgecolor": "white", "zorder": 4}
    ax.scatter(places, groups["mean"], 36, label="mean of the model", **diamond)
    steps = {"color": GREY, "linestyle": ":", "linewidth": 1.4, "label": "annotators"}
    ax.hlines(groups.index, places - 0.4, places + 0.4, **steps)
    ax.set_xticks(places, [f"{value:.2f} (n = {size:,})" for value, size in groups["size"].items()])
    ax.set(xlabel="annotators' probability of a defect", ylim=(-0.03, 1.03))
    ax.set(ylabel="model's probability of a defect", xlim=(-0.6, len(groups) - 0.4))
    ax.grid(axis="y")
    legend_below(ax, 3)
    return ax


def plot_risk_coverage(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of wrong answers against the share of images that are answered, those with the highest
    confidence first.

    table: a `risk_coverage_table`, drawn with its 95 % band, the best order and the error rate.
    """
    ax = new_axes(ax, 3.4)
    at, color = table["coverage"], SERIES[0]
    ax.plot(at, table["risk"], color=color, label="by confidence", zorder=3)
    ax.fill_between(
        at, table["low"], table["high"], color=color, alpha=0.2, linewidth=0, label="95% band"
    )
    ax.plot(
        at, table["oracle"], color=PALETTE[0], linestyle="--", label="best order of these answers"
    )
    ax.axhline(
        table["risk"].iloc[-1], color=GREY, linestyle=":", linewidth=0.8, label="in random order"
    )
    highest = table.loc[at > 0.05, "risk"].max()
    ax.set(
        xlim=(0, 1.005),
        ylim=(0, max(1.4 * highest, 0.02)),
        xlabel="share of images answered (coverage)",
    )
    ax.set_ylabel("wrong answers among them (risk)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_locator(few_ticks(7))
    ax.grid(True)
    legend_below(ax, 4)
    return ax


WORST = {"linestyle": "", "marker": "v", "markersize": 5, "markerfacecolor": "none"}


def plot_conformal(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Left, how often the sets contain the true class against the nominal coverage; right, how
    large they are.

    tables: a `conformal_table` for each name (by class, all alike).
    """
    left, right = new_figure(3.2).subplots(1, 2)
    nominals = np.unique(np.concatenate([table["nominal"] for table in tables.values()]))
    ends = [nominals.min() - 0.02, 1.0]
    left.plot(ends, ends, color=GREY, linestyle=":", linewidth=0.8, label="nominal")
    for place, (name, look) in enumerate(series_looks(tables).items()):
        table = tables[name]
        at = table["nominal"] + 0.004 * (place - (len(tables) - 1) / 2)
        interval = {"low": "coverage_low", "high": "coverage_high"}
        draw_bars(left, at, table, "coverage", **interval, label=name, **look)
        left.plot(at, table["worst_coverage"], **WORST, color=look["color"])
        right.plot(table["nominal"], table["size"], markersize=4, linewidth=1.2, **look)
    left.plot([], [], **WORST, color=GREY, label="worst class")
    left.set(xlabel="nominal coverage", ylabel="sets that contain the true class")
    right.set(xlabel="nominal coverage", ylabel="classes in a set (mean)")
    right.set_ylim(bottom=0)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in (left, right):
        ax.set_xticks(nominals, [f"{nominal:.0%}" for nominal in nominals])
        ax.grid(True)
    shared_legend([left], len(tables) + 2)
    return np.array([left, right])
