"""Whether each figure that is promised is there, and says in words what it shows: a caption, and a text for who cannot see it."""

from __future__ import annotations

import re

from vitlab.report.gather import Page
from vitlab.report.guards.finding import Finding
from vitlab.report.options import read_options

LIVE = re.compile(r"vitlab-plotly|vitlab-viewer|plotly|<svg|<img|<canvas|<video|<iframe")


def check_figures(page: Page) -> list[Finding]:
    """Findings of the rules nothing shown, caption and alternative text; cells that failed or are hidden are passed over.

    A cell may say in Markdown why there is no figure; it then promises none.
    """
    findings = []
    for number, cell in enumerate(page.executed.cells if page.executed else (), start=1):
        if cell.cell_type != "code" or any(output.output_type == "error" for output in cell.outputs):
            continue
        options, _ = read_options(cell.source)
        if options.get("include") is False or options.get("output", True) is False:
            continue
        for rule, message in _judge(options, cell.outputs):
            label = str(options.get("label", ""))
            findings.append(Finding(rule, page.path, message, cell=number, label=label, page=page.slug))
    return findings


def _judge(options, outputs):
    label = str(options.get("label", ""))
    data = [output.data for output in outputs if "data" in output]
    kinds = {kind for item in data for kind in item}
    is_table = label.startswith("tbl-") or ("tbl-cap" in options and "fig-cap" not in options)
    if is_table:
        if not data:
            yield "nothing shown", "a table is promised here, and the cell shows none"
        return
    pictures = {kind for kind in kinds if kind.startswith("image/")}
    if label.startswith("fig-") and not pictures and not {"text/html", "text/markdown"} & kinds:
        yield "nothing shown", "a figure is promised here, and the cell shows none"
    drawn = pictures or any(LIVE.search(item.get("text/html", "")) for item in data)
    if drawn and not str(options.get("fig-cap") or "").strip():
        yield "caption", "this figure has no caption: write `#| fig-cap: ...`"
    if drawn and not str(options.get("fig-alt") or "").strip():
        yield "alternative text", "this figure says nothing to who cannot see it: write `#| fig-alt: ...`"
