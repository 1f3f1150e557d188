"""How good the predictions are: confusion, slices, calibration, rejection and prediction sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vitlab.extremes import MAX_SHOWN, describe_cut, keep_extremes
from vitlab.plots.style import (
    GREY,
    MINUS,
    PALETTE,
    SERIES,
    draw_band,
    draw_heatmap,
    draw_intervals,
    draw_level,
    draw_reference,
    few_ticks,
    legend_below,
    name_rows,
    new_axes,
    new_figure,
    note_above,
    panel_grid,
    readable,
    series_looks,
    shared_legend,
    shorten,
)

SLICE = ["column", "slice"]
WORST = {"linestyle": "", "marker": "v", "markersize": 5, "markerfacecolor": "none"}


def plot_confusion(confusion_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Counts, and their share of the true class: a row for each true class, a column for each
    predicted one.

    Of more than a dozen classes, those that are confused most often are shown, and the others
    together as one.

    >>> table = pd.DataFrame([[3, 1], [0, 6]], index=["cat", "dog"], columns=["cat", "dog"])
    >>> [text.get_text() for text in plot_confusion(table).texts]
    ['3\\n75%', '1\\n25%', '0\\n0%', '6\\n100%']
    """
    table = _pool_classes(confusion_table)
    totals = table.sum(axis=1)
    share = table.div(totals.clip(lower=1), axis=0)
    few = len(table) <= 5
    words = table.astype(object)
    for (row, column), count in np.ndenumerate(table.to_numpy()):
        text = f"{count:,}\n{share.iloc[row, column]:.0%}"
        words.iloc[row, column] = text if count or few else ""
    side = min(4.4, 1.0 + 0.85 * len(table))
    ax = new_axes(ax, side, side + 1.2)
    scale = {"vmin": 0, "vmax": 1, "square": True, "linewidths": 0}
    look = {"annot_kws": {"fontsize": 9 if few else 6.5}}
    draw_heatmap(ax, share, words, "share of the true class", "Blues", **scale, **look)
    names = [shorten(name) for name in table.columns]
    turned = max(map(len, names)) * len(names) > 45
    slanting = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticklabels(names, **slanting if turned else {})
    ax.set_yticklabels([f"{n}\nn = {total:,}" for n, total in zip(names, totals, strict=True)])
    ax.set(xlabel="predicted class", ylabel="true class")
    if len(table) < len(confusion_table):
        total = len(confusion_table)
        text = f"the {len(table) - 1} of {total:,} classes that are confused most often"
        ax.set_title(text, fontsize=8, color=GREY)
    return ax


def _pool_classes(table: pd.DataFrame) -> pd.DataFrame:
    """The classes of the most frequent confusions, in the order of the table, and all others as one
    last row and column.
    """
    if len(table) <= MAX_SHOWN:
        return table
    wrong = table.to_numpy() * (1 - np.eye(len(table), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")
    pairs = np.stack(np.unravel_index(order, wrong.shape), axis=1)
    kept = set(pd.unique(pairs.ravel())[: MAX_SHOWN - 1])
    others = f"{len(table) - len(kept):,} others"
    names = [name if place in kept else others for place, name in enumerate(table.columns)]
    pooled = table.set_axis(names, axis=0).set_axis(names, axis=1)
    pooled = pooled.groupby(level=0).sum().T.groupby(level=0).sum().T
    order = [*(name for name in names if name != others), others]
    return pooled.loc[order, order]


# Slices


def plot_slices(slice_table: pd.DataFrame) -> np.ndarray:
    """The metrics of each slice with their intervals, a panel for each metric; the dotted line is
    the value of all samples.

    slice_table: of several columns. Slices of one column stand together under its name. Of more
    than a dozen slices of a column, those with the lowest and the highest value of the first metric
    are shown."""
    metrics = list(slice_table["metric"].unique())
    every = slice_table[slice_table["metric"] == metrics[0]]
    shown = _cut_slices(every)
    axes = panel_grid(len(metrics), 3, _slices_height(shown), sharey=True)
    places = _name_slices(axes, shown)
    for ax, metric in zip(axes, metrics, strict=True):
        part = slice_table[slice_table["metric"] == metric]
        rows = shown[SLICE].merge(part, on=SLICE, how="left")  # one may lack a metric
        color = np.where(rows["column"] == "", GREY, PALETTE[2])
        draw_intervals(ax, rows.assign(color=color), places)
        if rows["slice"].iloc[0] == "all":
            draw_reference(ax, rows["value"].iloc[0])
        ax.set_title(readable(metric))
    note = describe_cut(len(shown), len(every), "slices", readable(metrics[0]))
    note_above(axes[0].figure, note)
    return axes


def plot_gaps(worst_slice_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How far each slice is above or below the rest, with its interval; filled where the test shows
    a difference.
    """
    shown = worst_slice_table["verdict"].astype(str).str.endswith("than the rest")
    label = f"{readable(worst_slice_table['metric'].iloc[0])}: slice minus rest"
    table = worst_slice_table.assign(value=worst_slice_table["gap"], filled=shown)
    return _plot_changes(table, label, ax)


def plot_drop(change_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Change of the accuracy within each class and group with its paired interval; filled where the
    interval leaves out zero. After a name: how many images were lost and gained.
    """
    names = [
        f"{row.slice}: {MINUS}{row.lost:.0f} +{row.gained:.0f}" if row.note == "" else row.slice
        for row in change_table.itertuples()
    ]
    shown = (change_table["low"] > 0) | (change_table["high"] < 0)
    table = change_table.assign(slice=names, value=change_table["change"], filled=shown)
    label = f"change of the accuracy (after a name: images lost {MINUS}, gained +)"
    return _plot_changes(table, label, ax)


def _plot_changes(table: pd.DataFrame, label: str, ax: Axes | None) -> Axes:
    """A row for each slice with its interval around zero, in colour where it is filled; of more
    than a dozen slices of a column, the lowest and the highest.
    """
    rows = _cut_slices(table)
    rows = rows.assign(color=np.where(rows["filled"], PALETTE[2], GREY))
    ax = new_axes(ax, _slices_height(rows), 5.2)
    draw_intervals(ax, rows, _name_slices([ax], rows))
    draw_reference(ax)
    ax.set_xlabel(label)
    note_above(ax.figure, describe_cut(len(rows), len(table), "slices", "change"))
    return ax


def _cut_slices(table: pd.DataFrame) -> pd.DataFrame:
    """The slices by column; of more than a dozen of one column, those with the lowest and the
    highest values.
    """
    parts = table.groupby("column", sort=False)
    return pd.concat([keep_extremes(part, "value") for _, part in parts])


def _name_slices(axes: Sequence[Axes], table: pd.DataFrame) -> list[float]:
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
        name_rows(ax, names, ticks=5)
        ax.set_yticks([*heads, *places], [*heads.values(), *names])
        for text in ax.get_yticklabels()[: len(heads)]:
            text.set_fontweight("bold")
        ax.set_ylim(places[-1] + 0.6, -0.6)
    return places


def _slices_height(table: pd.DataFrame) -> float:
    """Inches that the rows of `_name_slices` need."""
    return 0.75 + 0.2 * (len(table) + 1.1 * table["column"].replace("", np.nan).nunique())


# Probabilities


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
        x, y, share = table["confidence"], table["accuracy"], table["n"] / table["n"].sum()
        error = (share * (y - x).abs()).sum()
        ax.axline((0, 0), slope=1, color=GREY, linewidth=0.8, linestyle=":")
        reach = np.stack([y - table["low"], table["high"] - y]).clip(min=0)
        ax.errorbar(x, y, reach, color=PALETTE[0], linewidth=1.2, elinewidth=0.9, capsize=2)
        ax.scatter(x, y, 6 + 160 * share, color=PALETTE[0], zorder=3)
        ax.set(xlim=(lowest - 0.03, 1.03), ylim=(-0.03, 1.05))
        ax.set_title(f"{name}\nECE {error:.3f}, n = {table['n'].sum():,}")
        ax.grid(True)
    for ax in axes[::columns]:
        ax.set_ylabel("accuracy in the bin")
    axes[0].figure.supxlabel("confidence (probability of the predicted class)", fontsize=9)
    return axes


def plot_risk_coverage(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of wrong predictions against the share of images that are predicted, those with the
    highest confidence first.

    table: a `risk_coverage_table`, drawn with its 95 % band, the best order and the error rate."""
    ax = new_axes(ax, 3.4)
    at = table["coverage"]
    draw_band(ax, at, table, "risk", color=SERIES[0], label="by confidence, 95% interval")
    best = {"color": PALETTE[0], "linestyle": "--", "label": "oracle (best possible order)"}
    ax.plot(at, table["oracle"], **best)
    draw_level(ax, table["risk"].iloc[-1])
    ax.lines[-1].set_label("random order")
    highest = table.loc[at > 0.05, "risk"].max()
    ax.set(xlim=(0, 1.005), ylim=(0, max(1.4 * highest, 0.02)))
    ax.set(xlabel="share of images predicted (coverage)", ylabel="error rate among them (risk)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_locator(few_ticks(7))
    ax.grid(True)
    legend_below(ax, 3)
    return ax


def plot_conformal(tables: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Left, how often the sets contain the true class against the nominal coverage, with 95 %
    intervals; right, how large they are.

    tables: a `conformal_table` for each name (by class, all alike)."""
    left, right = new_figure(3.2).subplots(1, 2)
    nominals = np.unique(np.concatenate([table["nominal"] for table in tables.values()]))
    ends = [nominals.min() - 0.02, 1.0]
    left.plot(ends, ends, color=GREY, linestyle=":", linewidth=0.8, label="nominal")
    for name, look in series_looks(tables).items():
        table, at = tables[name], tables[name]["nominal"]
        interval = table.assign(low=table["coverage_low"], high=table["coverage_high"])
        draw_band(left, at, interval, "coverage", label=name, **look)
        left.plot(at, table["worst_coverage"], **WORST, color=look["color"])
        right.plot(at, table["size"], markersize=4, linewidth=1.2, **look)
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
