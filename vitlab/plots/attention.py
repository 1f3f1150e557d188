"""Attention by layer and head: how far it reaches, what it is worth, what fine-tuning did to it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vitlab.errors import UserError
from vitlab.plots.style import (
    DIVERGING,
    GREY,
    PALETTE,
    SEQUENTIAL,
    WIDTH,
    check_table,
    few_ticks,
    hide_ticks,
    image_shape,
    legend_below,
    new_axes,
    new_figure,
    panel_grid,
    readable,
    show_image,
)
from vitlab.plots.vit import outline_cell, read_attention

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
    """What the class token looks at in every head of a layer: the image and a small map for each
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
    read = [read_attention(head, grid, None) for head in attention]
    weights, prefix, query = np.stack([head[0] for head in read]), *read[0][1:]
    height, width = image_shape(image)
    rows = -(-(1 + len(attention)) // MAPS)
    columns = -(-(1 + len(attention)) // rows)  # rows of even length
    cell = 0.86 * WIDTH / max(columns, 4)
    axes = panel_grid(1 + len(attention), columns, cell * height / width + 0.3)
    show_image(axes[0], image)
    axes[0].set_title(
        f"query:\n{'class token' if query is None else 'framed patch'}", fontsize=7, pad=3
    )
    limit = weights[:, prefix:].max()
    for number, (ax, row) in enumerate(zip(axes[1:], weights, strict=True), 1):
        shown = ax.imshow(
            row[prefix:].reshape(grid),
            cmap=SEQUENTIAL,
            vmin=0,
            vmax=limit,
            aspect=height / grid[0] * grid[1] / width,
        )
        hide_ticks(ax)
        ax.set_title(
            f"head {number}" + (f"\n({row[:prefix].sum():.0%})" if prefix else ""),
            fontsize=7,
            pad=3,
        )
        if query is not None:
            outline_cell(ax, query, 1, 1)
    if query is not None:
        outline_cell(axes[0], query, height / grid[0], width / grid[1])
    figure = axes[0].get_figure(root=True)
    figure.set_figheight(figure.get_figheight() + (0.1 if rows > 1 else 0.25))
    label = "attention weight" + (
        f"\n(in brackets:\nto the {_name_prefix(prefix)})" if prefix else ""
    )
    bar = figure.colorbar(shown, ax=list(axes), shrink=0.9, aspect=12 * rows, ticks=few_ticks(4))
    bar.set_label(label, fontsize=7.5)
    return axes


def _name_prefix(count: int) -> str:
    return "class token" if count == 1 else "prefix tokens"


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
    axes = new_figure(2.7).subplots(1, len(measures), squeeze=False)[0]
    place = number_layers(table)
    for ax, measure in zip(axes, measures, strict=True):
        ax.plot(
            place + _offsets(table, "head"),
            table[measure],
            "o",
            color=PALETTE[0],
            alpha=0.6,
            markersize=4,
            label="a head",
            markeredgewidth=0,
        )
        if {f"{measure}_low", f"{measure}_high"} <= set(table):
            ends = table[f"{measure}_low"], table[f"{measure}_high"]
            ax.vlines(
                place + _offsets(table, "head"), *ends, color=PALETTE[0], alpha=0.5, linewidth=0.8
            )
        means = table[measure].groupby(place).mean()
        ax.plot(
            means,
            color=PALETTE[1],
            marker="_",
            markersize=10,
            markeredgewidth=2,
            label="mean of the heads",
        )
        if uniform and measure in uniform:
            ax.axhline(
                uniform[measure], color=GREY, linestyle=":", linewidth=1.2, label="even attention"
            )
        ax.set(ylabel=UNITS[measure], xlabel=BLOCK, ylim=(0, None))
        _tick_layers(ax, table)
        ax.grid(axis="y")
    figure = axes[0].get_figure(root=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
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
    sns.heatmap(
        grid,
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        ax=ax,
        linewidths=1,
        annot=grid.shape[1] <= NUMBERS,
        fmt=f"+.{decimals}f",
        annot_kws={"fontsize": 6.5},
        cbar_kws={"label": label},
    )
    if "p_fdr" in table:
        sure = table[table["p_fdr"] < SHOWN]
        rows, columns = (
            grid.index.get_indexer(sure["place"]),
            grid.columns.get_indexer(sure["head"]),
        )
        for row, column in zip(rows, columns, strict=True):
            outline_cell(
                ax, (row + 0.5, column + 0.5), 1, 1, color="black", linewidth=1.2, inside=0.04
            )
        if len(sure):
            frame = Line2D(
                [],
                [],
                color="none",
                marker="s",
                markersize=7,
                markeredgecolor="black",
                markerfacecolor="none",
            )
            legend_below(ax, 1, handles=[frame], labels=["change shown (5 % false discoveries)"])
    ax.set_xlabel("head")
    ax.set_ylabel("block")
    ax.set_xticks(
        np.arange(grid.shape[1]) + 0.5, [_count(head) for head in grid.columns], rotation=0
    )
    ax.set_yticks(np.arange(len(grid)) + 0.5, [f"{place:.0f}" for place in grid.index], rotation=0)
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
            ax.vlines(
                x,
                part["before"],
                part["after"],
                color=np.where(sure, "0.3", "0.8"),
                linewidth=1,
                zorder=1,
            )
            ax.plot(
                x,
                part["before"],
                "o",
                color=PALETTE[1],
                markerfacecolor="white",
                markersize=3.5,
                label="before fine-tuning",
            )
        ax.plot(x, part["after"], "o", color=PALETTE[0], markersize=3.5, label="after")
        ax.set(title=UNITS.get(measure, readable(measure)), xlabel="block")
        ax.title.set_fontsize(8)
        if measure == "similarity":
            ax.set_ylim(min(0, part["after"].min() - 0.05), 1.05)
        _tick_layers(ax, table, most=6)
        ax.yaxis.set_major_locator(few_ticks(5))
        ax.grid(axis="y")
    figure = axes[0].get_figure(root=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
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
