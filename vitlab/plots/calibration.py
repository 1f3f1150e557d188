"""Do the probabilities mean what they say: reliability, before and after recalibration, and beside the annotators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.plots.style import GREY, PALETTE, SERIES, legend_below, new_axes, new_figure, panel_grid

CONFIDENCE = "confidence (probability of the predicted class)"


def plot_reliability(table: pd.DataFrame) -> np.ndarray:
    """Accuracy against confidence with 95 % intervals, and below how many samples have which confidence.

    table: a `reliability_table`.
    """
    figure = new_figure(3.6, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="perfectly calibrated")
    _draw_bins(upper, table, SERIES[0], marker="o", label=f"ECE {_error(table):.3f}, n = {table['n'].sum():,}")
    lower.bar((table["start"] + table["end"]) / 2, table["n"], 0.92 * (table["end"] - table["start"]), color=SERIES[0])
    upper.set(xlim=(_lowest([table]) - 0.01, 1.01), ylim=(0, 1.02), ylabel="accuracy in the bin")
    upper.grid(True)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    lower.set(xlabel=CONFIDENCE, ylabel="samples")
    figure.align_ylabels()
    return np.array([upper, lower])


def plot_recalibration(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Reliability side by side, a panel for each name (none, temperature, ...), titled with its ECE.

    tables: a `reliability_table` for each name. The area of a dot is the share of samples in its bin.
    """
    columns = min(4, len(tables))
    axes = panel_grid(len(tables), columns, 0.9 + 5.4 / columns, sharex=True, sharey=True)
    lowest, color = _lowest(tables.values()), PALETTE[0]
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        filled = _draw_bins(ax, table, color, marker="")
        share = filled["n"] / filled["n"].sum()
        ax.scatter(filled["confidence"], filled["accuracy"], 6 + 160 * share, color=color, zorder=3)
        ax.set(title=f"{name}\nECE {_error(table):.3f}", xlim=(lowest - 0.03, 1.03), ylim=(-0.03, 1.05))
        ax.grid(True)
    for ax in axes[::columns]:
        ax.set_ylabel("accuracy in the bin")
    axes[0].figure.supxlabel(CONFIDENCE, fontsize=9)
    return axes


def plot_annotators(predicted: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The model's probability of a defect for each value of the annotators: a dot for each image, a box over the middle half with
    the median, and the mean.

    predicted: what `predict_value` gives. The dotted steps are the annotators' own values, where the means would lie if both
    agreed.
    """
    ax = new_axes(ax, 3.4)
    parts = {value: part["predicted"].to_numpy() for value, part in predicted.groupby("annotators")}
    places, values = np.arange(len(parts)), list(parts)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(predicted))
    at = np.repeat(places, [len(part) for part in parts.values()]) + jitter
    ax.scatter(at, np.concatenate(list(parts.values())), 7, color=PALETTE[0], alpha=0.35, linewidths=0, label="image")
    line = {"color": "black", "linewidth": 1}
    ax.boxplot(
        list(parts.values()), positions=places, widths=0.6, showfliers=False, whis=0, showcaps=False, manage_ticks=False,
        boxprops=line, medianprops=line | {"linewidth": 1.8}, whiskerprops={"linewidth": 0},
    )  # fmt: skip
    means = [part.mean() for part in parts.values()]
    ax.scatter(places, means, 36, color=PALETTE[1], marker="D", edgecolor="white", zorder=4, label="mean of the model")
    ax.hlines(values, places - 0.4, places + 0.4, color=GREY, linestyle=":", linewidth=1.4, label="annotators")
    ax.set_xticks(places, [f"{value:.2f} (n = {len(part):,})" for value, part in parts.items()])
    ax.set(xlabel="annotators' probability of a defect", ylabel="model's probability of a defect", ylim=(-0.03, 1.03))
    ax.set_xlim(-0.6, len(values) - 0.4)
    ax.grid(axis="y")
    legend_below(ax, 3)
    return ax


def _draw_bins(ax: Axes, table: pd.DataFrame, color: str, marker: str, label: str | None = None) -> pd.DataFrame:
    """The filled bins with their intervals; returns them."""
    filled = table[table["n"] > 0]
    reach = np.abs(filled[["low", "high"]].to_numpy().T - filled["accuracy"].to_numpy())
    look = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.2, "elinewidth": 0.9, "capsize": 2}
    ax.errorbar(filled["confidence"], filled["accuracy"], reach, label=label, **look)
    return filled


def _error(table: pd.DataFrame) -> float:
    return (table["n"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["n"].sum()


def _lowest(tables: Iterable[pd.DataFrame]) -> float:
    return min(table["start"][table["n"] > 0].min() for table in tables)
