"""Whether each figure that is promised is there, and says in words what it shows: a caption, and a
text for who cannot see it.
"""

from __future__ import annotations

import re

from vitlab.report.clean import PICTURES
from vitlab.report.gather import Page
from vitlab.report.guards.finding import Finding
from vitlab.report.options import read_options

LIVE = re.compile(r"vitlab-plotly|vitlab-viewer|plotly|<svg|<img|<canvas|<video|<iframe")


def check_figures(page: Page) -> list[Finding]:
    """Findings of the rules nothing shown, caption and alternative text; cells that failed or are
    hidden are passed over.

    A label `fig-` or `tbl-` is a promise, and so are a caption and an alternative text without one.
    A cell that says in words why there is nothing keeps it too."""
    findings = []
    for number, cell in enumerate(page.executed.cells if page.executed else (), start=1):
        if cell.cell_type != "code" or any(
            output.output_type == "error" for output in cell.outputs
        ):
            continue
        options, _ = read_options(cell.source)
        if options.get("include") is False or options.get("output", True) is False:
            continue
        for rule, message in _judge(options, cell.outputs):
            label = str(options.get("label", ""))
            findings.append(
                Finding(rule, page.path, message, cell=number, label=label, page=page.slug)
            )
    return findings


def _judge(options, outputs):
    label = str(options.get("label", ""))
    data = [output.data for output in outputs if "data" in output]
    is_table = label.startswith("tbl-") or ("tbl-cap" in options and "fig-cap" not in options)
    is_figure = not is_table and (
        label.startswith("fig-") or not options.keys().isdisjoint(("fig-cap", "fig-alt"))
    )
    drawn = any(_is_picture(item) for item in data if not (is_table and _is_table(item)))
    if is_table and not any(_is_table(item) for item in data):
        yield (
            "nothing shown",
            f"a table is promised here, and the cell shows {'only a picture' if drawn else 'none'}",
        )
    if is_figure and not any(_is_figure(item) for item in data):
        instead = any("<table" in item.get("text/html", "") for item in data)
        yield (
            "nothing shown",
            (
                "a figure is promised here, and the cell shows"
                f" {'only a table' if instead else 'none'}"
            ),
        )
    if drawn and not is_table and not str(options.get("fig-cap") or "").strip():
        yield "caption", "this figure has no caption: write `#| fig-cap: ...`"
    if drawn and not str(options.get("fig-alt") or "").strip():
        yield "alternative text", "this figure has no alternative text: write `#| fig-alt: ...`"


def _is_picture(data):
    return any(kind.startswith("image/") for kind in data) or LIVE.search(data.get("text/html", ""))


def _is_table(data):
    """Whether it is a table, or words in its place; HTML beside a picture is a live figure."""
    html = data.get("text/html", "").strip() and not any(kind.startswith("image/") for kind in data)
    return html or data.get("text/markdown", "").strip()


def _is_figure(data):
    """Whether it is a picture that the report can show, a live figure, or words in its place."""
    html = data.get("text/html", "").strip()
    live = html and ("<table" not in html or LIVE.search(html))
    return live or data.get("text/markdown", "").strip() or not data.keys().isdisjoint(PICTURES)
