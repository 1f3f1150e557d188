"""Hundreds of runs, or the trials of a search, at once: what goes with a good score, and which runs
these are.

All take a table with a row for each run, as `vitlab.run_tables.run_table` gives it: columns run,
model, seed, `parameters.NAME`, `facts.NAME`, `metrics.NAME`. `metric` is one of these columns, such
as `metrics.roc_auc`; runs that lack it are left out. A metric that is a loss, an error or a time is
best when low, any other when high. `few`: a number with at most so many different values is drawn
as choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from plotly.subplots import make_subplots

from vitlab.errors import UserError
from vitlab.plots.interactive import SYMBOLS, Interactive, dress, plotly_text
from vitlab.plots.style import (
    SEQUENTIAL,
    few_ticks,
    new_axes,
    panel_grid,
    readable,
    series_colors,
    use_log_axis,
)
from vitlab.registry import unknown

BY_RECIPE = "by recipe"  # what a parameter is called that was left to the model's recipe
CHOICES = 8  # values of a column that are drawn as choices; the rarest beyond are pooled
OTHERS = "others"
LOG_FROM = 20  # times the lowest value: numbers that span more are drawn on a logarithmic axis
MOST_DRAWN = 1500  # runs in an interactive figure: a page must stay light
NAMED = 7  # models that the legend tells apart; the others are pooled
FACTS = {
    "facts.train_s": "training time (s)",
    "facts.frozen_s": "time of the frozen part (s)",
    "facts.precision": "number format",
    "facts.parameters": "number of parameters",
    "wall_s": "time in all (s)",
    "peak_memory_mb": "peak memory (MB)",
}
LOW_IS_BEST = re.compile(r"loss|error|brier|nll|ece|seconds|_s$|_ms$|memory")


def name_column(column: str) -> str:
    """A column as one says it: `metrics.roc_auc` is ROC AUC, `facts.train_s` is training time
    (s).
    """
    return FACTS.get(column) or readable(column.partition(".")[2] or column)


def order_runs(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The runs that have a value in this metric, the best first."""
    if metric not in table:
        raise UserError(
            unknown(
                "column",
                metric,
                [str(name) for name in table.columns if str(name).startswith("metrics.")],
            )
        )
    kept = table[pd.to_numeric(table[metric], errors="coerce").notna()]
    return kept.sort_values(
        metric, ascending=bool(LOW_IS_BEST.search(metric)), kind="stable", ignore_index=True
    )


def plot_run_facets(
    table: pd.DataFrame, metric: str, columns: Sequence[str], few: int = 6
) -> np.ndarray:
    """A panel for each column: the score of every run against its value there, coloured by model.

    Choices get a box over their runs where they have eight or more; parameters left to the recipe
    are a choice of their own."""
    runs = _pool_models(order_runs(table, metric))
    columns = _check_columns(runs, columns)
    scales = [Scale.of(runs[name], few) for name in columns]
    colors = series_colors(runs["model"].unique())
    highest = max((len(scale.choices) for scale in scales), default=3)
    axes = panel_grid(len(columns), 3 if len(columns) > 2 else 2, 1.3 + 0.16 * max(4, highest))
    for ax, name, scale in zip(axes, columns, scales, strict=True):
        if scale.choices:
            _draw_choices(ax, runs, metric, scale, colors)
        else:
            dots = pd.DataFrame({"x": scale.values, "y": runs[metric], "model": runs["model"]})
            sns.scatterplot(
                dots,
                x="x",
                y="y",
                hue="model",
                palette=colors,
                s=_dot(len(runs)),
                alpha=0.7,
                linewidth=0,
                ax=ax,
                legend=False,
            )
            ax.set(xlabel=name_column(name), ylabel=name_column(metric))
            if scale.logarithmic:
                use_log_axis(ax)
            else:
                ax.xaxis.set_major_locator(few_ticks(4))
        ax.set_title(name_column(name))
        ax.grid(axis="x" if scale.choices else "y")
    if columns != ["model"]:
        _add_legend(axes, colors)
    return axes


def iplot_run_facets(
    table: pd.DataFrame, metric: str, columns: Sequence[str], few: int = 6
) -> Interactive:
    """Point at a run to read what it is; click models in the legend to take them out. Arguments as
    in `plot_run_facets`.

    Of more than MOST_DRAWN runs, the best ones and a random choice of the others are drawn, and the
    figure says so."""
    drawn = plot_run_facets(table, metric, columns, few)
    runs, note = _bound(_pool_models(order_runs(table, metric)))
    columns = _check_columns(runs, columns)
    across = min(3 if len(columns) > 2 else 2, max(1, len(columns)))
    rows = max(1, -(-len(columns) // across))
    titles = [name_column(name) for name in columns]
    figure = make_subplots(
        rows, across, subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.42 / rows
    )
    names = runs["run"].str.split("/").str[-1].map(plotly_text)
    colors = series_colors(runs["model"].unique())
    for place, name in enumerate(columns):
        cell = {"row": place // across + 1, "col": place % across + 1}
        scale = Scale.of(runs[name], few)
        at = scale.values + _jitter(len(runs), 0.26) if scale.choices else scale.values
        told = (
            names
            + "<br>"
            + name_column(name)
            + ": "
            + runs[name].astype(object).map(_as_text).map(plotly_text)
        )
        for number, (model, color) in enumerate(colors.items()):
            mine = runs["model"] == model
            marker = {
                "color": color,
                "size": 7 if len(runs) < 60 else 5,
                "opacity": 0.75,
                "symbol": SYMBOLS[number % len(SYMBOLS)],
            }
            dots = go.Scatter(
                x=[float(f"{value:.4g}") for value in at[mine]],
                y=runs.loc[mine, metric].round(4),
                text=told[mine],
                mode="markers",
                name=plotly_text(model),
                legendgroup=model,
                marker=marker,
                showlegend=place == 0 and columns != ["model"],
                hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
            )
            figure.add_trace(dots, **cell)
        axis = (
            {"type": "log", "dtick": 1, "exponentformat": "power"}
            if scale.logarithmic
            else {"nticks": 5}
        )
        if scale.choices:
            texts, ends = (
                [
                    plotly_text(_cut(text, 16 if len(scale.choices) > 4 else 24))
                    for text in scale.choices
                ],
                [-0.6, len(scale.choices) - 0.4],
            )
            axis = {
                "tickvals": list(range(len(texts))),
                "ticktext": texts,
                "range": ends,
                "tickangle": -35,
            }
        figure.update_xaxes(**axis, zeroline=False, tickfont={"size": 11}, **cell)
    figure.update_yaxes(title=name_column(metric), col=1)
    dress(figure).update_layout(height=120 + 300 * rows, margin={"t": 50, "b": 130})
    if note:
        figure.add_annotation(
            text=note,
            x=1,
            y=1,
            xref="paper",
            yref="paper",
            yshift=38,
            showarrow=False,
            xanchor="right",
        )
    return Interactive(figure, drawn[0].figure)


def plot_run_parallel(
    table: pd.DataFrame, metric: str, columns: Sequence[str], few: int = 6, ax: Axes | None = None
) -> Axes:
    """A line for each run through its values in these columns, coloured by its score; the best one
    is thick.

    Lines through one choice are spread a little, so that one can see how many they are.
    """
    runs = order_runs(table, metric)
    columns = [*_check_columns(runs, columns), metric]
    ax = new_axes(ax, 3.4)
    scales = _parallel_scales(runs, columns, few)
    heights = _heights(scales, len(runs))
    colors = _norm(runs[metric])
    for row in range(len(runs))[::-1]:  # the best last, on top
        color = colormaps[SEQUENTIAL](colors(runs[metric].iloc[row]))
        alpha = 1 if row == 0 else float(np.clip(25 / max(1, len(runs)), 0.22, 0.8))
        ax.plot(heights[row], color=color, linewidth=2.6 if row == 0 else 0.9, alpha=alpha)
    for place, scale in enumerate(scales):
        ax.axvline(place, color="0.3", linewidth=0.8, zorder=0)
        for height, text in scale.ticks():
            ax.annotate(
                _cut(text, 16),
                (place, height),
                (3, 0),
                textcoords="offset points",
                fontsize=6.5,
                va="center",
                zorder=5,
                bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.8, "linewidth": 0},
            )
    ax.set_xticks(
        range(len(columns)), [name_column(name).replace(" ", "\n", 1) for name in columns]
    )
    ax.set(yticks=[], ylim=(-0.08, 1.08), xlim=(-0.02 * len(columns), (len(columns) - 1) * 1.11))
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(axis="x", length=0)
    bar = ax.figure.colorbar(ScalarMappable(colors, SEQUENTIAL), ax=ax, shrink=0.9, pad=0.01)
    bar.set_label(name_column(metric))
    return ax


def iplot_run_parallel(
    table: pd.DataFrame, metric: str, columns: Sequence[str], few: int = 6
) -> Interactive:
    """Drag along an axis to keep the runs that pass there, on as many axes as you like. Arguments
    as in `plot_run_parallel`.
    """
    static = plot_run_parallel(table, metric, columns, few).figure
    runs, _ = _bound(order_runs(table, metric))
    columns = [*_check_columns(runs, columns), metric]
    scales = _parallel_scales(runs, columns, few)
    heights = _heights(scales, len(runs))[::-1]  # the best last, on top
    dimensions = []
    for place, (name, scale) in enumerate(zip(columns, scales, strict=True)):
        ticks = list(scale.ticks())
        dimensions.append(
            {
                "label": name_column(name),
                "values": heights[:, place].round(4),
                "range": [-0.05, 1.05],
                "tickvals": [height for height, _ in ticks],
                "ticktext": [_cut(text, 17) for _, text in ticks],
            }
        )
    norm = _norm(runs[metric])
    line = {
        "color": runs[metric][::-1],
        "colorscale": SEQUENTIAL,
        "showscale": True,
        "colorbar": {"thickness": 12},
    }
    line |= {"cmin": norm.vmin, "cmax": norm.vmax}
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions, line=line, labelfont={"size": 11}, tickfont={"size": 10}
        )
    )
    dress(figure).update_layout(margin={"l": 115, "r": 20, "t": 60, "b": 30}, height=430)
    return Interactive(figure, static)


@dataclass(frozen=True)
class Scale:
    """Where the values of a column lie: numbers on an axis, or choices, whose values are their
    places 0, 1, 2 ...
    """

    values: np.ndarray = field(repr=False)
    choices: list[str] = field(default_factory=list)
    logarithmic: bool = False

    @classmethod
    def of(cls, column: pd.Series, few: int = 6, pool: bool = True) -> Scale:
        """Numbers with more than `few` different values, all of them known, are numbers; anything
        else is a choice.
        """
        if isinstance(column.dtype, pd.CategoricalDtype):
            return cls(
                column.cat.codes.to_numpy(float), [str(choice) for choice in column.cat.categories]
            )
        numbers = pd.to_numeric(column, errors="coerce").astype(float)
        plain = (
            numbers.notna().all() and not column.map(lambda value: isinstance(value, bool)).any()
        )
        if plain and numbers.nunique() > few:
            return cls(numbers.to_numpy(), [], bool(0 < LOG_FROM * numbers.min() < numbers.max()))
        texts = column.map(_as_text)
        order = _order_choices(texts)
        if pool and len(order) > CHOICES:
            kept = set(texts.value_counts().index[: CHOICES - 1])
            texts = texts.where(texts.isin(kept), OTHERS)
            order = [*(text for text in order if text in kept), OTHERS]
        return cls(
            texts.map({text: place for place, text in enumerate(order)}).to_numpy(float), order
        )

    def shares(self) -> np.ndarray:
        """The values within 0..1."""
        inner = np.log10(self.values) if self.logarithmic else self.values
        low, high = self._ends()
        return (inner - low) / (high - low) if high > low else np.full(len(inner), 0.5)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights within 0..1 with what to write there."""
        low, high = self._ends()
        if self.choices:
            return [
                ((place - low) / (high - low) if high > low else 0.5, text)
                for place, text in enumerate(self.choices)
            ]
        if not high > low:
            return [(0.5, f"{self.values[0]:.3g}")] if len(self.values) else []
        return [
            (share, f"{10**at if self.logarithmic else at:.3g}")
            for share in np.linspace(0, 1, 4)
            for at in [low + share * (high - low)]
        ]

    def _ends(self) -> tuple[float, float]:
        if self.choices:
            return 0.0, len(self.choices) - 1.0
        inner = np.log10(self.values) if self.logarithmic else self.values
        return (inner.min(), inner.max()) if len(inner) else (0.0, 1.0)


def _draw_choices(ax, runs, metric, scale, colors):
    dots = pd.DataFrame(
        {
            "y": [scale.choices[int(place)] for place in scale.values],
            "x": runs[metric],
            "model": runs["model"],
        }
    )
    counts = dots["y"].value_counts()
    many = dots[dots["y"].map(counts) >= 8]
    if len(many):
        look = {
            "color": "0.93",
            "linecolor": "0.6",
            "linewidth": 0.8,
            "showfliers": False,
            "width": 0.75,
        }
        sns.boxplot(many, x="x", y="y", order=scale.choices, ax=ax, **look)
    sns.stripplot(
        dots,
        x="x",
        y="y",
        hue="model",
        order=scale.choices,
        palette=colors,
        size=_dot(len(runs)) ** 0.5,
        alpha=0.7,
        jitter=0.26,
        ax=ax,
        legend=False,
    )
    ax.set_yticks(range(len(scale.choices)), [_cut(text, 22) for text in scale.choices])
    ax.set(xlabel=name_column(metric), ylabel="")
    ax.set_ylim(len(scale.choices) - 0.4, -0.6)
    ax.xaxis.set_major_locator(few_ticks(4))
    ax.tick_params(axis="y", length=0)


def _add_legend(axes, colors):
    if not len(axes) or not colors:
        return
    handles = [
        axes[0].scatter([], [], s=22, color=color, label=_cut(name, 26), linewidths=0)
        for name, color in sorted(colors.items())
    ]
    axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _check_columns(runs: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    for name in columns:
        if name not in runs:
            raise UserError(unknown("column", name, [str(column) for column in runs.columns]))
    return list(columns)


def _pool_models(runs: pd.DataFrame) -> pd.DataFrame:
    counts = runs["model"].value_counts()
    kept = counts.index[: NAMED - 1] if len(counts) > NAMED else counts.index
    return runs.assign(model=runs["model"].where(runs["model"].isin(kept), OTHERS))


def _order_choices(texts: pd.Series) -> list[str]:
    """Numbers by their size, words by the alphabet, and what was left to the recipe first."""

    def rank(text):
        try:
            return text != BY_RECIPE, 0, float(text), text
        except ValueError:
            return text != BY_RECIPE, 1, 0.0, text

    return sorted(texts.unique(), key=rank)


def _as_text(value) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)) or value == "":
        return BY_RECIPE
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parallel_scales(runs: pd.DataFrame, columns: Sequence[str], few: int) -> list[Scale]:
    """One for each column; the last column, the score, is always a number."""
    return [Scale.of(runs[name], 0 if name == columns[-1] else few, pool=False) for name in columns]


def _heights(scales: list[Scale], count: int) -> np.ndarray:
    """(runs, columns): heights within 0..1, those of choices spread a little."""
    heights = []
    for number, scale in enumerate(scales):
        spread = 0.28 / max(len(scale.choices) - 1, 3) if scale.choices and count > 12 else 0.0
        heights.append(scale.shares() + _jitter(count, spread, number))
    return np.column_stack(heights)


def _jitter(count: int, width: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-width, width, count)


def _norm(values: pd.Series) -> Normalize:
    """Colours from the fifth percentile on: a few runs that failed to learn must not make all
    others look alike.
    """
    if len(values) < 2:
        return Normalize(0, 1)
    low, high = (0.05, 1) if not LOW_IS_BEST.search(str(values.name)) else (0, 0.95)
    ends = values.quantile([low, high]) if len(values) >= 20 else values.agg(["min", "max"])
    return Normalize(float(ends.iloc[0]), float(ends.iloc[1]), clip=True)


def _dot(count: int) -> float:
    """Area of a dot in points squared."""
    return 26 if count < 30 else 14 if count < 120 else 8


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _bound(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """At most MOST_DRAWN runs, the best first, and a note on what was left out."""
    if len(runs) <= MOST_DRAWN:
        return runs, ""
    best = MOST_DRAWN // 5
    rest = runs.iloc[best:].sample(MOST_DRAWN - best, random_state=0).sort_index()
    note = f"the best {best:,} of {len(runs):,} runs, and {MOST_DRAWN - best:,} others at random"
    return pd.concat([runs.iloc[:best], rest], ignore_index=True), note
