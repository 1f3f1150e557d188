"""What compression costs and saves: score against latency and size, the loss by class and group and
image by image, and the loss along pruning and token merging.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.express as px
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from vitlab.errors import UserError
from vitlab.plots.data import plot_sample_grid
from vitlab.plots.elements import draw_bars, plot_slice_changes
from vitlab.plots.interactive import Interactive, dress
from vitlab.plots.style import (
    GREY,
    PALETTE,
    check_table,
    empty_axes,
    legend_below,
    new_axes,
    panel_grid,
    readable,
    series_looks,
)
from vitlab.registry import unknown

MINUS, ARROW = "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}"
BENCHMARK = (
    "variant",
    "batch_size",
    "threads",
    "p50_ms",
    "size_mb",
    "metric",
    "value",
    "low",
    "high",
)
DROP = ("column", "slice", "n", "change", "low", "high", "lost", "gained", "note")
CURVE = ("importance", "keep", "multiply_adds", "metric", "value", "low", "high")
MERGING = ("merged", "metric", "value", "low", "high", "p50_ms", "ratio")
AREA, MIN_AREA = 400, 20  # square points of the largest file, of the smallest dot


def iplot_pareto(benchmark_table: pd.DataFrame, batch_size: int) -> Interactive:
    """Score with its interval against the median latency (logarithmic); the area of a dot is the
    size on disk. In HTML, point at a dot to read all its numbers.

    batch_size: which rows to draw. The line joins the Pareto front: the variants that no other one
    beats in both time and score. The others are hollow."""
    check_table(benchmark_table, BENCHMARK, "benchmark_table")
    there = sorted(benchmark_table["batch_size"].unique().tolist())
    if batch_size not in there:
        raise UserError(unknown("batch_size", str(batch_size), list(map(str, there))))
    rows = benchmark_table[benchmark_table["batch_size"] == batch_size].reset_index(drop=True)
    front = find_front(rows["p50_ms"].to_numpy(), rows["value"].to_numpy())
    areas = AREA * rows["size_mb"] / rows["size_mb"].max()
    rows = rows.assign(
        area=areas.clip(lower=MIN_AREA).fillna(MIN_AREA),
        size=rows["size_mb"].map("{:.3g} MB".format).replace("nan MB", "unknown size"),
        interval=[f"[{row.low:.3f}, {row.high:.3f}]" for row in rows.itertuples()],
        kind=np.where(front, "Pareto front", "dominated"),
        name=rows["variant"].where(front | (rows.index == 0), ""),
        above=rows["high"] - rows["value"],
        below=rows["value"] - rows["low"],
    )
    best = rows[front].sort_values("p50_ms")
    score = readable(rows["metric"].iloc[0])
    static = _draw_pareto(rows, best, score)
    figure = px.scatter(
        rows,
        x="p50_ms",
        y="value",
        error_y="above",
        error_y_minus="below",
        size="area",
        size_max=32,
        color="kind",
        color_discrete_map={"Pareto front": PALETTE[0], "dominated": "grey"},
        text="name",
        custom_data=["variant", "size", "interval"],
        log_x=True,
        labels={"p50_ms": latency_label(rows), "value": score},
    )
    hover = "%{customdata[0]}<br>%{x:.3g} ms, %{customdata[1]}<br>%{y:.4f} %{customdata[2]}"
    figure.update_traces(
        textposition="top center", error_y_thickness=1, hovertemplate=hover + "<extra></extra>"
    )
    steps = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    line = {"color": PALETTE[0], "width": 1.5, "shape": "hv"}
    figure.add_scatter(x=best["p50_ms"], y=best["value"], line=line, **steps)
    ticks = LogLocator(subs=(1, 2, 5)).tick_values(rows["p50_ms"].min(), rows["p50_ms"].max())
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return Interactive(dress(figure).update_layout(legend_title=None), static)


def _draw_pareto(rows: pd.DataFrame, best: pd.DataFrame, score: str) -> Figure:
    ax = new_axes(None, 3.4 + 0.1 * len(rows))
    ax.set_xscale("log")
    steps = {"color": GREY, "linewidth": 1.2, "alpha": 0.5, "zorder": 1}
    ax.step(best["p50_ms"], best["value"], where="post", **steps)
    looks = series_looks(rows["variant"])
    for row in rows.itertuples():
        color, marker = looks[row.variant].values()
        ax.plot([row.p50_ms] * 2, [row.low, row.high], color=color, linewidth=1, zorder=2)
        inside = color if row.Index in best.index else "white"
        style = {"marker": marker, "facecolor": inside, "edgecolor": color, "alpha": 0.75}
        label = f"{row.variant}, {row.size}"
        ax.scatter(row.p50_ms, row.value, s=row.area, label=label, zorder=3, **style)
    ax.margins(x=0.1, y=0.1)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=f"{latency_label(rows)}; area: size on disk", ylabel=score)
    ax.grid(True)
    for handle in legend_below(ax, 2).legend_handles:
        handle.set_sizes([40])
    return ax.figure


def find_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether each (N,) is on the Pareto front: no other one costs at most as much and is worth at
    least as much, one of the two strictly.

    >>> find_front(np.array([1, 2, 3]), np.array([5, 7, 6]))
    array([ True,  True, False])
    """
    # [i, j]: i against j
    cheaper, better = cost[:, None] <= cost[None], value[:, None] >= value[None]
    strictly = (cost[:, None] < cost[None]) | (value[:, None] > value[None])
    return ~(cheaper & better & strictly).any(axis=0)


def latency_label(rows: pd.DataFrame) -> str:
    """What the axis of p50_ms shows."""
    threads = int(rows["threads"].iloc[0])
    words = f"{threads} thread{'s' * (threads != 1)}"
    return f"median latency (ms, batch {rows['batch_size'].iloc[0]}, {words})"


def plot_drop(drop_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Change of the accuracy within each class and group with its paired interval, and a line at
    zero.

    The numbers after a name are how many images were lost and gained. Of more than a dozen slices
    of a column, those with the lowest and the highest change are shown."""
    check_table(drop_table, DROP, "drop_table")
    names = [
        f"{row.slice}: {MINUS}{row.lost:.0f} +{row.gained:.0f}" if row.note == "" else row.slice
        for row in drop_table.itertuples()
    ]
    shown = (drop_table["low"] > 0) | (drop_table["high"] < 0)
    label = f"change of the accuracy (after a name: images lost {MINUS}, gained +)"
    return plot_slice_changes(drop_table.assign(slice=names), "change", shown, label, ax)


def plot_lost(images: Sequence, lost_images: pd.DataFrame) -> np.ndarray:
    """The images of a `lost_images` table, in its order: true class, both predictions, and the
    probability of the true class.
    """
    columns = ("sample_id", "label", "pred_before", "pred_after", "prob_before", "prob_after")
    if lost_images.empty:
        return np.array([empty_axes("no image was lost")])
    check_table(lost_images, columns, "lost_images")
    titles = [
        f"{row.sample_id}\ntrue: {row.label}\n{row.pred_before} {ARROW} {row.pred_after}\n"
        f"p(true): {row.prob_before:.0%} {ARROW} {row.prob_after:.0%}"
        for row in lost_images.itertuples()
    ]
    return plot_sample_grid(images, titles, columns=4)


def plot_pruning_curve(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The score of pruned models without further training, by the share of the multiply-adds that
    is left; a line for each importance.

    table: a `pruning_curve_table`. The dotted line is the model itself; bars are intervals over the
    images."""
    check_table(table, CURVE, "table of a pruning curve")
    ax = new_axes(ax, 2.9, 5.2)
    looks = series_looks(table["importance"].unique())
    for number, (name, look) in enumerate(looks.items()):
        rows = table[table["importance"] == name].sort_values("multiply_adds")
        shift = 0.003 * (number - (len(looks) - 1) / 2)  # bars of several lines stand side by side
        draw_bars(ax, rows["multiply_adds"] + shift, rows, label=readable(name), **look)
    whole = table.sort_values("keep")["value"].iloc[-1]
    ax.axhline(whole, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="multiply-adds left", ylabel=readable(table["metric"].iloc[0]))
    ax.grid(True)
    legend_below(ax, min(len(looks), 4), title="importance by")
    return ax


def plot_merging_curve(table: pd.DataFrame) -> np.ndarray:
    """The score, and the latency, by the number of tokens merged in a block: two panels.

    table: a `merging_curve_table`. Dotted lines are the model that merges none; the share beside a
    time is of its time."""
    check_table(table, MERGING, "table of a merging curve")
    rows = table.sort_values("merged")
    axes = panel_grid(2, 2, 2.5, sharex=True)
    line = {"color": PALETTE[0], "marker": "o", "markersize": 4.5, "linewidth": 1.2}
    draw_bars(axes[0], rows["merged"], rows, **line)
    axes[1].plot(rows["merged"], rows["p50_ms"], **line)
    above = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
    for row in rows.iloc[1:].itertuples():
        axes[1].annotate(f"{row.ratio:.0%}", (row.merged, row.p50_ms), (0, 5), **above)
    for ax, name in zip(axes, ("value", "p50_ms"), strict=True):
        ax.axhline(rows[name].iloc[0], color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        ax.set_xticks(rows["merged"])
        ax.grid(True)
    axes[1].set_ylim(0, 1.15 * rows["p50_ms"].max())
    axes[0].set_title(readable(rows["metric"].iloc[0]))
    axes[1].set_title(latency_label(rows))
    axes[0].figure.supxlabel("tokens merged in a block", fontsize=8)
    return axes
