"""What a search for training arguments found: from the tables of trials and of importance, never from the study.

A table of trials has a row for each: trial, state, value, best_epoch, epochs, seconds, then one column for each argument that was
searched, and note. A metric that is a loss is best when low, any other when high.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from plotly.subplots import make_subplots

from vitlab.plots.interactive import Interactive, dress
from vitlab.plots.style import GREY, SEQUENTIAL, SERIES, few_ticks, legend_below, new_axes, panel_grid, readable, use_log_axis

FIXED = ("trial", "state", "value", "best_epoch", "epochs", "seconds", "note")
FINISHED, BEST = SERIES[0], SERIES[1]
LOG_FROM = 20  # times the lowest value: a column that spans more is drawn on a logarithmic axis
TOO_FEW = "Importance needs at least two finished trials that differ in their score."


def plot_trials(trials: pd.DataFrame, metric: str, ax: Axes | None = None) -> Axes:
    """The score of each trial in the order in which they were begun, and the best so far. Failed ones have no score."""
    ax = new_axes(ax, 3.2)
    finished, pruned, failed = (_rows(trials, state) for state in ("finished", "pruned", "failed"))
    ax.scatter(finished["trial"], finished["value"], s=24, color=FINISHED, linewidths=0, label="finished")
    if len(pruned):
        ax.scatter(pruned["trial"], pruned["value"], s=24, color=GREY, marker="x", label="pruned (best until then)")
    so_far = best_so_far(trials, metric)
    ax.step(so_far["trial"], so_far["value"], where="post", color=BEST, label="best so far")
    if len(failed):
        ax.plot(failed["trial"], np.zeros(len(failed)), "^", color=GREY, markersize=4, clip_on=False,
                transform=ax.get_xaxis_transform(), label="failed")  # fmt: skip
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
            x=rows["trial"], y=rows["value"], text=_describe(rows), mode="markers", name=state,
            marker={"color": color, "symbol": symbol, "size": 8}, hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    so_far = best_so_far(trials, metric)
    figure.add_scatter(
        x=so_far["trial"], y=so_far["value"], mode="lines", name="best so far", hoverinfo="skip",
        line={"color": BEST, "width": 2, "shape": "hv"},
    )  # fmt: skip
    figure.update_layout(xaxis={"title": "trial", "tickformat": "d"}, yaxis_title=readable(metric))
    return Interactive(dress(figure), static)


def best_so_far(trials: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Columns trial and value: after each trial from the first finished one on, the best value of the finished ones."""
    table = trials[["trial", "value"]].assign(value=trials["value"].where(trials["state"] == "finished")).sort_values("trial")
    table["value"] = (table["value"].cummin() if _is_loss(metric) else table["value"].cummax()).ffill()
    return table.dropna().reset_index(drop=True)


def plot_importance(importance: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """A bar for each argument, the greatest on top. Takes an `importance_table`; an empty one is said in words."""
    ax = new_axes(ax, 0.8 + 0.28 * max(3, len(importance)))
    if importance.empty:
        ax.set_axis_off()
        ax.text(0.5, 0.5, TOO_FEW, ha="center", va="center", transform=ax.transAxes)
        return ax
    bars = ax.barh([readable(name) for name in importance["argument"]], importance["importance"], color=FINISHED)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="share of the differences in score", xlim=(0, 1.15 * importance["importance"].max()))
    ax.tick_params(axis="y", length=0)
    return ax


def iplot_importance(importance: pd.DataFrame) -> Interactive:
    """Arguments as in `plot_importance`."""
    static = plot_importance(importance).figure
    figure = go.Figure()
    figure.add_bar(
        x=importance["importance"], y=[readable(name) for name in importance["argument"]], orientation="h",
        marker={"color": FINISHED}, texttemplate="%{x:.2f}", textposition="outside", cliponaxis=False,
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )  # fmt: skip
    if importance.empty:
        figure.add_annotation(text=TOO_FEW, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    shown = len(importance) > 0
    figure.update_xaxes(title="share of the differences in score" if shown else None, visible=shown)
    figure.update_yaxes(autorange="reversed", visible=shown)
    dress(figure).update_layout(margin={"l": 120, "b": 60}, height=120 + 34 * max(3, len(importance)))
    return Interactive(figure, static)


def plot_parallel(trials: pd.DataFrame, metric: str, ax: Axes | None = None) -> Axes:
    """A line for each finished trial through the values of its arguments, coloured by its score; the best one is thick."""
    ax = new_axes(ax, 3.4)
    finished = _rows(trials, "finished")
    columns = [*_arguments(trials), "value"]
    scales = [_Scale(finished[name]) for name in columns]
    heights = np.column_stack([scale.heights for scale in scales])  # (trials, columns), each within 0..1
    colors = Normalize(finished["value"].min(), finished["value"].max()) if len(finished) > 1 else Normalize(0, 1)
    order = finished["value"].to_numpy().argsort()
    for row in order[::-1] if _is_loss(metric) else order:
        best = row == 0  # the table begins with the best
        color = colormaps[SEQUENTIAL](colors(finished["value"].iloc[row]))
        ax.plot(heights[row], color=color, linewidth=2.6 if best else 1, alpha=1 if best else 0.7)
    for place, scale in enumerate(scales):
        ax.axvline(place, color="0.3", linewidth=0.8, zorder=0)
        for height, text in zip(scale.ticks, scale.labels, strict=True):
            ax.annotate(
                text, (place, height), (3, 0), textcoords="offset points", fontsize=6.5, va="center", zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.75, "linewidth": 0},
            )  # fmt: skip
    names = [*(readable(name) for name in columns[:-1]), readable(metric)]
    ax.set_xticks(range(len(columns)), [name.replace(" ", "\n") for name in names])
    ax.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.1, len(columns) - 0.55))
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = ax.figure.colorbar(ScalarMappable(colors, SEQUENTIAL), ax=ax, shrink=0.9, pad=0.01)
    bar.set_label(readable(metric))
    return ax


def iplot_parallel(trials: pd.DataFrame, metric: str) -> Interactive:
    """Drag along an axis to keep the trials that pass there. Arguments as in `plot_parallel`."""
    static = plot_parallel(trials, metric).figure
    finished = _rows(trials, "finished")
    columns = [*_arguments(trials), "value"]
    dimensions = []
    for name in columns:
        scale = _Scale(finished[name])
        dimensions.append(
            {
                "label": readable(metric if name == "value" else name).replace("validation ", "val. "),
                "values": scale.heights,
                "range": [0, 1],
                "tickvals": scale.ticks,
                "ticktext": scale.labels,
            }
        )
    line = {"color": finished["value"], "colorscale": SEQUENTIAL, "showscale": True, "colorbar": {"thickness": 12}}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelfont={"size": 11}, tickfont={"size": 10}))
    dress(figure).update_layout(margin={"l": 50, "r": 20, "t": 60, "b": 30})
    return Interactive(figure, static)


def plot_arguments(trials: pd.DataFrame, metric: str) -> np.ndarray:
    """A panel for each argument: score against value for every finished trial, the best one in another colour."""
    finished, arguments = _rows(trials, "finished"), _arguments(trials)
    axes = panel_grid(len(arguments), 3, 2.0, sharey=True)
    for place, (ax, name) in enumerate(zip(axes, arguments, strict=True)):
        scale = _Scale(finished[name])
        at = scale.places
        ax.scatter(at[1:], finished["value"].iloc[1:], s=18, color=FINISHED, alpha=0.7, linewidths=0)
        ax.scatter(at[:1], finished["value"].iloc[:1], s=50, color=BEST, marker="D", linewidths=0, label="best trial")
        if scale.choices:
            ax.set_xticks(range(len(scale.choices)), scale.choices)
            ax.set_xlim(-0.5, len(scale.choices) - 0.5)
        elif scale.logarithmic:
            use_log_axis(ax)
        else:
            ax.xaxis.set_major_locator(few_ticks(4))
        ax.set(xlabel=readable(name), ylabel=readable(metric).replace(" ", "\n", 1) if place % 3 == 0 else "")
        ax.grid(axis="y")
    if len(axes):
        axes[0].figure.suptitle("diamond: the best trial", fontsize=8, color=GREY)
    return axes


def iplot_arguments(trials: pd.DataFrame, metric: str) -> Interactive:
    """Point at a trial to read its arguments. Arguments as in `plot_arguments`."""
    static = plot_arguments(trials, metric)[0].figure
    finished, arguments = _rows(trials, "finished"), _arguments(trials)
    rows = -(-len(arguments) // 3)
    figure = make_subplots(rows, min(3, len(arguments)), shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=0.3 / rows)
    for place, name in enumerate(arguments):
        scale, cell = _Scale(finished[name]), {"row": place // 3 + 1, "col": place % 3 + 1}
        marker = {
            "color": [BEST if row == 0 else FINISHED for row in range(len(finished))],
            "symbol": ["diamond" if row == 0 else "circle" for row in range(len(finished))],
            "size": [11 if row == 0 else 7 for row in range(len(finished))],
        }
        dots = go.Scatter(
            x=scale.places, y=finished["value"], text=_describe(finished), mode="markers", marker=marker, showlegend=False,
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(dots, **cell)
        axis = {"title": readable(name)}
        if scale.logarithmic:
            axis |= {"type": "log", "dtick": 1, "exponentformat": "power"}
        if scale.choices:
            ends = [-0.5, len(scale.choices) - 0.5]
            axis |= {"tickvals": list(range(len(scale.choices))), "ticktext": scale.choices, "range": ends}
        figure.update_xaxes(**axis, **cell)
    figure.update_yaxes(title=readable(metric), col=1)
    dress(figure).update_layout(height=80 + 240 * rows, margin={"b": 70})
    return Interactive(figure, static)


class _Scale:
    """Where the values of one column lie on an axis: `places` on the axis itself, `heights` within 0..1, and its ticks."""

    def __init__(self, values: pd.Series):
        self.choices, self.logarithmic = [], False
        if isinstance(values.dtype, pd.CategoricalDtype):
            self.choices = [str(choice) for choice in values.cat.categories]
            self.places = values.cat.codes.to_numpy(dtype=float)
            low, high, ticks, self.labels = 0, len(self.choices) - 1, range(len(self.choices)), self.choices
            inner = self.places
        else:
            self.places = values.to_numpy(dtype=float)
            digits = 3 if values.name == "value" else 2
            self.logarithmic = bool(len(values)) and 0 < LOG_FROM * self.places.min() < self.places.max()
            inner = np.log10(self.places) if self.logarithmic else self.places
            low, high = (inner.min(), inner.max()) if len(values) else (0, 1)
            ticks = np.linspace(low, high, 4) if high > low else [low]
            self.labels = [f"{10**tick if self.logarithmic else tick:.{digits}g}" for tick in ticks]
        self.heights = [_share(value, low, high) for value in inner]
        self.ticks = [_share(tick, low, high) for tick in ticks]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


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
        + "<br>".join(f"{readable(name)} {row[name]:.3g}" if isinstance(row[name], float) else f"{readable(name)} {row[name]}"
                      for name in arguments)
        for row in trials.to_dict("records")
    ]  # fmt: skip
