"""How heavy a page is, and which of its cells make it so: reckoned from what its outputs weigh,
before it is rendered.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitlab.report.clean import for_web, split_plotly
from vitlab.report.gather import Page
from vitlab.report.guards.execution import cell_label
from vitlab.report.guards.finding import Finding
from vitlab.report.guards.references import cell_number

FRAME = 40_000  # bytes: style sheet, navigation, script


def check_size(pages: Sequence[Page], max_page_mb: float) -> list[Finding]:
    """A finding for each page of more than `max_page_mb` (10^6 bytes); it names the heaviest
    cell.
    """
    findings = []
    for page in pages:
        by_cell, library = weigh_cells(page)
        total = FRAME + library + sum(by_cell.values())
        if total > 1e6 * max_page_mb:
            heaviest = max(by_cell, key=by_cell.get, default=0)
            # no cell is to blame for the library
            heaviest = heaviest if by_cell.get(heaviest, 0) > library else 0
            message = (
                f"this page weighs about {total / 1e6:.1f} MB, and the limit is {max_page_mb:g} MB"
            )
            if heaviest:
                message += f"; the heaviest cell has {by_cell[heaviest] / 1e6:.1f} MB of it"
            if library:
                message += f", the library for interactive figures {library / 1e6:.1f} MB"
            label = cell_label(page.executed.cells[heaviest - 1]) if heaviest else ""
            findings.append(
                Finding(
                    "size", page.path, message, cell=heaviest or None, label=label, page=page.slug
                )
            )
    return findings


def weigh_cells(page: Page) -> tuple[dict[int, int], int]:
    """Bytes by place of the cell in the executed copy, and bytes of the Plotly library, which a
    page carries once.
    """
    weights, library = {}, 0
    for cell in for_web(page.notebook).cells:
        weight = len(cell.source)
        for output in cell.get("outputs", ()):
            for content in output.get("data", {"text/plain": output.get("text", "")}).values():
                plotly, rest = (
                    split_plotly(content) if "vitlab-plotlyjs" in content[:2000] else ("", content)
                )
                library = max(library, len(plotly))
                weight += len(rest)
        number = cell_number(cell)
        weights[number] = weights.get(number, 0) + weight
    return weights, library
