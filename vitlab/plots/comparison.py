"""Models side by side: scores, differences with their intervals, and published results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.express as px
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitlab.errors import UserError
from vitlab.extremes import MAX_SHOWN, describe_best, find_best
from vitlab.plots.elements import draw_interval, draw_zero, list_rows
from vitlab.plots.interactive import Interactive, dress, plotly_text
from vitlab.plots.style import (
    GREY,
    PALETTE,
    new_axes,
    note_above,
    panel_grid,
    readable,
    series_colors,
)
from vitlab.registry import unknown

MINUS = "\N{MINUS SIGN}"


def iplot_comparison(runs_metrics: pd.DataFrame, metrics: Sequence[str]) -> Interactive:
    """A panel for each metric: a small dot for each seed, a bar for the mean of each model. In
    HTML, point at a dot to read model, seed and value.

    runs_metrics: a row for each run and metric, with columns model, seed, metric, value. Of more
    than a dozen models, those with the best mean of the first metric are shown."""
    _check_metrics(runs_metrics, metrics)
    first = runs_metrics[runs_metrics["metric"] == metrics[0]]
    best = find_best(first.groupby("model", sort=False)["value"].mean())
    colors = series_colors(best)
    static = _draw_comparison(runs_metrics, metrics, colors)
    total = runs_metrics["model"].nunique()
    note_above(static, describe_best(len(best), total, readable(metrics[0])))

    table = runs_metrics[
        runs_metrics["model"].isin(best) & runs_metrics["metric"].isin(list(metrics))
    ]
    shift = table["model"].map(best.index) - (len(best) - 1) / 2
    table = table.assign(
        x=table["metric"].map(list(metrics).index) + 0.66 / len(best) * shift,
        model=table["model"].map(plotly_text),
        metric=table["metric"].map(readable),
    )
    figure = px.scatter(
        table,
        x="x",
        y="value",
        color="model",
        symbol="model",
        hover_data={"x": False, "metric": True, "seed": True, "value": ":.4f"},
        color_discrete_map={plotly_text(model): color for model, color in colors.items()},
        opacity=0.8,
        labels={"value": "score", "x": ""},
    )
    figure.update_traces(marker_size=9)
    names = [readable(name).replace(" ", "<br>") for name in metrics]
    figure.update_xaxes(tickvals=list(range(len(metrics))), ticktext=names, zeroline=False)
    return Interactive(dress(figure).update_layout(legend_title=None), static)


def _draw_comparison(
    runs_metrics: pd.DataFrame, metrics: Sequence[str], colors: dict[str, str]
) -> Figure:
    columns = 2 if len(metrics) in (2, 4) else 3
    axes = panel_grid(len(metrics), columns, 0.7 + 0.28 * len(colors), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        table = runs_metrics[runs_metrics["metric"] == metric]
        for place, (model, color) in enumerate(colors.items()):
            values = table.loc[table["model"] == model, "value"]
            places = np.full(len(values), place)
            ax.scatter(values, places, s=22, color=color, alpha=0.7, linewidths=0)
            ax.scatter(values.mean(), place, s=180, marker="|", color=color, linewidths=2.4)
        ax.set_title(readable(metric))
        ax.margins(x=0.15)
        list_rows(ax, list(colors))
    axes[0].figure.supxlabel("dot: one seed, bar: mean over seeds", fontsize=8)
    return axes[0].figure


def _check_metrics(table: pd.DataFrame, metrics: Sequence[str]) -> None:
    there = list(table["metric"].unique())
    for name in metrics:
        if name not in there:
            raise UserError(unknown("metric", name, there))


MAX_PAIRS = 28  # of eight models


def plot_differences(pairwise_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The difference of each pair of models with its interval and a line at zero.

    Dots are filled where the verdict finds a difference. After Holm's correction a dot may be
    hollow although the interval, which is that of one pair, leaves out zero. Of more than 28 pairs,
    those of the best model with the next dozen are shown."""
    table, note = _cut_pairs(pairwise_table)
    ax = new_axes(ax, 0.9 + 0.27 * len(table))
    draw_zero(ax)
    for place, row in enumerate(table.itertuples()):
        shown = str(row.verdict).endswith("better")
        color = PALETTE[2] if shown else GREY
        draw_interval(ax, place, row.difference, row.low, row.high, color, shown, str(row.verdict))
    pairs = zip(table["model_b"], table["model_a"], strict=True)
    list_rows(ax, [f"{second} {MINUS} {first}" for second, first in pairs], ticks=7)
    metric = readable(table["metric"].iloc[0])
    ax.set_xlabel(f"difference in {metric} (right of 0: the first-named is better)")
    note_above(ax.figure, note)
    return ax


def _cut_pairs(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    if len(table) <= MAX_PAIRS:
        return table, ""
    ends = [
        table[[f"model_{end}", f"value_{end}"]].set_axis(["model", "value"], axis=1)
        for end in ("a", "b")
    ]
    means = pd.concat(ends).groupby("model", sort=False)["value"].mean()
    best, rivals = means.idxmax(), find_best(means, MAX_SHOWN + 1)
    known = table["model_a"].isin(rivals) & table["model_b"].isin(rivals)
    kept = table[known & ((table["model_a"] == best) | (table["model_b"] == best))]
    return kept, f"the best model against the next {len(kept)} of {len(means):,} models"


def plot_imbalance_methods(table: pd.DataFrame, metrics: Sequence[str]) -> np.ndarray:
    """A panel for each metric: the difference of each method to the baseline, a dot for its mean
    and a line from the lowest seed to the highest.

    table: columns model, metric, difference, lowest, highest. The baseline, whose differences are
    all 0, is the line down the middle. Of more than a dozen methods, the best by the first metric
    are shown."""
    _check_metrics(table, metrics)
    table = table[(table["difference"] != 0).groupby(table["model"]).transform("any")]
    if table.empty:
        raise UserError("there is nothing to draw: no model differs from the baseline")
    first = table[table["metric"] == metrics[0]].set_index("model")["difference"]
    models = find_best(first)
    axes = panel_grid(len(metrics), 3, 0.75 + 0.2 * len(models), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("model").reindex(models)
        draw_zero(ax)
        for place, row in enumerate(rows.itertuples()):
            draw_interval(ax, place, row.difference, row.lowest, row.highest, PALETTE[0])
        ax.set_title(readable(metric))
        ax.margins(x=0.12)
        list_rows(ax, models)
    label = "difference to the baseline; dot: mean, line: lowest to highest seed"
    axes[0].figure.supxlabel(label, fontsize=8)
    note = describe_best(len(models), len(first), readable(metrics[0]), "methods")
    note_above(axes[0].figure, note)
    return axes


OURS = "this report"  # the source of our own rows


def plot_published(published_table: pd.DataFrame) -> np.ndarray:
    """A `published_table` as dots, mean and standard deviation: ours in colour, published ones in
    grey.

    A panel for each combination of task, cells and metric for which something was published, in the
    order of the table. Of more than a dozen of our models, the best of each panel are shown."""
    panels, notes = {}, set()
    for keys, part in published_table.groupby(["task", "cells", "metric"], sort=False):
        ours = part["source"] == OURS
        if ours.all() or not ours.any():
            continue
        best = find_best(part[ours].set_index("model")["mean"])
        notes.add(describe_best(len(best), int(ours.sum()), "their mean", "our models"))
        panels[keys] = part[~ours | part["model"].isin(best)]
    if not panels:
        raise UserError(
            "the table has no combination of task, cells and metric with both our and published"
            " numbers"
        )
    colors = series_colors(published_table.loc[published_table["source"] == OURS, "model"].unique())
    axes = panel_grid(len(panels), 2, 0.85 + 0.2 * max(map(len, panels.values())))
    for ax, ((task, cells, metric), part) in zip(axes, panels.items(), strict=True):
        names = []
        for place, row in enumerate(part.itertuples()):
            ours = row.source == OURS
            color, marker = (colors[row.model], "o") if ours else (GREY, "s")
            spread = 0 if np.isnan(row.spread) else row.spread
            ends = row.mean - spread, row.mean + spread
            draw_interval(ax, place, row.mean, *ends, color, marker=marker)
            author = "" if ours or row.model == "majority class" else row.source.split(" ")[0]
            names.append(f"{row.model} ({author})" if author else row.model)
        ax.set_title(f"{task}, {cells}\n{readable(metric)}")
        list_rows(ax, names)
    note_above(axes[0].figure, *sorted(notes))
    return axes
