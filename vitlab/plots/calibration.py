"""Whether probabilities can be trusted: reliability, rejection, and prediction sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
    panel_grid,
    series_colors,
    shorten,
)

CONFIDENCE = "confidence (probability of the predicted class)"


def plot_reliability(table: pd.DataFrame) -> np.ndarray:
    """Accuracy against confidence with 95 % intervals, and below how many samples have which
    confidence.

    table: a `reliability_table`.
    """
    figure = new_figure(3.6, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot(
        [0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="perfectly calibrated"
    )
    _draw_bins(
        upper,
        table,
        SERIES[0],
        marker="o",
        label=f"ECE {_error(table):.3f}, n = {table['n'].sum():,}",
    )
    lower.bar(
        (table["start"] + table["end"]) / 2,
        table["n"],
        0.92 * (table["end"] - table["start"]),
        color=SERIES[0],
    )
    upper.set(xlim=(_lowest([table]) - 0.01, 1.01), ylim=(0, 1.02), ylabel="accuracy in the bin")
    upper.grid(True)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    lower.set(xlabel=CONFIDENCE, ylabel="samples")
    figure.align_ylabels()
    return np.array([upper, lower])


def plot_recalibration(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Reliability side by side, a panel for each name (none, temperature, ...), titled with its
    ECE.

    tables: a `reliability_table` for each name. The area of a dot is the share of samples in its
    bin."""
    columns = min(4, len(tables))
    axes = panel_grid(len(tables), columns, 0.9 + 5.4 / columns, sharex=True, sharey=True)
    lowest, color = _lowest(tables.values()), PALETTE[0]
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        filled = _draw_bins(ax, table, color, marker="")
        share = filled["n"] / filled["n"].sum()
        ax.scatter(filled["confidence"], filled["accuracy"], 6 + 160 * share, color=color, zorder=3)
        ax.set(
            title=f"{name}\nECE {_error(table):.3f}", xlim=(lowest - 0.03, 1.03), ylim=(-0.03, 1.05)
        )
        ax.grid(True)
    for ax in axes[::columns]:
        ax.set_ylabel("accuracy in the bin")
    axes[0].figure.supxlabel(CONFIDENCE, fontsize=9)
    return axes


def plot_annotators(predicted: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The model's probability of a defect for each value of the annotators: a dot for each image, a
    box over the middle half with the median, and the mean.

    predicted: what `predict_value` gives. The dotted steps are the annotators' own values, where
    the means would lie if both agreed."""
    ax = new_axes(ax, 3.4)
    parts = {value: part["predicted"].to_numpy() for value, part in predicted.groupby("annotators")}
    places, values = np.arange(len(parts)), list(parts)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(predicted))
    at = np.repeat(places, [len(part) for part in parts.values()]) + jitter
    ax.scatter(
        at,
        np.concatenate(list(parts.values())),
        7,
        color=PALETTE[0],
        alpha=0.35,
        linewidths=0,
        label="image",
    )
    line = {"color": "black", "linewidth": 1}
    ax.boxplot(
        list(parts.values()),
        positions=places,
        widths=0.6,
        showfliers=False,
        whis=0,
        showcaps=False,
        manage_ticks=False,
        boxprops=line,
        medianprops=line | {"linewidth": 1.8},
        whiskerprops={"linewidth": 0},
    )
    means = [part.mean() for part in parts.values()]
    ax.scatter(
        places,
        means,
        36,
        color=PALETTE[1],
        marker="D",
        edgecolor="white",
        zorder=4,
        label="mean of the model",
    )
    ax.hlines(
        values,
        places - 0.4,
        places + 0.4,
        color=GREY,
        linestyle=":",
        linewidth=1.4,
        label="annotators",
    )
    ax.set_xticks(places, [f"{value:.2f} (n = {len(part):,})" for value, part in parts.items()])
    ax.set(
        xlabel="annotators' probability of a defect",
        ylabel="model's probability of a defect",
        ylim=(-0.03, 1.03),
    )
    ax.set_xlim(-0.6, len(values) - 0.4)
    ax.grid(axis="y")
    legend_below(ax, 3)
    return ax


def _draw_bins(
    ax: Axes, table: pd.DataFrame, color: str, marker: str, label: str | None = None
) -> pd.DataFrame:
    """The filled bins with their intervals; returns them."""
    filled = table[table["n"] > 0]
    reach = np.abs(filled[["low", "high"]].to_numpy().T - filled["accuracy"].to_numpy())
    look = {
        "color": color,
        "marker": marker,
        "markersize": 4,
        "linewidth": 1.2,
        "elinewidth": 0.9,
        "capsize": 2,
    }
    ax.errorbar(filled["confidence"], filled["accuracy"], reach, label=label, **look)
    return filled


def _error(table: pd.DataFrame) -> float:
    return (table["n"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["n"].sum()


def _lowest(tables: Iterable[pd.DataFrame]) -> float:
    return min(table["start"][table["n"] > 0].min() for table in tables)


WORST = {"linestyle": "", "marker": "v", "markersize": 5, "markerfacecolor": "none"}


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


def plot_conformal(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Left, how often the sets hold the true class against the nominal share; right, how
    large they are for it.

    tables: a `conformal_table` for each name (by class, all alike).
    """
    left, right = new_figure(3.2).subplots(1, 2)
    nominals = np.concatenate([table["nominal"] for table in tables.values()])
    ends = [nominals.min() - 0.02, 1.0]
    entries = left.plot(ends, ends, color=GREY, linestyle=":", linewidth=0.8, label="nominal")
    for place, (name, color) in enumerate(series_colors(tables).items()):
        table = tables[name]
        at = table["nominal"] + 0.004 * (place - (len(tables) - 1) / 2)
        reach = np.abs(
            table[["coverage_low", "coverage_high"]].to_numpy().T - table["coverage"].to_numpy()
        )
        look = {
            "color": color,
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.2,
        }
        entries += [
            left.errorbar(
                at, table["coverage"], reach, capsize=2, elinewidth=0.9, label=name, **look
            )
        ]
        left.plot(at, table["worst_coverage"], **WORST, color=color)
        right.plot(table["nominal"], table["size"], **look)
    entries += [Line2D([], [], **WORST, color=GREY, label="worst class")]
    left.set(xlabel="nominal coverage", ylabel="sets that hold the true class")
    right.set(xlabel="nominal coverage", ylabel="classes in a set (mean)")
    right.set_ylim(bottom=0)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for ax in (left, right):
        ax.set_xticks(np.unique(nominals), [f"{nominal:.0%}" for nominal in np.unique(nominals)])
        ax.grid(True)
    left.figure.legend(handles=entries, loc="outside lower center", ncols=len(entries))
    return np.array([left, right])


def plot_class_coverage(
    tables: Mapping[str, pd.DataFrame], nominal: float, ax: Axes | None = None
) -> Axes:
    """How often the sets of each class's images hold that class, with 95 % intervals; the dotted
    line is the nominal coverage.

    Of more than a dozen classes, those with the lowest and the highest coverage in the first table
    are shown.

    tables: a `conformal_class_table` for each name.
    """
    first = next(iter(tables.values()))
    classes = list(keep_extremes(first, "coverage")["class"])
    ax = new_axes(ax, 1.3 + 0.22 * len(classes) * max(1, len(tables) / 1.4))
    for place, (name, color) in enumerate(series_colors(tables).items()):
        table = tables[name].set_index("class").loc[classes]
        at = np.arange(len(classes)) + 0.24 * (place - (len(tables) - 1) / 2)
        reach = np.abs(
            table[["coverage_low", "coverage_high"]].to_numpy().T - table["coverage"].to_numpy()
        )
        look = {
            "color": color,
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 5,
            "linestyle": "",
            "elinewidth": 1.2,
        }
        ax.errorbar(table["coverage"], at, xerr=reach, label=name, **look)
    ax.axvline(nominal, color=GREY, linestyle=":", linewidth=0.8, label=f"nominal ({nominal:.0%})")
    counts = first.set_index("class")["n"]
    list_rows(ax, [f"{shorten(name)} (n = {counts[name]:,})" for name in classes], ticks=7)
    note_above(ax.figure, describe_cut(len(classes), len(first), by="coverage"))
    ax.set_xlabel("sets that hold the true class")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_below(ax, 3)
    return ax
