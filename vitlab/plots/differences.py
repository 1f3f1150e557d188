"""Which models differ, and how sure that is: differences with intervals, sources of uncertainty."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.plots.rows import draw_interval, draw_zero, list_rows
from vitlab.plots.style import GREY, PALETTE, few_ticks, new_axes, panel_grid, readable

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
    draw_zero(ax)
    for place, row in enumerate(table.itertuples()):
        shown = str(row.verdict).endswith("better")
        color = PALETTE[2] if shown else GREY
        draw_interval(ax, place, row.difference, row.low, row.high, color, shown, str(row.verdict))
    list_rows(ax, names, ticks=7)
    second = table["model_b"].iloc[0] if len(table) else "the second"
    what = "difference" if metrics or not len(table) else f"difference in {readable(table['metric'].iloc[0])}"
    meaning = "right of 0: the first-named is better" if several else f"right of 0: {second} is better"
    ax.set_xlabel(f"{what} ({meaning})")
    return ax


def plot_uncertainty(uncertainty_table: pd.DataFrame) -> np.ndarray:
    """The mean over the seeds with three intervals, a panel for each metric: other test images, other seeds, both."""
    axes = panel_grid(len(uncertainty_table), 3, 1.45, sharey=True)
    colors = dict(zip(SOURCES, (PALETTE[0], PALETTE[1], "0.2"), strict=True))
    for ax, row in zip(axes, uncertainty_table.itertuples(), strict=True):
        draw_zero(ax, row.mean)
        for place, (source, color) in enumerate(colors.items()):
            ends = [getattr(row, f"{source}_low"), getattr(row, f"{source}_high")]
            draw_interval(ax, place, np.nan if np.isnan(ends).any() else row.mean, *ends, color, note="unknown")
        ax.set_title(readable(row.metric))
        ax.margins(x=0.1)
        list_rows(ax, list(SOURCES.values()))
    return axes
