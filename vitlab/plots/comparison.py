"""Models side by side: scores, differences with their intervals, and published results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.extremes import describe_cut, find_extremes
from vitlab.plots.rows import draw_interval, draw_zero, list_rows
from vitlab.plots.style import (
    GREY,
    PALETTE,
    new_axes,
    note_above,
    panel_grid,
    readable,
    series_colors,
    shorten,
)
from vitlab.registry import unknown


def plot_comparison(runs_metrics: pd.DataFrame, metrics: Sequence[str]) -> np.ndarray:
    """A panel for each metric: a small dot for each seed, a bar for the mean of each model.

    runs_metrics: a row for each run and metric, with columns model, seed, metric, value. Of more
    than a dozen models, those with the lowest and the highest mean of the first metric are shown.
    """
    there = list(runs_metrics["metric"].unique())
    for name in metrics:
        if name not in there:
            raise UserError(unknown("metric", name, there))
    means = runs_metrics[runs_metrics["metric"] == metrics[0]].groupby("model")["value"].mean()
    shown = means.index[find_extremes(means)]
    colors = {
        model: color
        for model, color in series_colors(runs_metrics["model"].unique()).items()
        if model in shown
    }
    axes = panel_grid(
        len(metrics), 2 if len(metrics) in (2, 4) else 3, 0.7 + 0.28 * len(colors), sharey=True
    )
    for ax, metric in zip(axes, metrics, strict=True):
        table = runs_metrics[runs_metrics["metric"] == metric]
        for place, (model, color) in enumerate(colors.items()):
            values = table.loc[table["model"] == model, "value"]
            ax.scatter(
                values, np.full(len(values), place), s=22, color=color, alpha=0.7, linewidths=0
            )
            ax.scatter(values.mean(), place, s=180, marker="|", color=color, linewidths=2.4)
        ax.set_title(readable(metric))
        ax.margins(x=0.15)
        list_rows(ax, [shorten(model) for model in colors])
    note_above(
        axes[0].figure, describe_cut(len(colors), len(means), "models", readable(metrics[0]))
    )
    axes[0].figure.supxlabel("dot: one seed, bar: mean over seeds", fontsize=8)
    return axes


MINUS = "\N{MINUS SIGN}"
SOURCES = {"sampling": "other test images", "seed": "other seeds", "total": "both"}


def plot_differences(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Differences with their intervals and a line at zero, from a `paired_table` or
    `pairwise_table`: a row each.

    Dots are filled where the verdict finds a difference, hollow where it does not. After Holm's
    correction a dot may be hollow although the interval, which is that of one pair, leaves out
    zero."""
    several = table[["model_a", "model_b"]].drop_duplicates().shape[0] > 1
    metrics = table["metric"].nunique() > 1 or not several
    names = [
        "\n".join(
            ([f"{row.model_b} {MINUS} {row.model_a}"] if several else [])
            + ([readable(row.metric)] if metrics else [])
        )
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
    what = (
        "difference"
        if metrics or not len(table)
        else f"difference in {readable(table['metric'].iloc[0])}"
    )
    meaning = (
        "right of 0: the first-named is better" if several else f"right of 0: {second} is better"
    )
    ax.set_xlabel(f"{what} ({meaning})")
    return ax


def plot_uncertainty(uncertainty_table: pd.DataFrame) -> np.ndarray:
    """The mean over the seeds with three intervals, a panel for each metric: other test images,
    other seeds, both.
    """
    axes = panel_grid(len(uncertainty_table), 3, 1.45, sharey=True)
    colors = dict(zip(SOURCES, (PALETTE[0], PALETTE[1], "0.2"), strict=True))
    for ax, row in zip(axes, uncertainty_table.itertuples(), strict=True):
        draw_zero(ax, row.mean)
        for place, (source, color) in enumerate(colors.items()):
            ends = [getattr(row, f"{source}_low"), getattr(row, f"{source}_high")]
            draw_interval(
                ax,
                place,
                np.nan if np.isnan(ends).any() else row.mean,
                *ends,
                color,
                note="unknown",
            )
        ax.set_title(readable(row.metric))
        ax.margins(x=0.1)
        list_rows(ax, list(SOURCES.values()))
    return axes


COLUMNS = 3


def plot_remedies(remedy_table: pd.DataFrame, metrics: Sequence[str]) -> np.ndarray:
    """A panel for each metric: the difference to the baseline, a dot for its mean and a line from
    the lowest seed to the highest.

    Takes a `remedy_table`. The baseline itself, whose differences are all 0, is the line down the
    middle."""
    there = list(remedy_table["metric"].unique())
    for name in metrics:
        if name not in there:
            raise UserError(unknown("metric", name, there))
    differs = remedy_table.groupby("model", sort=False)["difference"].agg(
        lambda values: (values != 0).any()
    )
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
    axes[0].figure.supxlabel(
        "difference to the baseline; dot: mean, line: lowest to highest seed", fontsize=8
    )
    return axes


OURS = "this report"  # the source of our own rows


def plot_published(published_table: pd.DataFrame) -> np.ndarray:
    """A `published_table` as dots, mean and standard deviation: ours in colour, published ones in
    grey.

    A panel for each combination of task, cells and metric for which something was published, in the
    order of the table."""
    groups = published_table.groupby(["task", "cells", "metric"], sort=False)
    panels = {
        keys: part
        for keys, part in groups
        if (part["source"] != OURS).any() and (part["source"] == OURS).any()
    }
    if not panels:
        raise UserError(
            "the table has no combination of task, cells and metric with both our and published"
            " numbers"
        )
    colors = series_colors(published_table.loc[published_table["source"] == OURS, "model"].unique())
    axes = panel_grid(len(panels), 2, 0.85 + 0.2 * max(map(len, panels.values())))
    for ax, ((task, cells, metric), part) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(part.itertuples()):
            color = colors[row.model] if row.source == OURS else GREY
            spread = 0 if np.isnan(row.spread) else row.spread
            marker = "o" if row.source == OURS else "s"
            draw_interval(
                ax, place, row.mean, row.mean - spread, row.mean + spread, color, marker=marker
            )
        ax.set_title(f"{task}, {cells}\n{readable(metric)}")
        list_rows(ax, [_label(row) for row in part.itertuples()])
    return axes


def _label(row) -> str:
    return (
        row.model
        if row.source == OURS or row.model == "majority class"
        else f"{row.model} ({row.source.split(' ')[0]})"
    )
