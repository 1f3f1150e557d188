"""Models and variants side by side: scores, differences with their intervals, and scores against
cost, compression, corruption and attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, PercentFormatter

from vitlab.errors import UserError
from vitlab.extremes import MAX_SHOWN, describe_best, find_best
from vitlab.plots.interactive import Interactive, plotly_text, scatter
from vitlab.plots.style import (
    GREY,
    MINUS,
    PALETTE,
    SERIES,
    draw_band,
    draw_intervals,
    draw_level,
    draw_lines,
    draw_reference,
    few_ticks,
    legend_below,
    name_rows,
    new_axes,
    new_figure,
    note_above,
    panel_grid,
    readable,
    series_colors,
    series_looks,
    shared_legend,
    use_log_axis,
)
from vitlab.registry import unknown

MAX_PAIRS = 28  # of eight models
CLEAN = "clean"


def iplot_comparison(runs_metrics: pd.DataFrame, metrics: Sequence[str]) -> Interactive:
    """A panel for each metric: a dot for each seed of each model, and a bar for their mean. In
    HTML, point at a dot to read model, seed and value.

    runs_metrics: a row for each run and metric, with columns model, seed, metric, value. Of more
    than a dozen models, those with the best mean of the first metric are shown."""
    _check_metrics(runs_metrics, metrics)
    means = runs_metrics.groupby(["metric", "model"], sort=False)["value"].mean()
    best = find_best(means[metrics[0]])
    table = runs_metrics[runs_metrics["model"].isin(best)]
    table = pd.concat([table[table["metric"] == name] for name in metrics])
    table = table.assign(row=table["model"].map(best.index), metric=table["metric"].map(readable))
    shown = scatter(
        table,
        "value",
        "row",
        "model",
        series_colors(best),
        panel="metric",
        columns=2 if len(metrics) in (2, 4) else 3,
        height=0.7 + 0.28 * len(best),
        hover=["model", "seed", "value"],
        sharey=True,
    )
    for ax, name in zip(shown.static.axes, metrics, strict=True):
        for place, (model, color) in enumerate(series_colors(best).items()):
            bar = {"marker": "|", "color": color, "linewidths": 2.4}
            ax.scatter(means[name, model], place, 180, **bar)
        ax.margins(x=0.15)
        name_rows(ax, best)
    shown.static.supxlabel("dot: one seed, bar: mean over seeds", fontsize=8)
    note_above(shown.static, describe_best(len(best), len(means[metrics[0]]), readable(metrics[0])))
    names = {"tickvals": list(range(len(best))), "ticktext": list(map(plotly_text, best))}
    shown.figure.update_yaxes(range=[len(best) - 0.5, -0.5], title=None, automargin=True, **names)
    shown.figure.update_xaxes(matches=None, showticklabels=True, title=None)
    return shown


def _check_metrics(table: pd.DataFrame, metrics: Sequence[str]) -> None:
    there = list(table["metric"].unique())
    for name in metrics:
        if name not in there:
            raise UserError(unknown("metric", name, there))


def plot_differences(pairwise_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The difference of each pair of models with its interval and a line at zero.

    Dots are filled where the verdict finds a difference. After Holm's correction a dot may be
    hollow although the interval, which is that of one pair, leaves out zero. Of more than 28 pairs,
    those of the best model with the next dozen are shown."""
    table, note = _cut_pairs(pairwise_table)
    better = table["verdict"].astype(str).str.endswith("better")
    look = {"filled": better, "color": np.where(better, PALETTE[2], GREY), "note": table["verdict"]}
    ax = new_axes(ax, 0.9 + 0.27 * len(table))
    draw_reference(ax)
    draw_intervals(ax, table.assign(value=table["difference"], **look))
    name_rows(ax, list(table["model_b"] + f" {MINUS} " + table["model_a"]), ticks=7)
    metric = readable(table["metric"].iloc[0])
    ax.set_xlabel(f"difference in {metric} (right of 0: the first-named is better)")
    note_above(ax.figure, note)
    return ax


def plot_ranking(table: pd.DataFrame, metric: str, ax: Axes | None = None) -> Axes:
    """The score of each model with its interval, best first. table: model, value, low, high."""
    table = table.iloc[: MAX_SHOWN + 1]
    ax = new_axes(ax, 0.9 + 0.27 * len(table))
    draw_intervals(ax, table.assign(filled=True, color=PALETTE[0], note=""))
    name_rows(ax, list(table["model"]), ticks=7)
    ax.set_xlabel(readable(metric))
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
    names = {"difference": "value", "lowest": "low", "highest": "high"}
    table = table[["model", "metric", *names]].rename(columns=names)
    first = table[table["metric"] == metrics[0]].set_index("model")["value"]
    models = find_best(first)
    axes = panel_grid(len(metrics), 3, 0.75 + 0.2 * len(models), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        draw_reference(ax)
        draw_intervals(ax, table[table["metric"] == metric].set_index("model").reindex(models))
        ax.set_title(readable(metric))
        ax.margins(x=0.12)
        name_rows(ax, models)
    label = "difference to the baseline; dot: mean, line: lowest to highest seed"
    axes[0].figure.supxlabel(label, fontsize=8)
    note = describe_best(len(models), len(first), readable(metrics[0]), "methods")
    note_above(axes[0].figure, note)
    return axes


# A score against what it costs


def iplot_cost(table: pd.DataFrame) -> Interactive:
    """ROC AUC against the training time, a dot for each run, coloured by model. In HTML, point at
    a dot to read its numbers.

    table: a row for each run with the columns model, seed, training_seconds, roc_auc and
    parameters. Of more than a dozen models, the best are drawn."""
    means = table.groupby("model", sort=False)["roc_auc"].mean()
    best = find_best(means)
    hover = ["model", "seed", "training_seconds", "roc_auc", "parameters"]
    shown = _draw_costs(table[table["model"].isin(best)], "training_seconds", "roc_auc", hover, {})
    note_above(shown.static, describe_best(len(best), len(means), "ROC AUC"))
    return shown


def iplot_pareto(benchmark_table: pd.DataFrame, batch_size: int) -> Interactive:
    """Score with its interval against the median latency, a dot for each variant, with its size on
    disk in the legend. In HTML, point at a dot to read its numbers.

    batch_size: which rows to draw. The line joins the Pareto front: the variants that no other one
    beats in both time and score."""
    there = sorted(benchmark_table["batch_size"].unique().tolist())
    if batch_size not in there:
        raise UserError(unknown("batch_size", str(batch_size), list(map(str, there))))
    rows = benchmark_table[benchmark_table["batch_size"] == batch_size].reset_index(drop=True)
    size = rows["size_mb"].map("{:.3g} MB".format).replace("nan MB", "unknown size")
    rows = rows.assign(model=rows["variant"] + ", " + size)
    labels = {"p50_ms": latency_label(rows), "value": readable(rows["metric"].iloc[0])}
    labels |= {"model": "variant", "low": "95% interval from", "high": "to"}
    hover = ["model", "p50_ms", "value", "low", "high"]
    shown = _draw_costs(rows, "p50_ms", "value", hover, labels)
    front = rows[find_front(rows["p50_ms"].to_numpy(), rows["value"].to_numpy())]
    front = front.sort_values("p50_ms")
    line = {"color": GREY, "linewidth": 1.2, "alpha": 0.5, "zorder": 0}
    shown.static.axes[0].step(front["p50_ms"], front["value"], where="post", **line)
    line = {"color": "grey", "width": 1.5, "shape": "hv"}
    steps = {"mode": "lines", "name": "Pareto front", "hoverinfo": "skip"}
    shown.figure.add_scatter(x=front["p50_ms"], y=front["value"], line=line, **steps)
    return shown


def _draw_costs(
    table: pd.DataFrame, x: str, y: str, hover: Sequence[str], labels: Mapping[str, str]
) -> Interactive:
    """Dots coloured by the column model, over a logarithmic axis of costs."""
    colors = series_colors(table["model"].unique())
    shown = scatter(table, x, y, "model", colors, hover=hover, height=3.6, labels=labels)
    ax = shown.static.axes[0]
    use_log_axis(ax)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.margins(x=0.1, y=0.15)
    ax.set(xlabel=labels.get(x, readable(x)), ylabel=labels.get(y, readable(y)))
    ax.grid(True)
    legend_below(ax, 3)
    ticks = LogLocator(subs=(1, 2, 5)).tick_values(table[x].min(), table[x].max())
    names = [f"{tick:g}" for tick in ticks]
    shown.figure.update_xaxes(type="log", tickvals=ticks, ticktext=names)
    return shown


def find_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Whether each (N,) is on the Pareto front: no other one costs at most as much and is worth at
    least as much, one of the two strictly.

    >>> find_front(np.array([1, 2, 3]), np.array([5, 7, 6]))
    array([ True,  True, False])
    """
    # [i, j]: i against j
    cheaper, better = cost[:, None] <= cost[None], value[:, None] >= value[None]
    strictly = (cost[:, None] < cost[None]) | (value[:, None] > value[None])
    return ~(cheaper & better & strictly).any(axis=0)


def latency_label(rows: pd.DataFrame) -> str:
    """What the axis of p50_ms shows."""
    threads = int(rows["threads"].iloc[0])
    words = f"{threads} thread{'s' * (threads != 1)}"
    return f"median latency (ms, batch {rows['batch_size'].iloc[0]}, {words})"


def plot_pruning_curve(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The score of pruned models without further training, by the share of the multiply-adds that
    is left; a line with its 95 % interval for each importance.

    table: a `pruning_curve_table`. The dotted line is the model itself."""
    ax = new_axes(ax, 2.9, 5.2)
    table = table.assign(importance=table["importance"].map(readable))
    looks = series_looks(table["importance"].unique())
    draw_lines(ax, table, "multiply_adds", "importance", looks)
    draw_level(ax, table.sort_values("keep")["value"].iloc[-1])
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="multiply-adds left", ylabel=readable(table["metric"].iloc[0]))
    legend_below(ax, min(len(looks), 4), title="importance by")
    return ax


def plot_merging_curve(table: pd.DataFrame) -> np.ndarray:
    """The score, and the latency, by the number of tokens merged in a block: two panels.

    table: a `merging_curve_table`. Dotted lines are the model that merges none; the share beside a
    time is of its time."""
    rows = table.sort_values("merged")
    axes = panel_grid(2, 2, 2.5, sharex=True)
    line = {"color": PALETTE[0], "marker": "o", "markersize": 4.5, "linewidth": 1.2}
    draw_band(axes[0], rows["merged"], rows, **line)
    axes[1].plot(rows["merged"], rows["p50_ms"], **line)
    above = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
    for row in rows.iloc[1:].itertuples():
        axes[1].annotate(f"{row.ratio:.0%}", (row.merged, row.p50_ms), (0, 5), **above)
    for ax, name in zip(axes, ("value", "p50_ms"), strict=True):
        draw_level(ax, rows[name].iloc[0])
        ax.set_xticks(rows["merged"])
        ax.grid(True)
    axes[1].set_ylim(0, 1.15 * rows["p50_ms"].max())
    axes[0].set_title(readable(rows["metric"].iloc[0]))
    axes[1].set_title(latency_label(rows))
    axes[0].figure.supxlabel("tokens merged in a block", fontsize=8)
    return axes


# A score under corruptions and attacks


def plot_robustness(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame], metrics: Sequence[str]
) -> np.ndarray:
    """Metrics (rows) against the severity of each corruption (columns) with their intervals: an
    array of axes (rows, columns).

    Severity 0 is the clean image. tables: one `robustness_table`, or one for each model;
    corruptions that a model lacks are left out. Of more than a dozen models, the best on clean
    images are drawn."""
    named = dict(tables) if isinstance(tables, Mapping) else {"": tables}
    table = pd.concat([part.assign(model=name) for name, part in named.items()])
    _check_metrics(table, metrics)
    first = table[(table["corruption"] == CLEAN) & (table["metric"] == metrics[0])]
    clean = first.set_index("model")["value"]
    looks = series_looks(find_best(clean))
    shared = table.groupby("corruption", sort=False)["model"].nunique() == len(named)
    corruptions = [name for name in shared[shared].index if name != CLEAN]
    figure = new_figure(0.7 + 1.25 * len(metrics) + 0.2 * (len(named) > 1))
    axes = figure.subplots(len(metrics), len(corruptions), squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for ax, corruption in zip(row, corruptions, strict=True):
            own = table["corruption"].isin((CLEAN, corruption)) & (table["metric"] == metric)
            draw_lines(ax, table[own], "severity", "model", looks)
            if metric == "overconfidence":
                draw_level(ax)
            ax.yaxis.set_major_locator(few_ticks(4))
        row[0].set_ylabel(readable(metric))
    for ax, corruption in zip(axes[0], corruptions, strict=True):
        ax.set_title(readable(corruption), fontsize=8)
    axes[0, 0].set_xticks(sorted(table["severity"].unique()))
    for ax in axes[-1]:
        ax.set_xlabel("severity", fontsize=8)
    if len(named) > 1:
        shared_legend(axes[0, :1])
    note_above(figure, describe_best(len(looks), len(clean), f"clean {readable(metrics[0])}"))
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
