"""Which models differ, and how sure that is: differences with intervals, mean ranks, sources of uncertainty."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.plots.style import GREY, PALETTE, few_ticks, new_axes, panel_grid, readable, series_colors

MINUS = "\N{MINUS SIGN}"
SOURCES = {"sampling": "other test images", "seed": "other seeds", "total": "both"}


def plot_differences(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Differences with their intervals and a line at zero, from a `paired_table` or `pairwise_table`: a row each.

    Dots are filled where the verdict finds a difference, hollow where it does not. After Holm's correction a dot may be hollow
    although the interval, which is that of one pair, leaves out zero.
    """
    several = table[["model_a", "model_b"]].drop_duplicates().shape[0] > 1
    metrics = table["metric"].nunique() > 1 or not several
    names = [
        "\n".join(([f"{row.model_b} {MINUS} {row.model_a}"] if several else []) + ([readable(row.metric)] if metrics else []))
        for row in table.itertuples()
    ]
    ax = new_axes(ax, 0.9 + (0.36 if several and metrics else 0.27) * len(names))
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    for place, row in enumerate(table.itertuples()):
        shown = str(row.verdict).endswith("better")
        color = PALETTE[2] if shown else GREY
        ax.plot([row.low, row.high], [place, place], color=color, marker="|", markersize=6, linewidth=1.2)
        ax.plot(row.difference, place, "o", color=color, markersize=5, markerfacecolor=color if shown else "white")
        if np.isnan(row.difference):
            ax.text(0.5, place, row.verdict, color=GREY, fontsize=7, ha="center", va="center", transform=ax.get_yaxis_transform())
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(few_ticks(7))
    ax.grid(axis="x")
    second = table["model_b"].iloc[0] if len(table) else "the second"
    what = "difference" if metrics or not len(table) else f"difference in {readable(table['metric'].iloc[0])}"
    meaning = "right of 0: the first-named is better" if several else f"right of 0: {second} is better"
    ax.set_xlabel(f"{what} ({meaning})")
    return ax


def plot_critical_difference(ranks_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Critical-difference diagram (Demsar, 2006): mean ranks on a line, bars over models not shown to differ."""
    table = ranks_table.sort_values("mean_rank", kind="stable")
    ranks, names = table["mean_rank"].to_numpy(), list(table["model"])
    critical = table["critical_difference"].iloc[0]
    bars = group_ranks(ranks, critical)
    half = -(-len(names) // 2)
    step, top = 0.32, 0.35 + 0.16 * len(bars)  # inches: between names, from the axis down to the first of them
    ax = new_axes(ax, 0.75 + top + step * half)
    ax.set_ylim(-(top + step * half), 0.75)
    low, high = 1, max(len(names), 2)
    room = 0.3 * (high - low)
    ax.set_xlim(low - room, high + room)
    ax.plot([low, high], [0, 0], color="black", linewidth=1)
    for tick in range(low, high + 1):
        ax.plot([tick, tick], [0, 0.07], color="black", linewidth=1)
        ax.text(tick, 0.1, str(tick), ha="center", va="bottom", fontsize=8)
    colors = series_colors(names)
    for place, (rank, name) in enumerate(zip(ranks, names, strict=True)):
        left = place < half
        y = -(top + step * (place if left else len(names) - 1 - place))
        end = low - 0.04 * room if left else high + 0.04 * room
        ax.plot([rank, rank, end], [0, y, y], color=colors[name], linewidth=1, clip_on=False)
        ax.plot(rank, 0, "o", color=colors[name], markersize=4, zorder=3)
        text = f"{name} ({rank:.2f})"
        ax.text(end + (-0.03 if left else 0.03) * room, y, text, ha="right" if left else "left", va="center", fontsize=8)
    for number, (start, stop) in enumerate(bars):
        y = -(0.15 + 0.16 * number)
        ax.plot([start - 0.02 * room, stop + 0.02 * room], [y, y], color="0.2", linewidth=3, solid_capstyle="butt")
    if np.isfinite(critical):
        shown = min(critical, high - low)  # a longer one than the axis: no two models can differ
        ax.plot([low, low + shown], [0.5, 0.5], color="black", linewidth=1.2, marker="|", markersize=6)
        label = f"critical difference {critical:.2f}" + (", longer than the axis" if shown < critical else "")
        ax.text(low, 0.6, label, ha="left", va="bottom", fontsize=8)
    else:
        ax.text(low, 0.6, textwrap.fill(table["note"].iloc[0], 80), ha="left", va="bottom", fontsize=8, color=GREY)
    ax.set_axis_off()
    return ax


def group_ranks(ranks: np.ndarray, critical: float) -> list[tuple[float, float]]:
    """Start and end of each longest run of sorted ranks that lie within the critical difference, of two models or more."""
    bars: list[tuple[float, float]] = []
    for start, rank in enumerate(ranks):
        within = np.flatnonzero(ranks - rank <= critical + 1e-12)
        stop = int(within[-1]) if len(within) else start
        if stop > start and (not bars or ranks[stop] > bars[-1][1]):
            bars.append((float(rank), float(ranks[stop])))
    return bars


def plot_uncertainty(uncertainty_table: pd.DataFrame, columns: int = 3) -> np.ndarray:
    """The mean over the seeds with three intervals, a panel for each metric: other test images, other seeds, both."""
    axes = panel_grid(len(uncertainty_table), min(columns, 3), 1.45, sharey=True)
    colors = dict(zip(SOURCES, (PALETTE[0], PALETTE[1], "0.2"), strict=True))
    for ax, row in zip(axes, uncertainty_table.itertuples(), strict=True):
        ax.axvline(row.mean, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        for place, (source, color) in enumerate(colors.items()):
            ends = [getattr(row, f"{source}_low"), getattr(row, f"{source}_high")]
            ax.plot(ends, [place, place], color=color, marker="|", markersize=7, linewidth=1.6)
            if np.isnan(ends).any():
                middle = {"ha": "center", "va": "center", "transform": ax.get_yaxis_transform()}
                ax.text(0.5, place, "unknown", color=GREY, fontsize=7, **middle)
            else:
                ax.plot(row.mean, place, "o", color=color, markersize=4)
        ax.set_title(readable(row.metric))
        ax.set_yticks(range(len(SOURCES)), list(SOURCES.values()))
        ax.set_ylim(len(SOURCES) - 0.5, -0.5)
        ax.margins(x=0.1)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(few_ticks(4))
        ax.grid(axis="x")
    return axes
