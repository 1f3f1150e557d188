"""How training went, what it cost, and what pretraining is worth with few images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitlab.errors import UserError
from vitlab.plots.style import (
    GREY,
    MARKERS,
    PALETTE,
    check_table,
    class_colors,
    legend_below,
    legend_name,
    new_axes,
    new_figure,
    panel_grid,
    readable,
    series_colors,
    use_log_axis,
)
from vitlab.registry import unknown

SCORES = ("val_accuracy", "val_balanced_accuracy", "val_roc_auc")
MOST_LINES = 5  # of classes in one panel; more become a band


def plot_history(history: pd.DataFrame, monitor: str | None = None) -> np.ndarray:
    """Loss, validation scores and the recall of each class over the epochs of one run.

    Of more than five classes the mean, the range, and the one that ends lowest are drawn. history:
    a row for each epoch. monitor: the column whose best epoch is marked in every panel."""
    recalls = [name for name in history.columns if name.startswith("val_recall_")]
    figure = new_figure(2.9)
    axes = figure.subplots(1, 3, sharex=True)
    losses = [name for name in ("train_loss", "val_loss") if name in history]
    for name, color in series_colors(losses).items():
        _draw(axes[0], history, name, color, readable(name).removesuffix(" loss"))
    for name, color in series_colors([name for name in SCORES if name in history]).items():
        _draw(axes[1], history, name, color, readable(name).removeprefix("validation "))
    _draw_recalls(axes[2], history, recalls)
    for ax, title in zip(axes, ("loss", "validation scores", "validation recall"), strict=True):
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        ax.grid(axis="y")
    for ax in axes:
        legend_below(ax, 1)
    for ax in axes[1:]:
        ax.set_ylim(max(0, ax.get_ylim()[0] - 0.02), 1.01)
    if monitor is not None:
        best = best_epoch(history, monitor)
        for ax in axes:
            ax.axvline(best, color=GREY, linewidth=0.8, linestyle=":")
        figure.suptitle(
            f"dotted: epoch {best:g}, the best by {readable(monitor)}", fontsize=8, color=GREY
        )
    return axes


def _draw_recalls(ax: Axes, history: pd.DataFrame, recalls: list[str]) -> None:
    if len(recalls) <= MOST_LINES:
        for name, color in class_colors(recalls).items():
            _draw(ax, history, name, color, legend_name(name.removeprefix("val_recall_")))
        return
    values = history[recalls]
    lowest = values.iloc[-1].idxmin()
    ax.fill_between(
        history["epoch"],
        values.min(axis=1),
        values.max(axis=1),
        color=GREY,
        alpha=0.2,
        linewidth=0,
        label="all classes",
    )
    _draw(ax, history.assign(mean=values.mean(axis=1)), "mean", GREY, f"mean of {len(recalls)}")
    _draw(
        ax,
        history,
        lowest,
        class_colors(recalls)[lowest],
        f"lowest at the end: {lowest.removeprefix('val_recall_')}",
    )


def best_epoch(history: pd.DataFrame, monitor: str) -> float:
    """The epoch of the highest `monitor`, or of the lowest if that is a loss."""
    if monitor not in history.columns:
        raise UserError(unknown("column", monitor, list(history.columns)))
    row = history[monitor].idxmin() if monitor.endswith("loss") else history[monitor].idxmax()
    return history["epoch"][row]


def _draw(ax: Axes, history: pd.DataFrame, column: str, color: str, label: str) -> None:
    ax.plot(
        history["epoch"],
        history[column],
        color=color,
        label=label,
        marker="o" if len(history) < 3 else None,
        markersize=3,
    )


def plot_learning_curves(
    histories: Mapping[str, pd.DataFrame | list[pd.DataFrame]],
    metric: str = "val_roc_auc",
    ax: Axes | None = None,
) -> Axes:
    """One metric over the epochs for several models: a thin line for each seed, a thick one for
    their mean.

    histories: for each model its history, or a list with the history of each seed. The mean ends
    with the shortest run."""
    ax = new_axes(ax, 3.2)
    for name, color in series_colors(histories).items():
        runs = list_histories(histories[name])
        for run in runs:
            if metric not in run.columns:
                raise UserError(
                    unknown(
                        "column",
                        metric,
                        list(run.columns),
                        f"It was looked for in the history of {name}.",
                    )
                )
            ax.plot(run["epoch"], run[metric], color=color, linewidth=0.7, alpha=0.7)
        mean = mean_curve(runs, metric)
        seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        ax.plot(
            mean["epoch"], mean[metric], color=color, linewidth=2, label=legend_name(name) + seeds
        )
    ax.set(xlabel="epoch", ylabel=readable(metric))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(axis="y")
    legend_below(
        ax,
        3,
        title=(
            "thick: mean over seeds"
            if any(len(list_histories(h)) > 1 for h in histories.values())
            else None
        ),
    )
    return ax


def list_histories(histories: pd.DataFrame | list[pd.DataFrame]) -> list[pd.DataFrame]:
    return [histories] if isinstance(histories, pd.DataFrame) else list(histories)


def mean_curve(runs: list[pd.DataFrame], metric: str) -> pd.DataFrame:
    """The mean over runs of `metric` at each epoch that all of them reached: columns epoch and the
    metric.
    """
    together = pd.concat(runs).groupby("epoch")[metric].agg(["mean", "size"])
    return together.loc[together["size"] == len(runs), "mean"].rename(metric).reset_index()


def plot_cost(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """ROC AUC against the training time: a dot for each run, its area growing with the number of
    parameters.

    table: a row for each run with the columns model, training_seconds, roc_auc and parameters.
    """
    x, y, size = "training_seconds", "roc_auc", "parameters"
    check_table(table, ("model", x, y, size), "table of costs")
    ax = new_axes(ax, 3.2)
    for marker, (name, color) in zip(
        MARKERS * 9, series_colors(table["model"].unique()).items(), strict=False
    ):
        runs = table[table["model"] == name]
        area = 25 + 375 * runs[size] / table[size].max()
        label = f"{legend_name(name)}: {short_number(runs[size].mean())} {readable(size)}"
        ax.scatter(
            runs[x],
            runs[y],
            s=area,
            color=color,
            alpha=0.75,
            marker=marker,
            linewidths=0,
            label=label,
        )
    low, high = table[x].min(), table[x].max()
    if 0 < 20 * low < high:
        use_log_axis(ax)
        ax.set_xlim(low / 2, high * 2)
    else:
        ax.set_xlim(0, high * 1.12)
    ax.margins(y=0.2)
    ax.set(xlabel=readable(x), ylabel=readable(y))
    ax.grid(True)
    legend = legend_below(ax, 2)
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    return ax


def short_number(value: float) -> str:
    """3413482 as 3.41 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"


LOG = ("epoch", "loss", "accuracy")
HUNGER = ("model", "images_per_class", "seed")


def plot_pretraining(log: pd.DataFrame) -> np.ndarray:
    """The training loss, and the share of validation images named rightly, over the epochs: two
    panels.
    """
    check_table(log, LOG, "log of a pretraining")
    axes = panel_grid(2, 2, 2.3, sharex=True)
    for ax, name, title in zip(
        axes, ("loss", "accuracy"), ("training loss", "validation accuracy"), strict=True
    ):
        ax.plot(log["epoch"], log[name], color=PALETTE[0], marker=MARKERS[0], markersize=4)
        ax.set_title(title)
        ax.grid(True)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[1].set_ylim(bottom=0)
    axes[0].figure.supxlabel("epoch", fontsize=8)
    return axes


def plot_hunger(table: pd.DataFrame, metric: str = "accuracy", ax: Axes | None = None) -> Axes:
    """A score by the number of training images of each class, a line a model through the means, a
    dot a seed.

    table: rows of `hunger_table`, with numbers of images above 0.
    """
    check_table(table, (*HUNGER, metric), "table of scores by number of images")
    ax = new_axes(ax, 2.9, 5.2)
    names = table["model"].unique()
    for number, (name, color) in enumerate(series_colors(names).items()):
        rows = table[table["model"] == name]
        means = rows.groupby("images_per_class")[metric].mean()
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(
            means.index,
            means,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            label=readable(name),
        )
        ax.scatter(
            rows["images_per_class"],
            rows[metric],
            s=9,
            color=color,
            alpha=0.5,
            linewidths=0,
            marker=marker,
        )
    use_log_axis(ax)
    ax.set_xticks(sorted(table["images_per_class"].unique()))
    ax.minorticks_off()
    ax.set(xlabel="training images of each class", ylabel=readable(metric))
    ax.grid(True)
    legend_below(ax, min(len(names), 4))
    return ax
