"""Figures to explore in HTML, with a twin for where HTML cannot go (PDF, a terminal, GitHub).

An `Interactive` holds both: the front end shows the richest form it can. plotly.js travels before
the first Plotly figure of a kernel, so a saved page works without a network. Reports find figures
by the classes `vitlab-plotly` and `vitlab-viewer`."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from uuid import uuid4

import matplotlib.pyplot as plt
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from IPython.display import HTML, display
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from vitlab.markup import JUPYTER_ONLY
from vitlab.plots.style import MARKERS, legend_name, panel_grid, png_bytes, readable, shorten

# The function's parameters hide the names by which plotly.js would take the page for a module
# system (require.js in JupyterLab and Quarto) and register itself there instead of on `window`.
LIBRARY = """<script id="vitlab-plotlyjs" type="text/javascript">
window.Plotly || (function (define, module, exports) {{
{library}
}})();
</script>
"""
FIGURE = """<div class="vitlab-plotly" style="width:100%; min-width:{width}rem; height:{height}px;">
{figure}
<script>window.Plotly || (document.getElementById("{name}").textContent =
"This figure needs plotly.js, which the first interactive figure loads: run the whole notebook.");
</script>
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
MANY_DOTS = 400  # from which on they are small, and all of one shape
_library_sent = False


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure, or a fragment of HTML that needs nothing from outside; and its twin, a
    matplotlib figure or, for a table, Markdown. The matplotlib figure is closed here so that a
    notebook does not draw it a second time.
    """

    figure: go.Figure | str = field(repr=False)
    static: Figure | str = field(repr=False)

    def __post_init__(self):
        if isinstance(self.static, Figure):
            plt.close(self.static)

    def to_html(self) -> str:
        """The figure alone, for a page that has plotly.js already."""
        if isinstance(self.figure, str):
            return self.figure
        name = f"vitlab-{uuid4()}"
        figure = self.figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG
        )
        panels = sum(1 for _ in self.figure.select_xaxes())
        height, width = self.figure.layout.height or 400, 11 * min(panels, 3)
        return FIGURE.format(figure=figure, name=name, height=height, width=width)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        if not isinstance(self.figure, str):
            _send_library()
        twin = {"text/markdown": self.static}
        if isinstance(self.static, Figure):
            twin = {"image/png": base64.b64encode(png_bytes(self.static)).decode()}
        return {"text/html": self.to_html(), **twin, "text/plain": repr(self)}


def library_html() -> str:
    """The script element of plotly.js, which a page with these figures needs once."""
    return LIBRARY.format(library=get_plotlyjs())


def _send_library():
    """Before the first figure, plotly.js as an output of its own: reports bring theirs, and Quarto
    moves an output with a library to the top of the page."""
    global _library_sent
    if not _library_sent:
        _library_sent = True
        display(HTML(library_html()), metadata=JUPYTER_ONLY)


def scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    color: str,
    colors: Mapping[str, str],
    *,
    panel: str | None = None,
    columns: int = 3,
    height: float = 2.6,
    hover: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    **share: bool,
) -> Interactive:
    """A dot for each row of a table, coloured by one column, with a panel for each value of
    another. Columns `low` and `high` are drawn as a vertical bar. The matplotlib figure has no
    legend yet; its first axes hold the entries.

    colors: a colour for each value of the column `color`. columns, height: panels side by side, and
    the inches of one. hover: columns to read when pointing at a dot. labels: names of columns for
    readers. share: `sharex`, `sharey`."""
    labels = {name: readable(name) for name in table.columns} | dict(labels or {})
    panels = [None] if panel is None else list(table[panel].unique())
    axes = panel_grid(len(panels), columns, height, **share)
    bars = {"low", "high"} <= set(table)
    few = len(table) < MANY_DOTS
    markers = dict(zip(colors, cycle(MARKERS if few else "o"), strict=False))
    area = 55 if len(table) < 60 else 18 if few else 7
    for ax, name in zip(axes, panels, strict=True):
        part = table if panel is None else table[table[panel] == name]
        for value, dots in _split_colors(part, color, few):
            look = {"color": dots[color].map(colors), "alpha": 0.65}
            ax.scatter(dots[x], dots[y], area, marker=markers[value], linewidths=0, **look)
            if bars:
                ax.vlines(dots[x], dots["low"], dots["high"], linewidth=1, **look)
        ax.set_title("" if panel is None else shorten(str(name)))
        ax.grid(axis="y")
    for name, shade in colors.items():
        label = legend_name(shorten(name))
        axes[0].scatter([], [], 22, color=shade, marker=markers[name], label=label)

    read = [f"hover: {name}" for name in hover]
    texts = table.assign(
        **{new: table[name].map(plotly_text) for new, name in zip(read, hover, strict=True)}
    )
    for name in (color, *([] if panel is None else [panel])):
        texts[name] = table[name].map(plotly_text)
    order = {color: list(map(plotly_text, colors))}
    rows = -(-len(panels) // columns)
    if panel is not None:
        order[panel] = list(map(plotly_text, panels))
    figure = px.scatter(
        texts,
        x=x,
        y=y,
        color=color,
        symbol=color,
        facet_col=panel,
        facet_col_wrap=columns,
        facet_row_spacing=0.42 / rows,
        error_y=table["high"] - table[y] if bars else None,
        error_y_minus=table[y] - table["low"] if bars else None,
        custom_data=read,
        category_orders=order,
        color_discrete_map={plotly_text(name): shade for name, shade in colors.items()},
        labels={name: plotly_text(label) for name, label in labels.items()},
        opacity=0.6,
        render_mode="svg",
    )
    figure.for_each_annotation(lambda title: title.update(text=title.text.partition("=")[2]))
    lines = [
        f"{plotly_text(labels[name])}: %{{customdata[{place}]}}" for place, name in enumerate(hover)
    ]
    figure.update_traces(
        marker_size=8 if few else 5,
        error_y_thickness=1,
        hovertemplate="<br>".join(lines) + "<extra></extra>",
    )
    dress(figure).update_layout(height=120 + 280 * rows, legend_title=None)
    return Interactive(figure, axes[0].figure)


def _split_colors(table: pd.DataFrame, color: str, few: bool) -> Iterator[tuple]:
    """The dots of each value of a column; many dots all at once, mixed, so that no colour hides
    the others.
    """
    if few:
        yield from table.groupby(color, sort=False)
    elif len(table):
        yield table[color].iloc[0], table.sample(frac=1, random_state=0)


def plotly_text(text: object) -> str:
    """The text so that Plotly shows it as it is: it reads some HTML, formulas between `$`, and
    `%{name}` in hover texts. Floats have four digits.
    """
    text = f"{text:.4g}" if isinstance(text, float) else str(text)
    return re.sub(r"[<>&${]", lambda match: f"&#{ord(match[0])};", text)


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
