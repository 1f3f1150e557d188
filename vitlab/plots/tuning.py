"""What a search for training arguments found: from the tables of trials and of importance, never
from the study.

A table of trials has a row for each: trial, state, value, best_epoch, epochs, seconds, then one
column for each argument that was searched, and note. A metric that is a loss is best when low, any
other when high.

`optuna.visualization` is not used: it draws all arguments in one row, wider than a page, and its
matplotlib half changes the style of all later figures. The figures of many runs show trials too.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vitlab.plots.interactive import Interactive, dress
from vitlab.plots.many_runs import iplot_run_facets, iplot_run_parallel
from vitlab.plots.style import GREY, SERIES, legend_below, new_axes, readable

FIXED = ("trial", "state", "value", "best_epoch", "epochs", "seconds", "note")
FINISHED, BEST = SERIES[0], SERIES[1]
TOO_FEW = "Importance needs at least two finished trials that differ in their score."


def plot_trials(trials: pd.DataFrame, metric: str, ax: Axes | None = None) -> Axes:
    """The score of each trial in the order in which they were begun, and the best so far. Failed
    ones have no score.
    """
    ax = new_axes(ax, 3.2)
    finished, pruned, failed = (_rows(trials, state) for state in ("finished", "pruned", "failed"))
    ax.scatter(
        finished["trial"], finished["value"], s=24, color=FINISHED, linewidths=0, label="finished"
    )
    if len(pruned):
        ax.scatter(
            pruned["trial"],
            pruned["value"],
            s=24,
            color=GREY,
            marker="x",
            label="pruned (best until then)",
        )
    so_far = best_so_far(trials, metric)
    ax.step(so_far["trial"], so_far["value"], where="post", color=BEST, label="best so far")
    if len(failed):
        ax.plot(
            failed["trial"],
            np.zeros(len(failed)),
            "^",
            color=GREY,
            markersize=4,
            clip_on=False,
            transform=ax.get_xaxis_transform(),
            label="failed",
        )
    ax.set(xlabel="trial", ylabel=readable(metric))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(axis="y")
    legend_below(ax, 4)
    return ax


def iplot_trials(trials: pd.DataFrame, metric: str) -> Interactive:
    """Point at a trial to read its arguments. Arguments as in `plot_trials`."""
    static = plot_trials(trials, metric).figure
    figure = go.Figure()
    for state, color, symbol in (("finished", FINISHED, "circle"), ("pruned", "grey", "x")):
        rows = _rows(trials, state)
        figure.add_scatter(
            x=rows["trial"],
            y=rows["value"],
            text=_describe(rows),
            mode="markers",
            name=state,
            marker={"color": color, "symbol": symbol, "size": 8},
            hovertemplate="%{text}<extra></extra>",
        )
    so_far = best_so_far(trials, metric)
    figure.add_scatter(
        x=so_far["trial"],
        y=so_far["value"],
        mode="lines",
        name="best so far",
        hoverinfo="skip",
        line={"color": BEST, "width": 2, "shape": "hv"},
    )
    figure.update_layout(xaxis={"title": "trial", "tickformat": "d"}, yaxis_title=readable(metric))
    return Interactive(dress(figure), static)


def best_so_far(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Columns trial and value: after each trial from the first finished one on, the best value of
    the finished ones.
    """
    table = (
        trials[["trial", "value"]]
        .assign(value=trials["value"].where(trials["state"] == "finished"))
        .sort_values("trial")
    )
    table["value"] = (
        table["value"].cummin() if _is_loss(metric) else table["value"].cummax()
    ).ffill()
    return table.dropna().reset_index(drop=True)


def plot_importance(importance: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A bar for each argument, the greatest on top. Takes an `importance_table`; for an empty one
    the figure says so in words.
    """
    ax = new_axes(ax, 0.8 + 0.28 * max(3, len(importance)))
    if importance.empty:
        ax.set_axis_off()
        ax.text(0.5, 0.5, TOO_FEW, ha="center", va="center", transform=ax.transAxes)
        return ax
    bars = ax.barh(
        [readable(name) for name in importance["argument"]],
        importance["importance"],
        color=FINISHED,
    )
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlabel="share of the differences in score", xlim=(0, 1.15 * importance["importance"].max())
    )
    ax.tick_params(axis="y", length=0)
    return ax


def iplot_arguments(trials: pd.DataFrame, metric: str) -> Interactive:
    """A panel for each argument: the score of every finished trial against its value there. Point
    at a trial to read it.
    """
    return iplot_run_facets(*_as_runs(trials, metric), few=0)


def iplot_parallel(trials: pd.DataFrame, metric: str) -> Interactive:
    """A line for each finished trial through its arguments and its score. Drag along an axis to
    keep trials that pass there.
    """
    return iplot_run_parallel(*_as_runs(trials, metric), few=0)


def _as_runs(trials: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, str, list[str]]:
    """The finished trials as a table of runs, with the metric and the arguments."""
    finished = _rows(trials, "finished").rename(columns={"value": metric})
    names = [
        f"trial {trial} (epoch {epoch})"
        for trial, epoch in zip(finished["trial"], finished["best_epoch"], strict=True)
    ]
    # the table begins with the best
    kinds = np.where(finished.index == 0, "best trial", "other trials")
    return finished.assign(run=pd.Series(names, dtype=str), model=kinds), metric, _arguments(trials)


def _rows(trials: pd.DataFrame, state: str) -> pd.DataFrame:
    return trials[trials["state"] == state].reset_index(drop=True)


def _arguments(trials: pd.DataFrame) -> list[str]:
    return [name for name in trials.columns if name not in FIXED]


def _is_loss(metric: str) -> bool:
    return metric.endswith("loss")


def _describe(trials: pd.DataFrame) -> list[str]:
    arguments = _arguments(trials)
    return [
        f"trial {row['trial']}: {row['value']:.4f} (epoch {row['best_epoch']})<br>"
        + "<br>".join(
            f"{readable(name)} {row[name]:.3g}"
            if isinstance(row[name], float)
            else f"{readable(name)} {row[name]}"
            for name in arguments
        )
        for row in trials.to_dict("records")
    ]
