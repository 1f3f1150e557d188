"""How training went, what it cost, how many images it needs, and what a search for training
arguments found.

A table of trials has a row for each: trial, state, value, best_epoch, epochs, seconds, then one
column for each argument that was searched, and note. A metric that is a loss is best when low, any
other when high. `optuna.visualization` is not used: it draws all arguments in one row, wider than a
page, and its matplotlib half changes the style of all later figures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitlab.errors import UserError
from vitlab.extremes import MAX_LINES, describe_best, find_best
from vitlab.plots.interactive import Interactive, dress, plotly_text
from vitlab.plots.runs import iplot_run_facets, iplot_run_parallel
from vitlab.plots.style import (
    GREY,
    SERIES,
    check_table,
    class_colors,
    empty_axes,
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
NO_ARGUMENTS = ("trial", "state", "value", "best_epoch", "epochs", "seconds", "note")
FINISHED, BEST = SERIES[0], SERIES[1]


def plot_history(history: pd.DataFrame, monitor: str | None = None) -> np.ndarray:
    """Losses, validation scores and the recall of each class over the epochs of one run: an array
    of axes, a panel for each of the three that the history has.

    Of more than five classes the mean, the range, and the one that ends lowest are drawn. history:
    a row for each epoch. monitor: the column whose best epoch is marked in every panel."""
    losses = [name for name in LOSSES if name in history]
    scores = [name for name in SCORES if name in history]
    recalls = [name for name in history.columns if name.startswith("val_recall_")]
    panels = {"loss": losses, "validation scores": scores, "validation recall": recalls}
    panels = {title: columns for title, columns in panels.items() if columns}
    axes = panel_grid(len(panels), 3, 2.9, sharex=True)
    for ax, (title, columns) in zip(axes, panels.items(), strict=True):
        if title == "validation recall":
            _draw_recalls(ax, history, columns)
        else:
            for name, color in series_colors(columns).items():
                label = readable(name).removesuffix(" loss").removeprefix("validation ")
                _draw(ax, history, name, color, label or name)
        if title != "loss":
            ax.set_ylim(max(0, ax.get_ylim()[0] - 0.02), 1.01)
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        ax.grid(axis="y")
        legend_below(ax, 1)
    if monitor is not None:
        best = best_epoch(history, monitor)
        for ax in axes:
            ax.axvline(best, color=GREY, linewidth=0.8, linestyle=":")
        note_above(axes[0].figure, f"dotted: epoch {best:g}, the best by {readable(monitor)}")
    return axes


def _draw_recalls(ax: Axes, history: pd.DataFrame, recalls: list[str]) -> None:
    if len(recalls) <= MAX_LINES:
        for name, color in class_colors(recalls).items():
            _draw(ax, history, name, color, legend_name(name.removeprefix("val_recall_")))
        return
    values = history[recalls]
    lowest = values.iloc[-1].idxmin()
    low, high = values.min(axis=1), values.max(axis=1)
    area = {"color": GREY, "alpha": 0.2, "linewidth": 0}
    ax.fill_between(history["epoch"], low, high, label="all classes", **area)
    _draw(ax, history.assign(mean=values.mean(axis=1)), "mean", GREY, f"mean of {len(recalls)}")
    label = f"lowest at the end: {lowest.removeprefix('val_recall_')}"
    _draw(ax, history, lowest, class_colors(recalls)[lowest], label)


def _draw(ax: Axes, history: pd.DataFrame, column: str, color: str, label: str) -> None:
    marker = "o" if len(history) < 3 else None
    ax.plot(
        history["epoch"], history[column], color=color, label=label, marker=marker, markersize=3
    )


def best_epoch(history: pd.DataFrame, monitor: str) -> float:
    """The epoch of the highest `monitor`, or of the lowest if that is a loss."""
    if monitor not in history.columns:
        raise UserError(unknown("column", monitor, list(history.columns)))
    row = history[monitor].idxmin() if monitor.endswith("loss") else history[monitor].idxmax()
    return history["epoch"][row]


def iplot_history(
    histories: Mapping[str, pd.DataFrame | list[pd.DataFrame]], metric: str = "val_roc_auc"
) -> Interactive:
    """One metric over the epochs for several models: a thin line for each seed, a thick one for
    their mean. In HTML, point at an epoch to read every model.

    histories: for each model its history, or a list with the history of each seed. The mean ends
    with the shortest run. Of more than a dozen models, those with the best mean are drawn."""
    runs, means = _stack_histories(histories, metric)
    best = find_best(means.groupby("model", sort=False)[metric].max())
    runs, means = (table[table["model"].isin(best)] for table in (runs, means))
    colors = series_colors(best)
    ax = new_axes(None, 3.2)
    for (model, _), run in runs.groupby(["model", "run"], sort=False):
        ax.plot(run["epoch"], run[metric], color=colors[model], linewidth=0.7, alpha=0.7)
    for model, mean in means.groupby("model", sort=False):
        marker = "o" if len(mean) < 3 else None
        style = {"color": colors[model], "linewidth": 2, "marker": marker, "markersize": 4}
        label = legend_name(model) + mean["seeds"].iloc[0]
        ax.plot(mean["epoch"], mean[metric], label=label, **style)
    ax.set(xlabel="epoch", ylabel=readable(metric))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(axis="y")
    legend_below(ax, 3, title="thick: mean over seeds" if means["seeds"].any() else None)
    note_above(ax.figure, describe_best(len(best), len(histories), readable(metric)))

    shown = {plotly_text(model): color for model, color in colors.items()}
    options = {"x": "epoch", "y": metric, "color": "model", "color_discrete_map": shown}
    runs, means = (
        table.assign(model=table["model"].map(plotly_text)).rename_axis(None)
        for table in (runs, means)
    )
    thin = px.line(runs, line_group="run", **options)
    thin.update_traces(line_width=1, opacity=0.5, showlegend=False, hoverinfo="skip")
    thin.update_traces(hovertemplate=None)
    thick = px.line(means, markers=True, **options)
    thick.update_traces(line_width=2.5, hovertemplate="%{y:.4f}")
    thick.for_each_trace(
        lambda trace: trace.update(
            name=trace.name + means.loc[means["model"] == trace.name, "seeds"].iloc[0]
        )
    )
    figure = go.Figure([*thin.data, *thick.data])
    figure.update_layout(hovermode="x unified", xaxis_title="epoch", yaxis_title=readable(metric))
    return Interactive(dress(figure), ax.figure)


def _stack_histories(
    histories: Mapping[str, pd.DataFrame | list[pd.DataFrame]], metric: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All runs (model, run, epoch, metric), and the mean of each model over the epochs that all of
    its runs reached (model, epoch, metric, seeds: " (3 seeds)", or empty for one).
    """
    runs, means = [], []
    for model, given in histories.items():
        tables = [given] if isinstance(given, pd.DataFrame) else list(given)
        for number, table in enumerate(tables):
            if metric not in table.columns:
                hint = f"It was looked for in the history of {model}."
                raise UserError(unknown("column", metric, list(table.columns), hint))
            runs.append(table[["epoch", metric]].assign(model=model, run=number))
        mean = pd.concat(tables).groupby("epoch")[metric].agg(["mean", "size"])
        mean = mean.loc[mean["size"] == len(tables), "mean"].rename(metric).reset_index()
        seeds = f" ({len(tables)} seeds)" if len(tables) > 1 else ""
        means.append(mean.assign(model=model, seeds=seeds))
    return pd.concat(runs, ignore_index=True), pd.concat(means, ignore_index=True)


def plot_cost(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """ROC AUC against the training time: a dot for each run, its area growing with the number of
    parameters.

    table: a row for each run with the columns model, training_seconds, roc_auc and parameters. Of
    more than a dozen models, the best are drawn."""
    x, y, size = "training_seconds", "roc_auc", "parameters"
    check_table(table, ("model", x, y, size), "table of costs")
    total = table["model"].nunique()
    best = find_best(table.groupby("model", sort=False)[y].mean())
    table = table[table["model"].isin(best)]
    ax = new_axes(ax, 3.2)
    for name, look in series_looks(best).items():
        runs = table[table["model"] == name]
        area = 25 + 375 * runs[size] / table[size].max()
        label = f"{legend_name(name)}: {short_number(runs[size].mean())} {readable(size)}"
        ax.scatter(runs[x], runs[y], s=area, alpha=0.75, linewidths=0, label=label, **look)
    low, high = table[x].min(), table[x].max()
    if 0 < 20 * low < high:
        use_log_axis(ax)
        ax.set_xlim(low / 2, high * 2)
    else:
        ax.set_xlim(0, high * 1.12)
    ax.margins(y=0.2)
    ax.set(xlabel=readable(x), ylabel=readable(y))
    ax.grid(True)
    for handle in legend_below(ax, 2).legend_handles:
        handle.set_sizes([40])
    note_above(ax.figure, describe_best(len(best), total, readable(y)))
    return ax


def short_number(value: float) -> str:
    """
    >>> short_number(3_413_482)
    '3.41 M'
    """
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"


def plot_data_efficiency(
    table: pd.DataFrame, metric: str = "accuracy", ax: Axes | None = None
) -> Axes:
    """A score by the number of training images per class: a line through the means of each model, a
    dot for each seed.

    table: columns model, images_per_class (above 0), seed and the metric."""
    check_table(table, ("model", "images_per_class", "seed", metric), "table of data efficiency")
    ax = new_axes(ax, 2.9, 5.2)
    looks = series_looks(table["model"].unique())
    for name, look in looks.items():
        rows = table[table["model"] == name]
        means = rows.groupby("images_per_class")[metric].mean()
        ax.plot(means.index, means, markersize=5, linewidth=1.2, label=readable(name), **look)
        ax.scatter(rows["images_per_class"], rows[metric], s=9, alpha=0.5, linewidths=0, **look)
    use_log_axis(ax)
    ax.set_xticks(sorted(table["images_per_class"].unique()))
    ax.minorticks_off()
    ax.set(xlabel="training images per class", ylabel=readable(metric))
    ax.grid(True)
    legend_below(ax, min(len(looks), 4))
    return ax


def iplot_trials(trials: pd.DataFrame, metric: str) -> Interactive:
    """The score of each trial in the order in which they were started, and the best so far. Failed
    ones have no score. In HTML, point at a trial to read its arguments.
    """
    best = best_so_far(trials, metric)
    static = _draw_trials(trials, best, metric)
    scored = trials[trials["state"].isin(["finished", "pruned"])]
    texts = {
        name: scored[name].map(plotly_text)
        for name in _arguments(trials)
        if not pd.api.types.is_numeric_dtype(scored[name])
    }
    figure = px.scatter(
        scored.assign(**texts),
        x="trial",
        y="value",
        color="state",
        symbol="state",
        hover_data=["best_epoch", *_arguments(trials)],
        color_discrete_map={"finished": FINISHED, "pruned": "grey"},
        symbol_map={"finished": "circle", "pruned": "x"},
        labels={name: readable(name) for name in trials.columns} | {"value": readable(metric)},
    )
    figure.update_traces(marker_size=8)
    line = {"color": BEST, "width": 2, "shape": "hv"}
    figure.add_scatter(
        x=best["trial"], y=best["value"], mode="lines", name="best so far", line=line
    )
    figure.update_xaxes(tickformat="d", nticks=min(10, len(trials)))
    return Interactive(dress(figure).update_layout(legend_title=None), static)


def _draw_trials(trials: pd.DataFrame, best: pd.DataFrame, metric: str) -> Figure:
    ax = new_axes(None, 3.2)
    finished, pruned, failed = (
        trials[trials["state"] == state] for state in ("finished", "pruned", "failed")
    )
    ax.plot(finished["trial"], finished["value"], "o", color=FINISHED, label="finished")
    if len(pruned):
        ax.plot(pruned["trial"], pruned["value"], "x", color=GREY, label="pruned (best until then)")
    ax.step(best["trial"], best["value"], where="post", color=BEST, label="best so far")
    if len(failed):
        axis = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(failed["trial"], 0 * failed["trial"], "^", color=GREY, label="failed", **axis)
    for line in ax.lines:
        line.set_markersize(4.5)
    ax.set(xlabel="trial", ylabel=readable(metric))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(axis="y")
    legend_below(ax, 4)
    return ax.figure


def best_so_far(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Columns trial and value: after each trial from the first finished one on, the best value of
    the finished ones.
    """
    finished = trials["value"].where(trials["state"] == "finished")
    table = trials[["trial"]].assign(value=finished).sort_values("trial")
    best = table["value"].cummin() if metric.endswith("loss") else table["value"].cummax()
    return table.assign(value=best.ffill()).dropna().reset_index(drop=True)


def plot_importance(importance: pd.DataFrame) -> Axes:
    """A bar for each argument, the greatest on top. Takes an `importance_table`; for an empty one
    the figure says so in words.
    """
    if importance.empty:
        return empty_axes("Importance needs at least two finished trials with different scores.")
    ax = new_axes(None, 0.8 + 0.28 * max(3, len(importance)))
    names = importance["argument"].map(readable)
    bars = ax.barh(names, importance["importance"], color=FINISHED)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlabel="share of the variance of the score", xlim=(0, 1.15 * importance["importance"].max())
    )
    ax.tick_params(axis="y", length=0)
    return ax


def iplot_arguments(trials: pd.DataFrame, metric: str) -> Interactive:
    """A panel for each argument: the score of every finished trial against its value there. In
    HTML, point at a trial to read it.
    """
    return iplot_run_facets(*_as_runs(trials, metric), few=0)


def iplot_parallel(trials: pd.DataFrame, metric: str) -> Interactive:
    """A line for each finished trial through its arguments and its score. In HTML, drag along an
    axis to keep trials that pass there.
    """
    return iplot_run_parallel(*_as_runs(trials, metric), few=0)


def _as_runs(trials: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, str, list[str]]:
    """The finished trials, the best first, as a table of runs; the metric; the arguments."""
    finished = trials[trials["state"] == "finished"].reset_index(drop=True)
    finished = finished.rename(columns={"value": metric})
    names = [
        f"trial {trial} (epoch {epoch})"
        for trial, epoch in zip(finished["trial"], finished["best_epoch"], strict=True)
    ]
    # the table begins with the best
    kinds = np.where(finished.index == 0, "best trial", "other trials")
    return finished.assign(run=pd.Series(names, dtype=str), model=kinds), metric, _arguments(trials)


def _arguments(trials: pd.DataFrame) -> list[str]:
    return [name for name in trials.columns if name not in NO_ARGUMENTS]
