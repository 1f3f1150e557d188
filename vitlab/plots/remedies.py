"""What each remedy for class imbalance gains and costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.plots.style import GREY, PALETTE, few_ticks, panel_grid, readable
from vitlab.registry import unknown

COLUMNS = 3


def plot_remedies(remedy_table: pd.DataFrame, metrics: Sequence[str] | None = None) -> np.ndarray:
    """A panel for each metric: the difference to the baseline, a dot for its mean and a line from the lowest seed to the highest.

    Takes a `remedy_table`. The baseline itself, whose differences are all 0, is the line down the middle.
    """
    there = list(remedy_table["metric"].unique())
    metrics = list(metrics) if metrics is not None else there
    for name in metrics:
        if name not in there:
            raise UserError(unknown("metric", name, there))
    differs = remedy_table.groupby("model", sort=False)["difference"].agg(lambda values: (values != 0).any())
    models = list(differs.index[differs])
    if not models:
        raise UserError("there is nothing to draw: no model differs from the baseline")
    axes = panel_grid(len(metrics), COLUMNS, 0.75 + 0.2 * len(models), sharey=True)
    places = np.arange(len(models))
    for ax, metric in zip(axes, metrics, strict=True):
        rows = remedy_table[remedy_table["metric"] == metric].set_index("model").reindex(models)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.hlines(places, rows["lowest"], rows["highest"], color=PALETTE[0], linewidth=1.4, alpha=0.6)
        ax.scatter(rows["difference"], places, color=PALETTE[0], s=20, zorder=3)
        ax.set_title(readable(metric))
        ax.set_yticks(places, models)
        ax.set_ylim(len(models) - 0.5, -0.5)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(few_ticks(4))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
    axes[0].figure.supxlabel("difference to the baseline; dot: mean, line: lowest to highest seed", fontsize=8)
    return axes
