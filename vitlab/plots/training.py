"""How training went, and how many images it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vitlab.errors import UserError
from vitlab.extremes import MAX_LINES, describe_best, find_best
from vitlab.plots.style import (
    GREY,
    class_colors,
    draw_lines,
    legend_below,
    legend_name,
    new_axes,
    note_above,
    panel_grid,
    readable,
    series_colors,
    series_looks,
    use_log_axis,
)
from vitlab.registry import unknown

LOSSES = ("train_loss", "val_loss")
SCORES = ("val_accuracy", "val_balanced_accuracy", "val_roc_auc")
RECALL = "val_recall_"


def plot_history(history: pd.DataFrame, monitor: str | None = None) -> np.ndarray:
    """Losses, validation scores and the recall of each class over the epochs of one run: an array
    of axes, a panel for each of the three that the history has.

    Of more than five classes the mean, the range, and the one that ends lowest are drawn. history:
    a row for each epoch. monitor: the column whose best epoch is marked in every panel.

    >>> history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2, 1], "val_accuracy": [0.5, 0.7]})
    >>> [ax.get_title() for ax in plot_history(history)]
    ['loss', 'validation scores']
    """
    losses = [name for name in LOSSES if name in history]
    scores = [name for name in SCORES if name in history]
    recalls = [name for name in history.columns if name.startswith(RECALL)]
    panels = {"loss": losses, "validation scores": scores, "validation recall": recalls}
    panels = {title: columns for title, columns in panels.items() if columns}
    axes = panel_grid(len(panels), 3, 2.9, sharex=True)
    for ax, (title, columns) in zip(axes, panels.items(), strict=True):
        if title == "validation recall":
            _draw_recalls(ax, history, columns)
        else:
            for name, color in series_colors(columns).items():
                label = readable(name).removesuffix(" loss").removeprefix("validation ")
                _draw(ax, history["epoch"], history[name], color, label)
        if title != "loss":
            ax.set_ylim(max(0, ax.get_ylim()[0] - 0.02), 1.01)
        ax.set_title(title)
        _label_epochs(ax)
        legend_below(ax, 1)
    if monitor is not None:
        best = best_epoch(history, monitor)
        for ax in axes:
            ax.axvline(best, color=GREY, linewidth=0.8, linestyle=":")
        note_above(axes[0].figure, f"dotted: epoch {best:g}, the best by {readable(monitor)}")
    return axes


def _draw_recalls(ax: Axes, history: pd.DataFrame, recalls: list[str]) -> None:
    colors, epoch = class_colors(recalls), history["epoch"]
    if len(recalls) <= MAX_LINES:
        for name, color in colors.items():
            _draw(ax, epoch, history[name], color, legend_name(name.removeprefix(RECALL)))
        return
    values = history[recalls]
    lowest = values.iloc[-1].idxmin()
    area = {"color": GREY, "alpha": 0.2, "linewidth": 0}
    ax.fill_between(epoch, values.min(axis=1), values.max(axis=1), label="all classes", **area)
    _draw(ax, epoch, values.mean(axis=1), GREY, f"mean of {len(recalls)}")
    label = f"lowest at the end: {lowest.removeprefix(RECALL)}"
    _draw(ax, epoch, history[lowest], colors[lowest], label)


def _draw(ax: Axes, epoch: pd.Series, values: pd.Series, color: str, label: str, **look) -> None:
    """A line over the epochs; one of one or two epochs has dots, so that it can be seen."""
    marker = "o" if len(epoch) < 3 else None
    ax.plot(epoch, values, color=color, label=label, marker=marker, markersize=3, **look)


def _label_epochs(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    ax.grid(axis="y")


def best_epoch(history: pd.DataFrame, monitor: str) -> float:
    """The epoch of the highest `monitor`, or of the lowest if that is a loss."""
    if monitor not in history.columns:
        raise UserError(unknown("column", monitor, list(history.columns)))
    row = history[monitor].idxmin() if monitor.endswith("loss") else history[monitor].idxmax()
    return history["epoch"][row]


def plot_learning_curves(
    histories: Mapping[str, Sequence[pd.DataFrame]], metric: str, ax: Axes | None = None
) -> Axes:
    """One metric over the epochs for several models: a thin line for each seed, a thick one for
    their mean, which ends with the shortest run.

    histories: for each model the history of each seed. Of more than a dozen models, those with the
    best mean are drawn."""
    means = {}
    for model, tables in histories.items():
        values = pd.concat([table.set_index("epoch")[metric] for table in tables], axis=1)
        means[model] = values.mean(axis=1, skipna=False).dropna()
    best = find_best(pd.Series({model: mean.max() for model, mean in means.items()}))
    ax = new_axes(ax, 3.2)
    for model, color in series_colors(best).items():
        tables, mean = histories[model], means[model]
        for table in tables:
            ax.plot(table["epoch"], table[metric], color=color, linewidth=0.7, alpha=0.7)
        seeds = f" ({len(tables)} seeds)" if len(tables) > 1 else ""
        label = legend_name(model) + seeds
        _draw(ax, mean.index, mean, color, label, linewidth=2)
    ax.set_ylabel(readable(metric))
    _label_epochs(ax)
    several = any(len(tables) > 1 for tables in histories.values())
    legend_below(ax, 3, title="thick: mean over seeds" if several else None)
    note_above(ax.figure, describe_best(len(best), len(histories), readable(metric)))
    return ax


def plot_data_efficiency(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy by the number of training images per class: a line through the means of each model,
    and the range of its seeds.

    table: columns model, images_per_class (above 0), seed and accuracy."""
    ax = new_axes(ax, 2.9, 5.2)
    ends = {"value": "mean", "low": "min", "high": "max"}
    keys = [table["model"].map(readable), table["images_per_class"]]
    means = table.groupby(keys, sort=False)["accuracy"].agg(**ends).reset_index()
    draw_lines(ax, means, "images_per_class", "model", series_looks(means["model"].unique()))
    use_log_axis(ax)
    ax.set_xticks(sorted(means["images_per_class"].unique()))
    ax.minorticks_off()
    ax.set(xlabel="training images per class", ylabel="accuracy")
    legend_below(ax, 4)
    return ax
