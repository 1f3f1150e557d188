"""Figures to explore in HTML, with a matplotlib twin wherever HTML cannot go (PDF, a terminal,
GitHub).

An `Interactive` holds both: the front end shows the richest form it can. plotly.js travels inside
the first Plotly figure of a kernel, so a saved page works without a network. Reports find figures
by the classes `vitlab-plotly` and `vitlab-viewer`, and the library by the id `vitlab-plotlyjs`."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from uuid import uuid4

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from vitlab.plots.style import png_bytes

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
_library_sent = False


@dataclass(frozen=True)
class Interactive:
    """A Plotly figure, or a fragment of HTML that needs nothing from outside, and its matplotlib
    twin, which is closed here so that a notebook does not draw it a second time.
    """

    figure: go.Figure | str = field(repr=False)
    static: Figure = field(repr=False)

    def __post_init__(self):
        plt.close(self.static)

    def to_html(self) -> str:
        """The figure alone, for a page that has plotly.js already."""
        if isinstance(self.figure, str):
            return self.figure
        name = f"vitlab-{uuid4()}"
        figure = self.figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=name, config=CONFIG
        )
        return FIGURE.format(figure=figure, name=name, height=self.figure.layout.height or 400)

    def to_png(self) -> bytes:
        return png_bytes(self.static)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        global _library_sent
        library = ""
        if not _library_sent and not isinstance(self.figure, str):
            library = LIBRARY.format(library=get_plotlyjs())
            _library_sent = True
        return {
            "text/html": library + self.to_html(),
            "image/png": base64.b64encode(self.to_png()).decode(),
            "text/plain": repr(self),
        }


def plotly_text(text: object) -> str:
    """The text so that Plotly shows it as it is: it reads some HTML, formulas between `$`, and
    `%{name}` in hover texts.
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
