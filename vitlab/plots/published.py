"""Our results beside published ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.plots.rows import draw_interval, list_rows
from vitlab.plots.style import GREY, few_ticks, panel_grid, readable, series_colors

OURS = "this report"  # the source of our own rows


def plot_published(published_table: pd.DataFrame) -> np.ndarray:
    """A `published_table` as dots, mean and standard deviation: ours in colour, published ones in grey.

    A panel for each combination of task, cells and metric for which something was published, in the order of the table.
    """
    groups = published_table.groupby(["task", "cells", "metric"], sort=False)
    panels = {keys: part for keys, part in groups if (part["source"] != OURS).any() and (part["source"] == OURS).any()}
    if not panels:
        raise UserError("the table has no combination of task, cells and metric with both our and published numbers")
    colors = series_colors(published_table.loc[published_table["source"] == OURS, "model"].unique())
    axes = panel_grid(len(panels), 2, 0.85 + 0.2 * max(map(len, panels.values())))
    for ax, ((task, cells, metric), part) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(part.itertuples()):
            color = colors[row.model] if row.source == OURS else GREY
            spread = 0 if np.isnan(row.spread) else row.spread
            marker = "o" if row.source == OURS else "s"
            draw_interval(ax, place, row.mean, row.mean - spread, row.mean + spread, color, marker=marker)
        ax.set_title(f"{task}, {cells}\n{readable(metric)}")
        list_rows(ax, [_label(row) for row in part.itertuples()])
    return axes


def _label(row) -> str:
    return row.model if row.source == OURS or row.model == "majority class" else f"{row.model} ({row.source.split(' ')[0]})"
