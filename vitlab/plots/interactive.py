"""Figures to explore: Plotly in HTML, its matplotlib twin wherever HTML cannot go (PDF, a terminal,
GitHub).

An `Interactive` shows both at once: the front end picks the richest form it can draw. plotly.js
travels inside the first figure of a kernel, so a saved page works without a network. Reports find
figures by the class `vitlab-plotly` and the library by the id `vitlab-plotlyjs`."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import matplotlib.pyplot as plt
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from vitlab.plots.comparison import plot_comparison
from vitlab.plots.data import BRIGHTNESS, CONTRAST, plot_intensities, prepare_intensities
from vitlab.plots.evaluation import list_marks, plot_threshold
from vitlab.plots.style import png_bytes, readable, series_colors
from vitlab.plots.training import list_histories, mean_curve, plot_learning_curves

SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "cross",
    "x",
    "star",
    "triangle-left",
    "triangle-right",
)

# The function's parameters hide the names by which plotly.js would take the page for a module
# system (require.js in JupyterLab and Quarto) and register itself there instead of on `window`.
LIBRARY = """<script id="vitlab-plotlyjs" type="text/javascript">
window.Plotly || (function (define, module, exports) {{
{library}
}})();
</script>
"""
FIGURE = """<div class="vitlab-plotly" style="width:100%; height:{height}px;">
{figure}
<script>window.Plotly || (document.getElementById("{name}").textContent =
"This figure needs plotly.js, which came with the first interactive figure: run the notebook from the top.");</script>
</div>
"""
# Plotly's own button would send the data to its servers; a page that is read offline has no use for
# the selection tools.
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}
_library_sent = False


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure and its matplotlib twin, which is closed here so that a notebook does not
    draw it a second time.
    """

    figure: go.Figure
    static: Figure

    def __post_init__(self):
        plt.close(self.static)

    def to_html(self) -> str:
        """The figure alone, for a page that has plotly.js already."""
        name = f"vitlab-{uuid4()}"
        figure = self.figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG
        )
        return FIGURE.format(figure=figure, name=name, height=self.figure.layout.height or 400)

    def to_png(self) -> bytes:
        return png_bytes(self.static)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        global _library_sent
        library = "" if _library_sent else LIBRARY.format(library=get_plotlyjs())
        _library_sent = True
        return {
            "text/html": library + self.to_html(),
            "image/png": base64.b64encode(self.to_png()).decode(),
            "text/plain": repr(self),
        }

    def __repr__(self) -> str:
        return f"Interactive({len(self.figure.data)} traces)"


def iplot_intensities(
    image_table: pd.DataFrame, samples: pd.DataFrame, classes: Sequence[str]
) -> Interactive:
    """Brightness against contrast of each image; point at a dot to read its sample_id. Arguments as
    in `plot_intensities`.
    """
    static = plot_intensities(image_table, samples, classes)[0].figure
    table, colors, groups = prepare_intensities(image_table, samples, classes)
    counts = table["group"].value_counts()
    across = min(4, len(groups))
    rows = -(-len(groups) // across)
    figure = make_subplots(
        rows,
        across,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.36 / rows,
        subplot_titles=[f"{plotly_text(group)} (n = {counts[group]:,})" for group in groups],
    )
    for position, (name, color) in enumerate(colors.items()):
        title = plotly_text(name)
        for place, group in enumerate(groups):
            part = table[(table["class"] == name) & (table["group"] == group)]
            marker = {
                "color": color,
                "size": 5,
                "opacity": 0.55,
                "symbol": SYMBOLS[position % len(SYMBOLS)],
            }
            dots = go.Scatter(
                x=part["mean"],
                y=part["std"],
                text=part["sample_id"].map(plotly_text),
                mode="markers",
                marker=marker,
                name=title,
                legendgroup=name,
                showlegend=place == 0,
                hovertemplate=f"%{{text}}<br>{title}, {plotly_text(group)}<br>mean %{{x:.3g}}, s.d. %{{y:.3g}}<extra></extra>",
            )
            figure.add_trace(dots, row=place // across + 1, col=place % across + 1)
    figure.update_xaxes(title=BRIGHTNESS, matches="x")
    figure.update_yaxes(title=CONTRAST, matches="y", col=1)
    return Interactive(dress(figure).update_layout(height=120 + 280 * rows), static)


def iplot_history(
    histories: Mapping[str, pd.DataFrame | list[pd.DataFrame]], metric: str = "val_roc_auc"
) -> Interactive:
    """One metric over the epochs; point at an epoch to read every model. Arguments as in
    `plot_learning_curves`.
    """
    static = plot_learning_curves(histories, metric).figure
    figure = go.Figure()
    for name, color in series_colors(histories).items():
        runs = list_histories(histories[name])
        for run in runs if len(runs) > 1 else []:
            figure.add_scatter(
                x=run["epoch"],
                y=run[metric],
                mode="lines",
                line={"color": color, "width": 1},
                opacity=0.5,
                legendgroup=name,
                showlegend=False,
                hoverinfo="skip",
            )
        mean = mean_curve(runs, metric)
        label = plotly_text(f"{name} ({len(runs)} seeds)" if len(runs) > 1 else name)
        figure.add_scatter(
            x=mean["epoch"],
            y=mean[metric],
            mode="lines+markers",
            line={"color": color, "width": 2.5},
            marker={"size": 5},
            name=label,
            legendgroup=name,
            hovertemplate="%{y:.4f}",
        )
    figure.update_layout(hovermode="x unified", xaxis_title="epoch", yaxis_title=readable(metric))
    return Interactive(dress(figure), static)


def iplot_comparison(runs_metrics: pd.DataFrame, metrics: Sequence[str]) -> Interactive:
    """Every run on every metric; point at a dot to read model, seed and value. Arguments as in
    `plot_comparison`.
    """
    static = plot_comparison(runs_metrics, metrics)[0].figure
    figure = go.Figure()
    colors = series_colors(runs_metrics["model"].unique())
    for place, (model, color) in enumerate(colors.items()):
        table = runs_metrics[
            (runs_metrics["model"] == model) & runs_metrics["metric"].isin(metrics)
        ]
        offset = 0.22 * (place - (len(colors) - 1) / 2)
        at = table["metric"].map(metrics.index) + offset
        figure.add_scatter(
            x=at,
            y=table["value"],
            text=table["metric"].map(readable),
            customdata=table["seed"],
            mode="markers",
            name=plotly_text(model),
            marker={
                "color": color,
                "size": 9,
                "opacity": 0.8,
                "symbol": SYMBOLS[place % len(SYMBOLS)],
            },
            hovertemplate=f"{plotly_text(model)}, seed %{{customdata}}<br>%{{text}} %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(
        tickvals=list(range(len(metrics))),
        ticktext=[readable(name).replace(" ", "<br>") for name in metrics],
        zeroline=False,
    )
    figure.update_yaxes(title="score")
    return Interactive(dress(figure), static)


def iplot_threshold(
    threshold_table: pd.DataFrame, chosen: pd.DataFrame | None = None
) -> Interactive:
    """What a threshold buys and costs; point at it to read all four scores. Arguments as in
    `plot_threshold`.
    """
    static = plot_threshold(threshold_table, chosen=chosen).figure
    figure = go.Figure()
    for name, color in series_colors(["precision", "recall", "specificity", "f1"]).items():
        figure.add_scatter(
            x=threshold_table["threshold"],
            y=threshold_table[name],
            mode="lines",
            name=readable(name),
            line={"color": color, "width": 2.5},
            hovertemplate="%{y:.3f}",
        )
    figure.add_vline(x=0.5, line={"color": "grey", "width": 1, "dash": "dot"})
    for threshold, names in list_marks(chosen).items():
        figure.add_vline(x=threshold, line={"color": "black", "width": 1})
        figure.add_annotation(
            x=threshold,
            y=1,
            yref="paper",
            text=plotly_text(names),
            textangle=-40,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
        )
    title = plotly_text(f"threshold on the probability of {threshold_table['class'].iloc[0]}")
    figure.update_layout(
        hovermode="x unified",
        xaxis={"title": title, "range": [0, 1]},
        yaxis={"title": "score", "range": [0, 1.02]},
    )
    dress(figure)
    if chosen is not None:
        figure.update_layout(margin_t=80, height=440)  # room for the names of the rules
    return Interactive(figure, static)


def plotly_text(text: object) -> str:
    """The text so that Plotly shows it as it is: it reads some HTML, formulas between `$`, and
    `%{name}` where one points at.
    """
    return re.sub(r"[<>&${]", lambda match: f"&#{ord(match[0])};", str(text))


def dress(figure: go.Figure) -> go.Figure:
    """The look all interactive figures share: white, as wide as the page, legend below."""
    return figure.update_layout(
        template="plotly_white",
        autosize=True,
        height=400,
        margin={"l": 60, "r": 50, "t": 40, "b": 100},
        modebar={"orientation": "v"},
        font={"size": 13},
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0.01,
            "yanchor": "bottom",
            "x": 0.5,
            "xanchor": "center",
            "itemsizing": "constant",
        },
    )
