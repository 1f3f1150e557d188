"""One place where something is wrong, and tables of them: for the terminal, for a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.errors import UserError
from vitlab.runs import write_json

RULES = {
    "unfinished": "the notebook did not run to its end",
    "out of date": "parameters or code changed since",
    "source": "not executed with its present source",
    "not executed": "a cell was not executed",
    "order": "cells were executed out of order",
    "failed": "a cell failed",
    "nothing shown": "something was promised and is not shown",
    "caption": "a figure without a caption",
    "alternative text": "a figure without an alternative text",
    "reference": "a reference leads nowhere",
    "link": "a link leads nowhere",
    "picture": "a picture is not here",
    "run": "a run is half-done",
    "size": "the page is too large",
}


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where.

    rule: one of RULES. file: an executed copy or a run's folder, relative to the reports folder.
    cell: its place in that file, counted from 1 with Markdown cells counted too; None where it is
    not about one cell. label: of that cell. page: name of the page that it is on. shown: the page
    says so already, and needs no mark."""

    rule: str
    file: str
    message: str
    cell: int | None = None
    label: str = ""
    page: str = ""
    shown: bool = False

    def __post_init__(self):
        if self.rule not in RULES:
            raise UserError(f"unknown rule {self.rule!r}; rules: {', '.join(RULES)}")


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """A row for each finding, with columns rule, file, cell (Int64), label, message and page."""
    columns = ["rule", "file", "cell", "label", "message", "page"]
    return pd.DataFrame([asdict(finding) for finding in findings], columns=columns).astype(
        {"cell": "Int64"}
    )


def count_problems(findings: Sequence[Finding]) -> str:
    """Such as "1 problem" or "3 problems"."""
    return f"{len(findings)} problem{'s' * (len(findings) != 1)}"


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print what is wrong under the file that it is in: cell, label, rule, message."""
    console = console or Console()
    if not findings:
        return console.print("Nothing is out of date, missing or broken.")
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a log has no edge to wrap at
    table = Table(expand=False)
    for column in ("cell", "label", "rule", "what is wrong"):
        table.add_column(column, justify="right" if column == "cell" else "left", overflow="fold")
    for file in dict.fromkeys(finding.file for finding in findings):
        table.add_section()
        table.add_row("", "", "", f"[bold]{escape(file)}[/]")
        for finding in findings:
            if finding.file == file:
                cell = "" if finding.cell is None else str(finding.cell)
                table.add_row(
                    cell, escape(finding.label), f"[red]{finding.rule}[/]", escape(finding.message)
                )
    console.print(table)


def write_findings(file: Path, findings: Sequence[Finding]) -> None:
    """Keep them as a JSON list of objects, for machines."""
    write_json(file, [asdict(finding) for finding in findings])


def read_findings(file: Path) -> list[Finding]:
    names = {field.name for field in fields(Finding)}
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    return [
        Finding(**{key: value for key, value in item.items() if key in names}) for item in content
    ]
