"""Our results beside published ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.plots.style import GREY, few_ticks, panel_grid, readable, series_colors


def plot_published(published_table: pd.DataFrame, ours: str = "this report") -> np.ndarray:
    """A `published_table` as dots, mean and standard deviation: ours in colour, published ones in grey.

    A panel for each combination of task, cells and metric for which something was published, in the order of the table.
    """
    groups = published_table.groupby(["task", "cells", "metric"], sort=False)
    panels = {keys: part.iloc[::-1] for keys, part in groups if (part["source"] != ours).any() and (part["source"] == ours).any()}
    if not panels:
        raise UserError("the table has no combination of task, cells and metric with both our and published numbers")
    colors = series_colors(published_table.loc[published_table["source"] == ours, "model"].unique())
    axes = panel_grid(len(panels), 2, 0.85 + 0.2 * max(map(len, panels.values())))
    for ax, ((task, cells, metric), part) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(part.itertuples()):
            color = colors[row.model] if row.source == ours else GREY
            spread = 0 if np.isnan(row.spread) else row.spread
            ax.plot([row.mean - spread, row.mean + spread], [place, place], color=color, marker="|", markersize=6, linewidth=1.2)
            ax.plot(row.mean, place, color=color, marker="o" if row.source == ours else "s", markersize=5)
        ax.set_yticks(range(len(part)), [_label(row, ours) for row in part.itertuples()])
        ax.set_ylim(-0.6, len(part) - 0.4)
        ax.set_title(f"{task}, {cells}\n{readable(metric)}")
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(few_ticks(4))
        ax.grid(axis="x")
    return axes


def _label(row, ours: str) -> str:
    return row.model if row.source == ours or row.model == "majority class" else f"{row.model} ({row.source.split(' ')[0]})"
