"""What corruptions and attacks do to images, and to a model's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.extremes import describe_best, find_best
from vitlab.plots.elements import draw_band, plot_image_rows
from vitlab.plots.style import (
    GREY,
    SERIES,
    few_ticks,
    legend_name,
    new_axes,
    new_figure,
    note_above,
    readable,
    series_looks,
    shared_legend,
)
from vitlab.registry import unknown

CLEAN = "clean"


def plot_corruptions(images: Mapping[str, Sequence], severities: Sequence[int]) -> np.ndarray:
    """An image under each corruption (columns, keys of `images`) at each severity (rows): an array
    of axes (rows, columns).
    """
    for name, versions in images.items():
        if len(versions) != len(severities):
            raise UserError(
                f"{name}: {len(versions)} images for {len(severities)} severities: give one for"
                " each"
            )
    rows = list(zip(*images.values(), strict=True))
    names = [f"severity {severity}" if severity else CLEAN for severity in severities]
    axes = plot_image_rows(rows, names, columns=4)
    for ax, name in zip(axes[0], images, strict=True):
        ax.set_title(readable(name), fontsize=8, pad=3)
    return axes


def plot_robustness(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame], metrics: Sequence[str]
) -> np.ndarray:
    """Metrics (rows) against the severity of each corruption (columns) with their intervals: an
    array of axes (rows, columns).

    Severity 0 is the clean image. tables: one `robustness_table`, or one for each model, with the
    same corruptions. Of more than a dozen models, the best on clean images are drawn."""
    named = dict(tables) if isinstance(tables, Mapping) else {"": tables}
    first = next(iter(named.values()))
    corruptions = [name for name in first["corruption"].unique() if name != CLEAN]
    for name, table in named.items():
        for metric in metrics:
            if metric not in set(table["metric"]):
                prefix = f"{name}: " if name else ""
                raise UserError(prefix + unknown("metric", metric, sorted(set(table["metric"]))))
        lacking = sorted(set(corruptions) - set(table["corruption"]))
        if lacking:
            raise UserError(
                f"the table of {name} lacks the corruptions {', '.join(lacking)}: compute all"
                " tables with the same corruptions"
            )
    clean = {
        name: table.loc[
            (table["corruption"] == CLEAN) & (table["metric"] == metrics[0]), "value"
        ].iloc[0]
        for name, table in named.items()
    }
    looks = series_looks(find_best(pd.Series(clean)))
    figure = new_figure(0.7 + 1.25 * len(metrics) + 0.2 * (len(named) > 1))
    axes = figure.subplots(len(metrics), len(corruptions), squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for ax, corruption in zip(row, corruptions, strict=True):
            for name, look in looks.items():
                table = named[name]
                own = table["corruption"].isin((CLEAN, corruption)) & (table["metric"] == metric)
                part = table[own].sort_values("severity")
                draw_band(ax, part["severity"], part, label=legend_name(name), **look)
            if metric == "overconfidence":
                ax.axhline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
            ax.grid(axis="y")
            ax.yaxis.set_major_locator(few_ticks(4))
        row[0].set_ylabel(readable(metric))
    for ax, corruption in zip(axes[0], corruptions, strict=True):
        ax.set_title(readable(corruption), fontsize=8)
    axes[0, 0].set_xticks(sorted(set(first["severity"])))
    for ax in axes[-1]:
        ax.set_xlabel("severity", fontsize=8)
    if len(named) > 1:
        shared_legend(axes[0, :1])
    note_above(figure, describe_best(len(looks), len(named), f"clean {readable(metrics[0])}"))
    return axes


def plot_attack(attack_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy, with its interval, against the largest change of a pixel by an attack."""
    ax = new_axes(ax, 2.9, 4.4)
    table = attack_table.sort_values("epsilon")
    draw_band(ax, table["epsilon"], table, color=SERIES[0], marker="o")
    ax.set(ylim=(-0.02, 1.02), xlabel="largest change of a pixel (grey levels of 255)")
    ax.set_ylabel(f"{readable(table['metric'].iloc[0])} under attack")
    ax.grid(True)
    return ax


def plot_attack_images(
    before: np.ndarray, after: np.ndarray, predictions: pd.DataFrame
) -> np.ndarray:
    """Images, the change that an attack made, and the result, each with the model's prediction: an
    array of axes (3, N).

    before, after: (N, h, w, 3) floats in 0..1; predictions: a row an image, all as of
    `attack_images`. The change is magnified to the full range of grey levels: grey is no change.
    """
    if not len(before) == len(after) == len(predictions) > 0:
        raise UserError(
            f"{len(before)} images before, {len(after)} after and {len(predictions)} predictions: "
            "give as many of each, and at least one"
        )
    largest = max(np.abs(after - before).max(), 1e-12)
    change = 0.5 + (after - before) / (2 * largest)
    names = ["image", f"change,\n{0.5 / largest:,.0f} times", "image +\nchange"]
    titles = [
        [
            f"true: {row.label}\n{row.pred} ({row.confidence:.0%})"
            for row in predictions.itertuples()
        ],
        [""] * len(predictions),
        [f"{row.changed_pred} ({row.changed_confidence:.0%})" for row in predictions.itertuples()],
    ]
    return plot_image_rows([before, change, after], names, titles, columns=3)
