"""What corruptions and attacks do to images, and to a model's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from vitlab.errors import UserError
from vitlab.plots.style import (
    GREY,
    MARKERS,
    SERIES,
    WIDTH,
    few_ticks,
    image_shape,
    legend_name,
    new_axes,
    new_figure,
    readable,
    series_colors,
    show_image,
)
from vitlab.registry import unknown

CLEAN = "clean"
BAND = 0.18  # opacity of an interval


def plot_corruptions(images: Mapping[str, Sequence], severities: Sequence[int]) -> np.ndarray:
    """An image under each corruption (columns, keys of `images`) at each severity (rows): an array
    of axes (rows, columns).
    """
    for name, versions in images.items():
        if len(versions) != len(severities):
            raise UserError(
                f"{name}: {len(versions)} images do not go with {len(severities)} severities: give"
                " one for each"
            )
    if not images or not len(severities):
        raise UserError("there is no image to draw: give at least one corruption and one severity")
    height, width = image_shape(next(iter(images.values()))[0])
    cell = 0.97 * WIDTH / max(len(images), 4)
    figure = new_figure(len(severities) * cell * height / width + 0.3)
    axes = figure.subplots(len(severities), len(images), squeeze=False)
    for column, (name, versions) in zip(axes.T, images.items(), strict=True):
        for ax, image in zip(column, versions, strict=True):
            show_image(ax, image)
        column[0].set_title(readable(name), fontsize=8, pad=3)
    for ax, severity in zip(axes[:, 0], severities, strict=True):
        ax.set_ylabel(f"severity {severity}" if severity else CLEAN, fontsize=8)
    return axes


def plot_robustness(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame], metrics: Sequence[str]
) -> np.ndarray:
    """Metrics (rows) against the severity of each corruption (columns) with their intervals: an
    array of axes (rows, columns).

    Severity 0 is the clean image. tables: one `robustness_table`, or one for each model, with the
    same corruptions."""
    named = dict(tables) if isinstance(tables, Mapping) else {"": tables}
    first = next(iter(named.values()))
    corruptions = [name for name in first["corruption"].unique() if name != CLEAN]
    for name, table in named.items():
        for metric in metrics:
            if metric not in set(table["metric"]):
                raise UserError(
                    f"{name}: " * bool(name)
                    + unknown("metric", metric, sorted(set(table["metric"])))
                )
        lacking = sorted(set(corruptions) - set(table["corruption"]))
        if lacking:
            raise UserError(
                f"the table of {name} lacks the corruptions {', '.join(lacking)}; make all with the"
                " same ones"
            )
    figure = new_figure(0.7 + 1.25 * len(metrics) + 0.2 * (len(named) > 1))
    axes = figure.subplots(len(metrics), len(corruptions), squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for ax, corruption in zip(row, corruptions, strict=True):
            for position, (name, color) in enumerate(series_colors(named).items()):
                table = named[name]
                part = table[
                    (table["metric"] == metric) & table["corruption"].isin((CLEAN, corruption))
                ].sort_values("severity")
                _draw_line(
                    ax, part["severity"], part, color, MARKERS[position % len(MARKERS)], name
                )
            if metric == "overconfidence":
                ax.axhline(0, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
            ax.grid(axis="y")
            ax.yaxis.set_major_locator(few_ticks(4))
        row[0].set_ylabel(readable(metric))
    for ax, corruption in zip(axes[0], corruptions, strict=True):
        ax.set_title(readable(corruption), fontsize=8)
    severities = sorted(set(first["severity"]))
    axes[0, 0].set_xticks(severities)
    for ax in axes[-1]:
        ax.set_xlabel("severity", fontsize=8)
    if len(named) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return axes


def plot_attack(attack_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy, with its interval, against how far an attack may change a pixel."""
    ax = new_axes(ax, 2.9, 4.4)
    table = attack_table.sort_values("epsilon")
    _draw_line(ax, table["epsilon"], table, SERIES[0], MARKERS[0], "")
    ax.set(
        ylim=(-0.02, 1.02),
        xlabel="greatest change of a pixel (grey levels of 255)",
        ylabel=readable(table["metric"].iloc[0]) + " under attack",
    )
    ax.grid(True)
    return ax


def plot_attack_images(
    before: np.ndarray, after: np.ndarray, predictions: pd.DataFrame
) -> np.ndarray:
    """Images, the change that an attack made, and the result, each with the model's answer: an
    array of axes (3, N).

    before, after: (N, h, w, 3) floats in 0..1; predictions: a row an image, all as of
    `attack_images`. The change is magnified to the full range of grey levels: grey is no change.
    """
    if not len(before) == len(after) == len(predictions) > 0:
        raise UserError(
            f"{len(before)} images before, {len(after)} after and {len(predictions)} predictions: "
            "give as many of each, and at least one"
        )
    height, width = before.shape[1:3]
    figure = new_figure(3 * (0.97 * WIDTH / max(len(before), 3) * height / width + 0.25))
    axes = figure.subplots(3, len(before), squeeze=False)
    largest = max(np.abs(after - before).max(), 1e-12)
    for column, first, second, row in zip(
        axes.T, before, after, predictions.itertuples(), strict=True
    ):
        show_image(column[0], first)
        show_image(column[1], 0.5 + (second - first) / (2 * largest))
        show_image(column[2], second)
        column[0].set_title(
            f"true: {row.label}\n{row.pred} ({row.confidence:.0%})", fontsize=7, pad=3
        )
        column[2].set_title(f"{row.changed_pred} ({row.changed_confidence:.0%})", fontsize=7, pad=3)
    for ax, name in zip(
        axes[:, 0], ("image", f"change, {0.5 / largest:,.0f} times", "image + change"), strict=True
    ):
        ax.set_ylabel(name, fontsize=8)
    return axes


def _draw_line(
    ax: Axes, x: pd.Series, table: pd.DataFrame, color: str, marker: str, label: str
) -> None:
    ax.fill_between(x, table["low"], table["high"], color=color, alpha=BAND, linewidth=0)
    ax.plot(
        x,
        table["value"],
        color=color,
        marker=marker,
        markersize=3.5,
        label=legend_name(label) or None,
    )
