"""What compression loses: by class and group, image by image, and along pruning and merging."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vitlab.errors import UserError
from vitlab.extremes import describe_cut
from vitlab.plots.data import plot_sample_grid
from vitlab.plots.pareto import latency_label
from vitlab.plots.rows import cut_slices, draw_interval, draw_zero, list_grouped_rows, stack_rows
from vitlab.plots.style import (
    GREY,
    MARKERS,
    PALETTE,
    check_table,
    legend_below,
    new_axes,
    note_above,
    panel_grid,
    readable,
    series_colors,
)

MINUS, ARROW = "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}"
DROP = ("column", "slice", "n", "change", "low", "high", "lost", "gained", "note")
LOST = ("kind", "sample_id", "label", "pred_before", "pred_after", "prob_before", "prob_after")


def plot_drop(drop_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Change of the accuracy within each class and group with its paired interval, and a line at
    zero.

    The numbers at the right are how many images were lost and won. Of more than a dozen slices of a
    column, those with the lowest and the highest change are shown."""
    check_table(drop_table, DROP, "drop_table")
    table = cut_slices(drop_table, "change")
    places, names, heads = stack_rows(table)
    ax = new_axes(ax, 0.8 + 0.2 * (places[-1] + 1), 5.2)
    for place, row in zip(places, table.itertuples(), strict=True):
        shown = row.low > 0 or row.high < 0
        draw_interval(
            ax, place, row.change, row.low, row.high, PALETTE[2] if shown else GREY, shown, row.note
        )
        if not np.isnan(row.change):
            ax.annotate(
                f"{MINUS}{row.lost:.0f} +{row.gained:.0f}",
                (1, place),
                (6, 0),
                va="center",
                fontsize=7,
                xycoords=ax.get_yaxis_transform(),
                textcoords="offset points",
            )
    draw_zero(ax)
    ax.set_xlabel(f"accuracy: after minus before (at the right: images lost {MINUS}, won +)")
    list_grouped_rows(ax, places, names, heads)
    note_above(ax.figure, describe_cut(len(table), len(drop_table), "slices", "change"))
    return ax


def plot_lost(images: Sequence, lost_images: pd.DataFrame) -> np.ndarray:
    """The images of a `lost_images` table, in its order: true class, both answers, and the
    probability of the true class.
    """
    missing = [name for name in LOST if name not in lost_images]
    if missing:
        raise UserError(
            f"lost_images lacks the columns {', '.join(missing)}; lost_images(before, after) makes"
            " such a table"
        )
    if len(images) != len(lost_images):
        raise UserError(
            f"{len(images)} images do not go with {len(lost_images)} rows: give one image for each"
            " row, in order"
        )
    if lost_images.empty:
        ax = new_axes(None, 0.6)
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no image was lost or won", ha="center", va="center")
        return np.array([ax])
    titles = [
        f"{row.sample_id}\n" * bool(row.sample_id)
        + f"true: {row.label}\n{row.pred_before} {ARROW} {row.pred_after}\n"
        + f"p(true): {row.prob_before:.0%} {ARROW} {row.prob_after:.0%}"
        for row in lost_images.itertuples()
    ]
    kinds = [name for name in ("gained", "lost") if (lost_images["kind"] == name).any()]
    labels = lost_images["kind"].tolist() if len(kinds) > 1 else None
    return plot_sample_grid(images, titles, labels, kinds, columns=4)


CURVE = ("importance", "keep", "multiply_adds", "metric", "value", "low", "high")
MERGING = ("merged", "metric", "value", "low", "high", "p50_ms", "ratio")


def plot_pruning_curve(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The score of pruned models, not trained again, by the share of the multiply-adds that is
    left; a line for each importance.

    table: a `pruning_curve_table`. The dotted line is the model itself; bars are intervals over the
    images."""
    check_table(table, CURVE, "table of a pruning curve")
    ax = new_axes(ax, 2.9, 5.2)
    names = table["importance"].unique()
    for number, (name, color) in enumerate(series_colors(names).items()):
        rows = table[table["importance"] == name].sort_values("multiply_adds")
        shift = 0.003 * (number - (len(names) - 1) / 2)  # bars of several lines stand side by side
        style = {
            "color": color,
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 4.5,
            "linewidth": 1.2,
            "capsize": 2,
        }
        ax.errorbar(
            rows["multiply_adds"] + shift,
            rows["value"],
            _reach(rows),
            elinewidth=0.9,
            label=readable(name),
            **style,
        )
    ax.axhline(
        table.sort_values("keep")["value"].iloc[-1],
        color=GREY,
        linewidth=0.8,
        linestyle=":",
        zorder=0,
    )
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(
        xlabel="multiply-adds left, of the whole model", ylabel=readable(table["metric"].iloc[0])
    )
    ax.grid(True)
    legend_below(ax, min(len(names), 4), title="importance by")
    return ax


def plot_merging_curve(table: pd.DataFrame) -> np.ndarray:
    """The score, and the time of one image, by the number of tokens merged in a block: two panels.

    table: a `merging_curve_table`. Dotted lines are the model that merges none; the share beside a
    time is of its time."""
    check_table(table, MERGING, "table of a merging curve")
    rows = table.sort_values("merged")
    axes = panel_grid(2, 2, 2.5, sharex=True)
    line = {"color": PALETTE[0], "marker": MARKERS[0], "markersize": 4.5, "linewidth": 1.2}
    axes[0].errorbar(rows["merged"], rows["value"], _reach(rows), elinewidth=0.9, capsize=2, **line)
    axes[1].plot(rows["merged"], rows["p50_ms"], **line)
    for row in rows.iloc[1:].itertuples():
        axes[1].annotate(
            f"{row.ratio:.0%}",
            (row.merged, row.p50_ms),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
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
