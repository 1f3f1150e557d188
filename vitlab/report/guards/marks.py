"""Visible marks in the pages, at the places that keep a report from being published; and their sum
on the first page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from nbformat import from_dict
from nbformat.v4 import new_markdown_cell

from vitlab.markup import code
from vitlab.report.blocks import callout
from vitlab.report.gather import Page, Report
from vitlab.report.guards.finding import RULES, Finding
from vitlab.report.guards.references import cell_number


def mark_report(report: Report, findings: Sequence[Finding]) -> Report:
    """The report with a call-out after each cell that a finding is about, or at the top of the page
    where it is about none.
    """
    pages = [
        _mark_page(page, [finding for finding in findings if finding.page == page.slug])
        for page in report.pages
    ]
    if findings:
        pages[0].notebook.cells.insert(0, new_markdown_cell(_sum_up(report.pages, findings)))
    return replace(report, pages=tuple(pages))


def _mark_page(page: Page, findings) -> Page:
    notebook = from_dict(page.notebook)
    places = [cell_number(cell) for cell in notebook.cells]
    waiting: dict[int, list[Finding]] = {}
    for finding in findings:
        if not finding.shown:
            number = finding.cell or 0
            waiting.setdefault(
                max((place for place in places if place <= number), default=0), []
            ).append(finding)
    cells = _write_marks(waiting.pop(0, []))
    for place, cell in zip(places, notebook.cells, strict=True):
        cells += [cell, *_write_marks(waiting.pop(place, []))]
    notebook.cells = cells
    return replace(page, notebook=notebook)


def _write_marks(findings):
    """One call-out for each cell, and one for all that is about no cell, as Markdown cells."""
    marks = []
    for cell, group in groupby(findings, key=lambda finding: finding.cell):
        same = list(group)
        first = same[0]
        about = f" (*{first.label}*)" if first.label else ""
        where = (
            f"Cell {cell} of {code(first.file)}{about}"
            if cell
            else code(first.file)
            if len(same) == 1
            else "In these files"
        )
        rules = list(dict.fromkeys(RULES[finding.rule] for finding in same))
        lines = [
            (
                finding.message
                if cell or len(same) == 1
                else f"{code(finding.file)}: {finding.message}"
            )
            for finding in same
        ]
        said = (
            f" {lines[0]}" if len(same) == 1 else "\n\n" + "\n".join(f"- {line}" for line in lines)
        )
        marks.append(
            new_markdown_cell(
                callout("warning", f"Not fit to publish: {'; '.join(rules)}", f"{where}:{said}")
            )
        )
    return marks


def _sum_up(pages, findings) -> str:
    counts = Counter(finding.page for finding in findings)
    lines = []
    for page in pages:
        if counts[page.slug]:
            rules = Counter(finding.rule for finding in findings if finding.page == page.slug)
            what = ", ".join(
                f"{rule} ({count})" if count > 1 else rule for rule, count in rules.items()
            )
            lines.append(f"- [{page.title_markdown}]({page.slug}.ipynb): {what}")
    many = (
        "1 place of this report is"
        if len(findings) == 1
        else f"{len(findings)} places of this report are"
    )
    return callout("warning", f"{many} not fit to publish", "\n".join(lines))
