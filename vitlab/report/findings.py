"""What keeps a report from being published: a finding for each place, as a table in the terminal,
in a file, and as a visible mark in the pages.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from nbformat import from_dict
from nbformat.v4 import new_markdown_cell
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.batch.display import open_console
from vitlab.files import write_json
from vitlab.markup import code
from vitlab.report.clean import cell_number
from vitlab.report.gather import Page, Report
from vitlab.report.markdown import callout

RULES = {
    "unfinished": "the notebook did not run to its end",
    "out of date": "parameters or code have changed",
    "source": "not executed from its present source",
    "not executed": "a cell was not executed",
    "order": "cells were executed out of order",
    "failed": "a cell failed",
    "nothing shown": "a figure or table is missing",
    "caption": "a figure without a caption",
    "alternative text": "a figure without an alternative text",
    "reference": "a reference leads nowhere",
    "link": "a link leads nowhere",
    "picture": "a picture is missing",
    "run": "a run is incomplete",
    "size": "the page is too large",
}


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where.

    rule: one of RULES. file: an executed copy or a run's folder, relative to the reports folder.
    cell: its place in that file, counted from 1 with Markdown cells; None where it is not about one
    cell. label: of that cell. page: name of its page. shown: the page says so already, and needs no
    mark."""

    rule: str
    file: str
    message: str
    cell: int | None = None
    label: str = ""
    page: str = ""
    shown: bool = False


class ReportRefused(Exception):
    """A report that was not published. findings: why."""

    def __init__(self, findings: Sequence[Finding]):
        self.findings = tuple(findings)
        super().__init__(f"the report was not published: {count_problems(findings)}")


def count_problems(findings: Sequence[Finding]) -> str:
    """Such as "1 problem" or "3 problems"."""
    return f"{len(findings)} problem{'s' * (len(findings) != 1)}"


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print a table of the findings by file: cell, label, rule, message."""
    console = console or open_console()
    table = Table(expand=False)
    for column in ("cell", "label", "rule", "what is wrong"):
        table.add_column(column, justify="right" if column == "cell" else "left", overflow="fold")
    for file in dict.fromkeys(finding.file for finding in findings):
        table.add_section()
        table.add_row("", "", "", f"[bold]{escape(file)}[/]")
        for finding in findings:
            if finding.file == file:
                cell, rule = str(finding.cell or ""), f"[red]{finding.rule}[/]"
                table.add_row(cell, escape(finding.label), rule, escape(finding.message))
    console.print(table)


def write_findings(file: Path, findings: Sequence[Finding]) -> None:
    """Write them as a JSON list."""
    write_json(file, [asdict(finding) for finding in findings])


def read_findings(file: Path) -> list[Finding]:
    return [Finding(**item) for item in json.loads(Path(file).read_text(encoding="utf-8"))]


def mark_report(report: Report, findings: Sequence[Finding]) -> Report:
    """The report with a call-out after each cell that a finding is about, or at the top of the page
    where it is about none; and a list of the pages on the first page.
    """
    pages = []
    for page in report.pages:
        pages.append(_mark_page(page, [item for item in findings if item.page == page.slug]))
    if findings:
        summary = new_markdown_cell(_sum_up(report.pages, findings))
        pages[0].notebook.cells.insert(0, summary)
    return replace(report, pages=tuple(pages))


def _mark_page(page: Page, findings: Sequence[Finding]) -> Page:
    notebook = from_dict(page.notebook)
    places = [cell_number(cell) for cell in notebook.cells]
    # a cell that the page leaves out: the mark goes to the one before it
    waiting: dict[int, list[Finding]] = {}
    for finding in findings:
        if not finding.shown:
            before = [place for place in places if place <= (finding.cell or 0)]
            waiting.setdefault(max(before, default=0), []).append(finding)
    cells = _write_marks(waiting.pop(0, []))
    for place, cell in zip(places, notebook.cells, strict=True):
        cells += [cell, *_write_marks(waiting.pop(place, []))]
    notebook.cells = cells
    return replace(page, notebook=notebook)


def _write_marks(findings: Sequence[Finding]) -> list:
    """One call-out for each cell, and one for all that is about no cell, as Markdown cells."""
    marks = []
    for cell, group in groupby(findings, key=lambda finding: finding.cell):
        same = list(group)
        rules = "; ".join(dict.fromkeys(RULES[finding.rule] for finding in same))
        lines = []
        for finding in same:
            lines.append(
                f"- {finding.message}" if cell else f"- {code(finding.file)}: {finding.message}"
            )
        if cell:
            label = f" (*{same[0].label}*)" if same[0].label else ""
            lines = [f"Cell {cell} of {code(same[0].file)}{label}:", "", *lines]
        marks.append(new_markdown_cell(callout("warning", f"Problem: {rules}", "\n".join(lines))))
    return marks


def _sum_up(pages: Sequence[Page], findings: Sequence[Finding]) -> str:
    lines = []
    for page in pages:
        rules = Counter(finding.rule for finding in findings if finding.page == page.slug)
        if rules:
            what = [f"{rule} ({count})" if count > 1 else rule for rule, count in rules.items()]
            lines.append(f"- [{page.title_markdown}]({page.slug}.ipynb): {', '.join(what)}")
    return callout("warning", f"This report has {count_problems(findings)}", "\n".join(lines))
