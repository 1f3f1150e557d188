"""What each remedy for class imbalance gains and costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.plots.rows import draw_interval, draw_zero, list_rows
from vitlab.plots.style import GREY, PALETTE, few_ticks, panel_grid, readable
from vitlab.registry import unknown

COLUMNS = 3


def plot_remedies(remedy_table: pd.DataFrame, metrics: Sequence[str]) -> np.ndarray:
    """A panel for each metric: the difference to the baseline, a dot for its mean and a line from the lowest seed to the highest.

    Takes a `remedy_table`. The baseline itself, whose differences are all 0, is the line down the middle.
    """
    there = list(remedy_table["metric"].unique())
    for name in metrics:
        if name not in there:
            raise UserError(unknown("metric", name, there))
    differs = remedy_table.groupby("model", sort=False)["difference"].agg(lambda values: (values != 0).any())
    models = list(differs.index[differs])
    if not models:
        raise UserError("there is nothing to draw: no model differs from the baseline")
    axes = panel_grid(len(metrics), COLUMNS, 0.75 + 0.2 * len(models), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = remedy_table[remedy_table["metric"] == metric].set_index("model").reindex(models)
        draw_zero(ax)
        for place, row in enumerate(rows.itertuples()):
            draw_interval(ax, place, row.difference, row.lowest, row.highest, PALETTE[0])
        ax.set_title(readable(metric))
        ax.margins(x=0.12)
        list_rows(ax, models)
    axes[0].figure.supxlabel("difference to the baseline; dot: mean, line: lowest to highest seed", fontsize=8)
    return axes
