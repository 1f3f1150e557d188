"""Hundreds of runs, or the trials of a search, at once: which settings go with a good score, and
which runs these are.

Figures of runs take a table with a row for each run, as `vitlab.run_tables.run_table` gives it:
columns run, model, seed, `parameters.NAME`, `facts.NAME`, `metrics.NAME`. `metric` is one of these
columns, such as `metrics.roc_auc`; runs that lack it are left out. Those of trials take a
`trials_table`: trial, state, value, best_epoch, epochs, seconds, then one column for each argument
that was searched, and note. A metric that is a loss, an error or a time is best when low, any other
when high.

`optuna.visualization` is not used: it draws all arguments in one row, wider than a page, and its
matplotlib half changes the style of all later figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from uuid import uuid4

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vitlab.errors import UserError
from vitlab.markup import escape, pipe_table
from vitlab.plots.interactive import Interactive, plotly_text, scatter
from vitlab.plots.style import (
    GREY,
    SERIES,
    empty_axes,
    few_ticks,
    legend_below,
    new_axes,
    readable,
    series_colors,
    shared_legend,
    shorten,
    use_log_axis,
)
from vitlab.registry import unknown

BY_RECIPE = "default"  # what a parameter is called that was left to the model's recipe
MAX_CHOICES = 8  # values of a column that are drawn as choices; the rarest beyond are pooled
FEW_NUMBERS = 6  # different values of a parameter up to which its numbers are drawn as choices
OTHERS = "others"
LOG_FROM = 20  # times the lowest value: numbers that span more are drawn on a logarithmic axis
MAX_MODELS = 7  # that the legend tells apart; the others are pooled
ACROSS = 3  # panels side by side
MAX_ROWS = 500  # of the table on a web page
ROWS_ON_PAPER = 20
FRAGMENT = Path(__file__).with_name("runs_table.html")
FACTS = {
    "facts.train_s": "training time (s)",
    "facts.frozen_s": "time of the frozen part (s)",
    "facts.precision": "number format",
    "facts.parameters": "number of parameters",
    "wall_s": "total time (s)",
    "peak_memory_mb": "peak memory (MB)",
}
LOW_IS_BEST = re.compile(r"loss|error|brier|nll|ece|seconds|_s$|_ms$|memory")
NO_ARGUMENTS = ("trial", "state", "value", "best_epoch", "epochs", "seconds", "note")
FINISHED, BEST = SERIES[0], SERIES[1]


def iplot_run_facets(table: pd.DataFrame, metric: str, columns: Sequence[str]) -> Interactive:
    """A panel for each column: the score of every run against its value there, coloured by model.
    In HTML, point at a run to read what it is; click models in the legend to take them out.

    Parameters left to the recipe are a choice of their own."""
    runs = order_runs(table, metric, columns)
    counts = runs["model"].value_counts()
    kept = counts.index if len(counts) <= MAX_MODELS else counts.index[: MAX_MODELS - 1]
    model = runs["model"].where(runs["model"].isin(kept), OTHERS)
    runs = runs.assign(model=model, run=runs["run"].astype(str).str.split("/").str[-1])
    return _draw_facets(runs, metric, columns, FEW_NUMBERS)


def iplot_arguments(trials: pd.DataFrame, metric: str) -> Interactive:
    """A panel for each argument of a search: the score of every finished trial against its value
    there. In HTML, point at a trial to read it.
    """
    runs = trials[trials["state"] == "finished"].rename(columns={"value": metric})
    # the table begins with the best
    kinds = np.where(np.arange(len(runs)) == 0, "best trial", "other trials")
    names = [f"trial {row.trial} (epoch {row.best_epoch})" for row in runs.itertuples()]
    runs = runs.assign(model=kinds, run=pd.Series(names, runs.index, dtype=str))
    return _draw_facets(runs, metric, _arguments(trials), few=0)


def _draw_facets(runs: pd.DataFrame, metric: str, columns: Sequence[str], few: int) -> Interactive:
    if runs.empty:
        ax = empty_axes("There is no run to draw.")
        return Interactive("<p>There is no run to draw.</p>", ax.figure)
    axis = {name: place_values(runs[name], few) for name in columns}
    parts = []
    for name, (places, _) in axis.items():
        value = runs[name].astype(object).map(_as_text)
        part = runs[["run", "model", metric]].assign(x=places, value=value)
        parts.append(part.assign(panel=name_column(name)))
    colors = dict(sorted(series_colors(runs["model"].unique()).items()))
    shown = scatter(
        pd.concat(parts, ignore_index=True),
        "x",
        metric,
        "model",
        colors,
        panel="panel",
        columns=ACROSS,
        height=2.3,
        hover=["run", "value", metric],
        labels={"x": "", metric: name_column(metric)},
        sharey=True,
    )
    rows = -(-len(axis) // ACROSS)
    shown.figure.update_xaxes(matches=None, showticklabels=True, zeroline=False, tickfont_size=11)
    for place, (ax, (_, scale)) in enumerate(zip(shown.static.axes, axis.values(), strict=True)):
        # plotly.express counts rows from below
        cell = {"row": rows - place // ACROSS, "col": place % ACROSS + 1}
        if scale == "log":
            use_log_axis(ax)
            shown.figure.update_xaxes(type="log", dtick=1, exponentformat="power", **cell)
        elif scale == "linear":
            ax.xaxis.set_major_locator(few_ticks(4))
            shown.figure.update_xaxes(nticks=5, **cell)
        else:
            names = [shorten(text, 16) for text in scale]
            ends = (-0.6, len(names) - 0.4)
            ax.set_xticks(range(len(names)), names)
            ax.set_xlim(*ends)
            ax.tick_params(axis="x", length=0, rotation=35, labelsize=7)
            ticks = {"tickvals": list(range(len(names))), "range": ends, "tickangle": -35}
            shown.figure.update_xaxes(ticktext=list(map(plotly_text, names)), **ticks, **cell)
        if place % ACROSS == 0:
            ax.set_ylabel(name_column(metric))
    if list(columns) != ["model"]:
        shared_legend(shown.static.axes)
    return shown


def place_values(column: pd.Series, few: int) -> tuple[np.ndarray, str | list[str]]:
    """Where the values of a column lie on an axis, and its scale: "linear" or "log" for numbers
    with more than `few` different values, all of them known; anything else is a choice, whose
    values are spread at random around 0, 1, 2 ..., and the scale is the list of the choices.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _spread(column.cat.codes), list(map(str, column.cat.categories))
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    booleans = column.map(lambda value: isinstance(value, bool)).any()
    if numbers.notna().all() and not booleans and numbers.nunique() > few:
        wide = 0 < LOG_FROM * numbers.min() < numbers.max()
        return numbers.to_numpy(), "log" if wide else "linear"
    texts = column.map(_as_text)
    order = sorted(texts.unique(), key=_rank_choice)
    if len(order) > MAX_CHOICES:
        kept = set(texts.value_counts().index[: MAX_CHOICES - 1])
        texts = texts.where(texts.isin(kept), OTHERS)
        order = [*(text for text in order if text in kept), OTHERS]
    return _spread(texts.map(order.index)), order


def _spread(places: pd.Series) -> np.ndarray:
    """To both sides, so that dots do not hide others."""
    return places.to_numpy(float) + np.random.default_rng(0).uniform(-0.26, 0.26, len(places))


def _rank_choice(text: str) -> tuple:
    """What was left to the recipe first, numbers by size, words by the alphabet."""
    try:
        return text != BY_RECIPE, 0, float(text), text
    except ValueError:
        return text != BY_RECIPE, 1, 0.0, text


def _as_text(value) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)) or value == "":
        return BY_RECIPE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def name_column(column: str) -> str:
    """
    >>> name_column("metrics.roc_auc")
    'ROC AUC'
    """
    return FACTS.get(column) or readable(column.partition(".")[2] or column)


def order_runs(table: pd.DataFrame, metric: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The runs that have a value in this metric, the best first. UserError for an unknown metric or
    column.
    """
    for name in (metric, *columns):
        if name not in table:
            prefix = "metrics." if name == metric else ""
            there = [str(known) for known in table.columns if str(known).startswith(prefix)]
            raise UserError(unknown("column", name, there))
    kept = table[pd.to_numeric(table[metric], errors="coerce").notna()]
    ascending = bool(LOW_IS_BEST.search(metric))
    return kept.sort_values(metric, ascending=ascending, kind="stable", ignore_index=True)


def iplot_runs_table(table: pd.DataFrame, metric: str, columns: Sequence[str]) -> Interactive:
    """The runs by their score, the best first, then those without one, with these columns beside
    it. In HTML, click a header to sort, and type words to keep the runs that have them.

    At most 500 runs are shown; the others are counted. UserError for an unknown column."""
    scored = order_runs(table, metric, columns)
    runs = pd.concat([scored, table[pd.to_numeric(table[metric], errors="coerce").isna()]])
    shown = pd.DataFrame({"run": runs["run"].str.rpartition("/")[2]})
    shown[name_column(metric)] = [_write_score(run, metric) for run in runs.to_dict("records")]
    for name in columns:
        shown[name_column(name)] = runs[name].astype(object).map(_as_text)
    problem = runs["problem"].fillna("").map(lambda text: f": {text}" if text else "")
    shown["status"] = runs["status"] + problem
    left = max(0, len(shown) - MAX_ROWS)
    with pd.option_context("display.max_colwidth", None):
        rows = shown.head(MAX_ROWS).to_html(index=False, border=0)
    note = f", {left} more are not shown" if left else ""
    template = Template(FRAGMENT.read_text(encoding="utf-8"))
    html = template.substitute(name=f"vitlab-{uuid4()}", table=rows, left=note)
    rows = shown.head(ROWS_ON_PAPER).map(escape)
    text = "\n".join(pipe_table(list(map(escape, shown)), rows.to_numpy().tolist()))
    if len(shown) > ROWS_ON_PAPER:
        text += f"\n\nThe first {ROWS_ON_PAPER} of {len(shown)} runs; the web page has more."
    return Interactive(html, text + "\n")


def _write_score(run: dict, metric: str) -> str:
    value, low, high = (run.get(name) for name in (metric, f"{metric}.low", f"{metric}.high"))
    if value is None or pd.isna(value):
        return "-"
    known = low is not None and pd.notna(low)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if known else f"{value:.4g}"


# Trials of a search


def iplot_trials(trials: pd.DataFrame, metric: str) -> Interactive:
    """The score of each trial in the order in which they were started, and the best so far. Failed
    ones have no score. In HTML, point at a trial to read its arguments.
    """
    best = best_so_far(trials, metric)
    scored = trials[trials["state"].isin(["finished", "pruned"])]
    hover = ["trial", "value", "best_epoch", *_arguments(trials)]
    labels = {"value": readable(metric)}
    colors = {"finished": FINISHED, "pruned": "#737373"}
    shown = scatter(
        scored, "trial", "value", "state", colors, hover=hover, labels=labels, height=3.2
    )
    ax = shown.static.axes[0]
    ax.step(best["trial"], best["value"], where="post", color=BEST, label="best so far")
    failed = trials.loc[trials["state"] == "failed", "trial"]
    if len(failed):
        axis = {"transform": ax.get_xaxis_transform(), "clip_on": False, "markersize": 4.5}
        ax.plot(failed, 0 * failed, "^", color=GREY, label="failed", **axis)
    ax.set(xlabel="trial", ylabel=readable(metric))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend_below(ax, 4)
    line = {"color": BEST, "width": 2, "shape": "hv"}
    steps = {"mode": "lines", "name": "best so far", "hoverinfo": "skip"}
    shown.figure.add_scatter(x=best["trial"], y=best["value"], line=line, **steps)
    shown.figure.update_xaxes(tickformat="d", nticks=min(10, len(trials)))
    return shown


def best_so_far(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Columns trial and value: after each trial from the first finished one on, the best value of
    the finished ones.
    """
    finished = trials["value"].where(trials["state"] == "finished")
    table = trials[["trial"]].assign(value=finished).sort_values("trial")
    best = table["value"].cummin() if metric.endswith("loss") else table["value"].cummax()
    return table.assign(value=best.ffill()).dropna().reset_index(drop=True)


def plot_importance(importance: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A bar for each argument, the greatest on top. Takes an `importance_table`; for an empty one
    the figure says so in words.
    """
    if importance.empty:
        return empty_axes("Importance needs at least two finished trials with different scores.")
    ax = new_axes(ax, 0.8 + 0.28 * max(3, len(importance)))
    names = importance["argument"].map(readable)
    bars = ax.barh(names, importance["importance"], color=FINISHED)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="share of the variance of the score")
    ax.set_xlim(0, 1.15 * importance["importance"].max())
    ax.tick_params(axis="y", length=0)
    return ax


def _arguments(trials: pd.DataFrame) -> list[str]:
    return [name for name in trials.columns if name not in NO_ARGUMENTS]
