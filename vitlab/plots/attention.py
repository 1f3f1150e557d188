"""Attention by layer and head: its distance, what a head contributes, what fine-tuning changed."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.plots.style import (
    DIVERGING,
    GREY,
    PALETTE,
    WIDTH,
    check_table,
    few_ticks,
    image_shape,
    legend_below,
    new_axes,
    panel_grid,
    readable,
    shared_legend,
    show_image,
)
from vitlab.plots.vit import draw_attention, name_prefix, outline_cell, read_attention

UNITS = {
    "distance": "attention distance (pixels)",
    "entropy": "attention entropy (nats)",
    "similarity": "similarity to before",
}
MAPS = 7  # side by side
NUMBERS = 12  # heads of which the value is written into its cell
SHOWN = 0.05  # share of false finds among the heads whose change is shown
BLOCK = "block, from the image to the head"


def plot_heads(image, attention: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """What the class token attends to in every head of a layer: the image and a small map for each
    head, axes (1 + H,).

    All maps have one scale. attention: (H, T, T), a row for each query; without a class token the
    middle patch is the query. The title of a head says how much of its attention goes to the prefix
    tokens, which the map does not show."""
    attention = np.asarray(attention, float)
    if attention.ndim != 3 or not len(attention):
        raise UserError(
            "attention must be (H, T, T), all heads of one layer for one image, got"
            f" {attention.shape}"
        )
    weights = np.stack([read_attention(head, grid, None)[0] for head in attention])
    _, prefix, query = read_attention(attention[0], grid, None)
    height, width = image_shape(image)
    rows = -(-(1 + len(attention)) // MAPS)
    columns = -(-(1 + len(attention)) // rows)  # rows of even length
    cell = 0.86 * WIDTH / max(columns, 4)
    axes = panel_grid(1 + len(attention), columns, cell * height / width + 0.3)
    small = {"fontsize": 7, "pad": 3}
    show_image(axes[0], image)
    axes[0].set_title(f"query:\n{'class token' if query is None else 'framed patch'}", **small)
    if query is not None:
        outline_cell(axes[0], query, height / grid[0], width / grid[1])
    limit = weights[:, prefix:].max()
    for number, (ax, row) in enumerate(zip(axes[1:], weights, strict=True), 1):
        shown = draw_attention(ax, row[prefix:], grid, image, query, limit)
        share = f"\n({row[:prefix].sum():.0%})" if prefix else ""
        ax.set_title(f"head {number}{share}", **small)
    figure = axes[0].get_figure(root=True)
    figure.set_figheight(figure.get_figheight() + (0.1 if rows > 1 else 0.25))
    label = "attention weight"
    if prefix:
        label += f"\n(in brackets:\nto the {name_prefix(prefix)})"
    bar = figure.colorbar(shown, ax=list(axes), shrink=0.9, aspect=12 * rows, ticks=few_ticks(4))
    bar.set_label(label, fontsize=7.5)
    return axes


def plot_attention_distance(
    table: pd.DataFrame, uniform: dict[str, float] | None = None
) -> np.ndarray:
    """How far heads look, and how widely they spread their attention, by depth: an array of axes,
    distance and entropy.

    A dot for each head, a line through the means of the blocks. table: columns layer, head,
    distance (pixels), entropy (nats; this panel is left out without the column), means over images;
    intervals where there are distance_low, distance_high and so on. uniform: distance and entropy
    of attention spread evenly over all patches, a dotted line."""
    check_table(table, ("layer", "head", "distance"), "attention table")
    measures = [name for name in ("distance", "entropy") if name in table]
    axes = panel_grid(len(measures), 2, 2.7)
    place = number_layers(table)
    x = place + _offsets(table, "head")
    dots = {"color": PALETTE[0], "alpha": 0.6, "markersize": 4, "markeredgewidth": 0}
    mean = {"color": PALETTE[1], "marker": "_", "markersize": 10, "markeredgewidth": 2}
    for ax, measure in zip(axes, measures, strict=True):
        ax.plot(x, table[measure], "o", label="a head", **dots)
        if {f"{measure}_low", f"{measure}_high"} <= set(table):
            ends = table[f"{measure}_low"], table[f"{measure}_high"]
            ax.vlines(x, *ends, color=PALETTE[0], alpha=0.5, linewidth=0.8)
        ax.plot(table[measure].groupby(place).mean(), label="mean of the heads", **mean)
        if uniform and measure in uniform:
            even = {"color": GREY, "linestyle": ":", "linewidth": 1.2}
            ax.axhline(uniform[measure], label="even attention", **even)
        ax.set(ylabel=UNITS[measure], xlabel=BLOCK, ylim=(0, None))
        _tick_layers(ax, table)
        ax.grid(axis="y")
    shared_legend(axes, 3)
    return axes


def plot_head_ablation(
    table: pd.DataFrame,
    label: str = "change of the score without this head",
    ax: Axes | None = None,
) -> Axes:
    """What switching off each head (columns) of each block (rows) changes, on a scale with zero in
    the middle.

    Heads whose change is shown (p_fdr below 0.05) have a frame. table: columns layer, head, change;
    and p_fdr, corrected for the number of heads. label: what changes, and in which unit."""
    check_table(table, ("layer", "head", "change"), "head ablation table")
    table = table.assign(place=number_layers(table))
    grid = table.pivot_table(index="place", columns="head", values="change", dropna=False)
    limit = np.nanmax(np.abs(grid.to_numpy())) or 1
    decimals = max(0, 1 - math.floor(math.log10(limit)))
    ax = new_axes(ax, 1.1 + 0.27 * len(grid), min(WIDTH, 1.9 + 0.4 * grid.shape[1]))
    ax.set_facecolor("0.93")
    scale = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit, "linewidths": 1}
    numbers = {"annot": grid.shape[1] <= NUMBERS, "fmt": f"+.{decimals}f"}
    look = {"annot_kws": {"fontsize": 6.5}, "cbar_kws": {"label": label}}
    sns.heatmap(grid, ax=ax, **scale, **numbers, **look)
    sure = table[table["p_fdr"] < SHOWN] if "p_fdr" in table else table.head(0)
    rows, columns = grid.index.get_indexer(sure["place"]), grid.columns.get_indexer(sure["head"])
    for row, column in zip(rows, columns, strict=True):
        cell = (row + 0.5, column + 0.5)
        outline_cell(ax, cell, 1, 1, color="black", linewidth=1.2, inside=0.04)
    if len(sure):
        square = {"marker": "s", "markersize": 7, "markeredgecolor": "black", "linestyle": ""}
        ax.plot([], [], **square, color="none", label="change shown (5 % false discoveries)")
        legend_below(ax, 1)
    ax.set(xlabel="head", ylabel="block")
    heads, places = np.arange(grid.shape[1]) + 0.5, np.arange(len(grid)) + 0.5
    ax.set_xticks(heads, [_count(head) for head in grid.columns], rotation=0)
    ax.set_yticks(places, [f"{place:.0f}" for place in grid.index], rotation=0)
    ax.tick_params(length=0)
    return ax


def plot_attention_change(table: pd.DataFrame) -> np.ndarray:
    """What fine-tuning changed in the attention of each head, a panel for each measure: an array of
    axes (measures,).

    A hollow dot is a head before, the filled one it is joined to the same head after; blocks from
    left to right, the heads of a block in the order of their value before. The similarity to the
    weights before has only filled dots. table: columns layer, head, measure ("distance", "entropy",
    "similarity"), before, after; with p_fdr, the line that joins two dots is dark where the change
    is shown (p_fdr below 0.05) and light where it is not."""
    check_table(
        table,
        ("layer", "head", "measure", "before", "after"),
        "table of attention before and after",
    )
    table = table.assign(place=number_layers(table))
    measures = list(table["measure"].unique())
    axes = panel_grid(len(measures), 3, 2.5)
    for ax, measure in zip(axes, measures, strict=True):
        part = table[table["measure"] == measure]
        alone = measure == "similarity" or part["before"].isna().any()
        x = part["place"] + _offsets(part, "after" if alone else "before")
        if not alone:
            sure = part["p_fdr"] < SHOWN if "p_fdr" in part else np.full(len(part), True)
            colors = np.where(sure, "0.3", "0.8")
            ax.vlines(x, part["before"], part["after"], color=colors, linewidth=1, zorder=1)
            hollow = {"color": PALETTE[1], "markerfacecolor": "white", "markersize": 3.5}
            ax.plot(x, part["before"], "o", label="before fine-tuning", **hollow)
        ax.plot(x, part["after"], "o", color=PALETTE[0], markersize=3.5, label="after")
        ax.set_title(UNITS.get(measure, readable(measure)), fontsize=8)
        ax.set_xlabel("block")
        if measure == "similarity":
            ax.set_ylim(min(0, part["after"].min() - 0.05), 1.05)
        _tick_layers(ax, table, most=6)
        ax.yaxis.set_major_locator(few_ticks(5))
        ax.grid(axis="y")
    shared_legend(axes, 2)
    return axes


def number_layers(table: pd.DataFrame) -> pd.Series:
    """The place of each row's layer, from 1: numbers count from 0 in the order of their value,
    names in the order they come.
    """
    layers = table["layer"]
    if pd.api.types.is_numeric_dtype(layers):
        return layers.astype(int) + 1
    return pd.Series(pd.factorize(layers)[0] + 1, index=table.index)


def _offsets(table: pd.DataFrame, by: str) -> np.ndarray:
    """Heads of a block side by side, in the order of a column, within 0.3 of the block's place."""
    order = table.groupby("layer")[by].rank(method="first") - 1
    count = table.groupby("layer")["head"].transform("count")
    return (0.6 * (order - (count - 1) / 2) / count.clip(lower=2)).to_numpy()


def _tick_layers(ax: Axes, table: pd.DataFrame, most: int = 12) -> None:
    places = sorted(number_layers(table).unique())
    step = -(-len(places) // most)
    ax.set_xticks(places[::step], [str(place) for place in places[::step]])
    ax.set_xlim(places[0] - 0.5, places[-1] + 0.5)


def _count(head) -> str:
    """Heads count from 0 in a table, from 1 on paper."""
    return str(head + 1) if isinstance(head, (int, np.integer)) else str(head)
