"""Hundreds of runs, or the trials of a search, at once: which settings go with a good score, and
which runs these are.

All figures take a table with a row for each run, as `vitlab.run_tables.run_table` gives it: columns
run, model, seed, `parameters.NAME`, `facts.NAME`, `metrics.NAME`. `metric` is one of these columns,
such as `metrics.roc_auc`; runs that lack it are left out. A metric that is a loss, an error or a
time is best when low, any other when high. `few`: a number with at most so many different values is
drawn as choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vitlab.errors import UserError
from vitlab.plots.interactive import Interactive, dress, plotly_text
from vitlab.plots.style import (
    SEQUENTIAL,
    few_ticks,
    new_axes,
    note_above,
    panel_grid,
    readable,
    series_colors,
    shared_legend,
    shorten,
    use_log_axis,
)
from vitlab.registry import unknown

BY_RECIPE = "default"  # what a parameter is called that was left to the model's recipe
MAX_CHOICES = 8  # values of a column that are drawn as choices; the rarest beyond are pooled
OTHERS = "others"
LOG_FROM = 20  # times the lowest value: numbers that span more are drawn on a logarithmic axis
MAX_RUNS = 1500  # in an interactive figure: a page must stay light
MAX_MODELS = 7  # that the legend tells apart; the others are pooled
ACROSS = 3  # panels side by side
FACTS = {
    "facts.train_s": "training time (s)",
    "facts.frozen_s": "time of the frozen part (s)",
    "facts.precision": "number format",
    "facts.parameters": "number of parameters",
    "wall_s": "total time (s)",
    "peak_memory_mb": "peak memory (MB)",
}
LOW_IS_BEST = re.compile(r"loss|error|brier|nll|ece|seconds|_s$|_ms$|memory")


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


def iplot_run_facets(
    table: pd.DataFrame, metric: str, columns: Sequence[str], few: int = 6
) -> Interactive:
    """A panel for each column: the score of every run against its value there, coloured by model.
    In HTML, point at a run to read what it is; click models in the legend to take them out.

    Of more than MAX_RUNS runs, the best ones and a random choice of the others are drawn, and the
    figure says so. Parameters left to the recipe are a choice of their own."""
    runs, note = _bound(_pool_models(order_runs(table, metric, columns)))
    scales = {name: Scale.of(runs[name], few) for name in columns}
    colors = dict(sorted(series_colors(runs["model"].unique()).items()))
    static = _draw_facets(runs, metric, scales, colors)
    note_above(static, note)
    if runs.empty:
        return Interactive(dress(go.Figure()), static)

    names = runs["run"].astype(str).str.split("/").str[-1].map(plotly_text)
    parts = []
    for name, scale in scales.items():
        values = runs[name].astype(object).map(_as_text).map(plotly_text)
        dots = {"x": scale.spread(0.26), "panel": name_column(name), "value": values, "run": names}
        parts.append(runs[[metric]].assign(model=runs["model"].map(plotly_text), **dots))
    legend = {plotly_text(name): color for name, color in colors.items()}
    figure = px.scatter(
        pd.concat(parts),
        x="x",
        y=metric,
        color="model",
        symbol="model",
        facet_col="panel",
        facet_col_wrap=ACROSS,
        facet_row_spacing=0.42 / -(-len(columns) // ACROSS),
        custom_data=["run", "value"],
        category_orders={"model": list(legend), "panel": [name_column(name) for name in columns]},
        color_discrete_map=legend,
        labels={metric: name_column(metric), "x": "", "model": ""},
        opacity=0.75,
        render_mode="svg",
    )
    figure.for_each_annotation(lambda title: title.update(text=title.text.partition("=")[2]))
    hover = "%{customdata[0]}<br>%{customdata[1]}<br>%{y:.4f}<extra></extra>"
    figure.update_traces(marker_size=7 if len(runs) < 60 else 5, hovertemplate=hover)
    figure.update_xaxes(matches=None, showticklabels=True, zeroline=False, tickfont_size=11)
    rows = -(-len(columns) // ACROSS)
    for place, scale in enumerate(scales.values()):  # plotly.express counts rows from below
        cell = {"row": rows - place // ACROSS, "col": place % ACROSS + 1}
        figure.update_xaxes(**scale.plotly_axis(), **cell)
    dress(figure).update_layout(height=120 + 300 * rows, margin={"t": 50, "b": 130})
    if note:
        corner = {"x": 1, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "right"}
        figure.add_annotation(text=note, yshift=38, showarrow=False, **corner)
    return Interactive(figure, static)


def _draw_facets(runs: pd.DataFrame, metric: str, scales: dict, colors: dict[str, str]) -> Figure:
    axes = panel_grid(len(scales), ACROSS, 2.3, sharey=True)
    area = 26 if len(runs) < 30 else 14 if len(runs) < 120 else 8
    for ax, (name, scale) in zip(axes, scales.items(), strict=True):
        x = scale.spread(0.26)
        for model, color in colors.items():
            own = (runs["model"] == model).to_numpy()
            style = {"color": color, "alpha": 0.7, "linewidth": 0, "label": shorten(model, 26)}
            ax.scatter(x[own], runs.loc[own, metric], area, **style)
        ax.set_title(name_column(name))
        ax.grid(axis="y")
        if scale.choices:
            places = range(len(scale.choices))
            ax.set_xticks(places, [shorten(text, 16) for text in scale.choices])
            ax.set_xlim(-0.6, len(scale.choices) - 0.4)
            ax.tick_params(axis="x", length=0, rotation=35, labelsize=7)
        elif scale.logarithmic:
            use_log_axis(ax)
        else:
            ax.xaxis.set_major_locator(few_ticks(4))
    for ax in axes[::ACROSS]:
        ax.set_ylabel(name_column(metric))
    if len(runs) and list(scales) != ["model"]:
        shared_legend(axes)
    return axes[0].figure


def iplot_run_parallel(
    table: pd.DataFrame, metric: str, columns: Sequence[str], few: int = 6
) -> Interactive:
    """A line for each run through its values in these columns, coloured by its score; the best one
    is thick. In HTML, drag along an axis to keep the runs that pass there.

    Lines through one choice are spread a little, so that one can see how many they are."""
    runs, note = _bound(order_runs(table, metric, columns))
    scales = {name: Scale.of(runs[name], few) for name in columns}
    scales[metric] = Scale.of(runs[metric], few=0)
    heights = np.column_stack([scale.heights(seed) for seed, scale in enumerate(scales.values())])
    norm = _norm(runs[metric])
    static = _draw_parallel(runs[metric], scales, heights, norm)
    note_above(static, note)
    dimensions = []
    for place, (name, scale) in enumerate(scales.items()):
        ticks = scale.ticks()
        dimensions.append(
            {
                "label": name_column(name),
                "values": heights[::-1, place].round(4),  # the best last, on top
                "range": [-0.1, 1.1],
                "tickvals": list(ticks),
                "ticktext": [shorten(text, 17) for text in ticks.values()],
            }
        )
    line = {"color": runs[metric][::-1], "colorscale": SEQUENTIAL, "showscale": True}
    line |= {"colorbar": {"thickness": 12}, "cmin": norm.vmin, "cmax": norm.vmax}
    fonts = {"labelfont": {"size": 11}, "tickfont": {"size": 10}}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, **fonts))
    dress(figure).update_layout(margin={"l": 115, "r": 20, "t": 60, "b": 30}, height=430)
    return Interactive(figure, static)


def _draw_parallel(scores: pd.Series, scales: dict, heights: np.ndarray, norm: Normalize) -> Figure:
    ax = new_axes(None, 3.4)
    faint = float(np.clip(25 / max(1, len(scores)), 0.22, 0.8))
    for row in range(len(scores))[::-1]:  # the best last, on top
        style = {"linewidth": 0.9, "alpha": faint} if row else {"linewidth": 2.6}
        ax.plot(heights[row], color=colormaps[SEQUENTIAL](norm(scores.iloc[row])), **style)
    box = {"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.8, "linewidth": 0}
    for place, scale in enumerate(scales.values()):
        ax.axvline(place, color="0.3", linewidth=0.8, zorder=0)
        for height, text in scale.ticks().items():
            style = {"textcoords": "offset points", "fontsize": 6.5, "va": "center", "bbox": box}
            ax.annotate(shorten(text, 16), (place, height), (3, 0), zorder=5, **style)
    names = [name_column(name).replace(" ", "\n", 1) for name in scales]
    ax.set_xticks(range(len(names)), names)
    ax.set(yticks=[], ylim=(-0.1, 1.1), xlim=(-0.02 * len(names), (len(names) - 1) * 1.11))
    ax.spines[:].set_visible(False)
    ax.tick_params(axis="x", length=0)
    bar = ax.figure.colorbar(ScalarMappable(norm, SEQUENTIAL), ax=ax, shrink=0.9, pad=0.01)
    bar.set_label(name_column(str(scores.name)))
    return ax.figure


@dataclass(frozen=True)
class Scale:
    """Where the values of a column lie: numbers on an axis, or choices, whose values are their
    places 0, 1, 2 ...
    """

    values: np.ndarray = field(repr=False)
    choices: list[str] = field(default_factory=list)
    logarithmic: bool = False

    @classmethod
    def of(cls, column: pd.Series, few: int = 6) -> Scale:
        """Numbers with more than `few` different values, all of them known, are numbers; anything
        else is a choice.
        """
        if isinstance(column.dtype, pd.CategoricalDtype):
            return cls(column.cat.codes.to_numpy(float), list(map(str, column.cat.categories)))
        numbers = pd.to_numeric(column, errors="coerce").astype(float)
        booleans = column.map(lambda value: isinstance(value, bool)).any()
        if numbers.notna().all() and not booleans and numbers.nunique() > few:
            return cls(numbers.to_numpy(), [], bool(0 < LOG_FROM * numbers.min() < numbers.max()))
        texts = column.map(_as_text)
        order = _order_choices(texts)
        if len(order) > MAX_CHOICES:
            kept = set(texts.value_counts().index[: MAX_CHOICES - 1])
            texts = texts.where(texts.isin(kept), OTHERS)
            order = [*(text for text in order if text in kept), OTHERS]
        places = {text: place for place, text in enumerate(order)}
        return cls(texts.map(places).to_numpy(float), order)

    def spread(self, width: float, seed: int = 0) -> np.ndarray:
        """The values; choices spread at random to both sides, so that dots do not hide others."""
        if not self.choices:
            return self.values
        return self.values + np.random.default_rng(seed).uniform(-width, width, len(self.values))

    def heights(self, seed: int = 0) -> np.ndarray:
        """The values within 0..1, those of many runs' choices spread a little."""
        width = 0.28 * (len(self.choices) - 1) / max(len(self.choices) - 1, 3)
        values = self.spread(width, seed) if len(self.values) > 12 else self.values
        low, high = self._ends()
        if not high > low:
            return np.full(len(values), 0.5)
        return ((np.log10(values) if self.logarithmic else values) - low) / (high - low)

    def ticks(self) -> dict[float, str]:
        """Heights within 0..1 with what to write there."""
        low, high = self._ends()
        if not high > low:
            return {0.5: self.choices[0] if self.choices else f"{self.values[0]:.3g}"}
        if self.choices:
            return {(place / high): text for place, text in enumerate(self.choices)}
        ticks = {}
        for height in np.linspace(0, 1, 4):
            value = low + height * (high - low)
            ticks[float(height)] = f"{10**value if self.logarithmic else value:.3g}"
        return ticks

    def plotly_axis(self) -> dict:
        if self.logarithmic:
            return {"type": "log", "dtick": 1, "exponentformat": "power"}
        if not self.choices:
            return {"nticks": 5}
        texts = [plotly_text(shorten(text, 16)) for text in self.choices]
        places = {"tickvals": list(range(len(texts))), "range": [-0.6, len(texts) - 0.4]}
        return {"ticktext": texts, "tickangle": -35, **places}

    def _ends(self) -> tuple[float, float]:
        if self.choices:
            return 0.0, len(self.choices) - 1.0
        values = np.log10(self.values) if self.logarithmic else self.values
        return (values.min(), values.max()) if len(values) else (0.0, 1.0)


def _pool_models(runs: pd.DataFrame) -> pd.DataFrame:
    counts = runs["model"].value_counts()
    kept = counts.index[: MAX_MODELS - 1] if len(counts) > MAX_MODELS else counts.index
    return runs.assign(model=runs["model"].where(runs["model"].isin(kept), OTHERS))


def _order_choices(texts: pd.Series) -> list[str]:
    """Numbers by size, words by the alphabet, and what was left to the recipe first."""

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


def _norm(values: pd.Series) -> Normalize:
    """Colours from the fifth percentile on: a few runs that failed to learn must not make all
    others look alike.
    """
    if len(values) < 2:
        return Normalize(0, 1)
    quantiles = (0, 0.95) if LOW_IS_BEST.search(str(values.name)) else (0.05, 1)
    ends = values.quantile(list(quantiles if len(values) >= 20 else (0, 1)))
    return Normalize(float(ends.iloc[0]), float(ends.iloc[1]), clip=True)


def _bound(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """At most MAX_RUNS runs, the best first, and a note on what was left out."""
    if len(runs) <= MAX_RUNS:
        return runs, ""
    best = MAX_RUNS // 5
    rest = runs.iloc[best:].sample(MAX_RUNS - best, random_state=0).sort_index()
    note = f"the best {best:,} of {len(runs):,} runs, and {MAX_RUNS - best:,} others at random"
    return pd.concat([runs.iloc[:best], rest], ignore_index=True), note
