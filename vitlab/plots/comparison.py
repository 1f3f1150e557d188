"""Models side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.errors import UserError
from vitlab.extremes import describe_cut, find_extremes
from vitlab.plots.rows import list_rows
from vitlab.plots.style import few_ticks, note_above, panel_grid, readable, series_colors, shorten
from vitlab.registry import unknown


def plot_comparison(runs_metrics: pd.DataFrame, metrics: Sequence[str]) -> np.ndarray:
    """A panel for each metric: a small dot for each seed, a bar for the mean of each model.

    runs_metrics: a row for each run and metric, with columns model, seed, metric, value. Of more than a dozen models, those with
    the lowest and the highest mean of the first metric are shown.
    """
    there = list(runs_metrics["metric"].unique())
    for name in metrics:
        if name not in there:
            raise UserError(unknown("metric", name, there))
    means = runs_metrics[runs_metrics["metric"] == metrics[0]].groupby("model")["value"].mean()
    shown = means.index[find_extremes(means)]
    colors = {model: color for model, color in series_colors(runs_metrics["model"].unique()).items() if model in shown}
    axes = panel_grid(len(metrics), 2 if len(metrics) in (2, 4) else 3, 0.7 + 0.28 * len(colors), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        table = runs_metrics[runs_metrics["metric"] == metric]
        for place, (model, color) in enumerate(colors.items()):
            values = table.loc[table["model"] == model, "value"]
            ax.scatter(values, np.full(len(values), place), s=22, color=color, alpha=0.7, linewidths=0)
            ax.scatter(values.mean(), place, s=180, marker="|", color=color, linewidths=2.4)
        ax.set_title(readable(metric))
        ax.margins(x=0.15)
        list_rows(ax, [shorten(model) for model in colors])
    note_above(axes[0].figure, describe_cut(len(colors), len(means), "models", readable(metrics[0])))
    axes[0].figure.supxlabel("dot: one seed, bar: mean over seeds", fontsize=8)
    return axes
