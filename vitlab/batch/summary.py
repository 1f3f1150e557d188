"""The table at the end of a batch."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLORS = {"done": "green", "failed": "red", "skipped": "yellow", "pending": "default"}


def print_summary(content: dict[str, Any], console: Console | None = None) -> None:
    """Print the tasks of a batch.json: notebook, point, how it ended, in what time, and what went wrong in which cell."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a log has no edge to wrap at
    table = Table(title=escape(content["title"]), title_justify="left", expand=False)
    for column in ("notebook", "point", "status", "time", ""):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for record in content["tasks"]:
        point = " ".join(str(value) for value in record["point"].values())
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f} s"
        status = f"[{COLORS[record['status']]}]{record['status']}[/]"
        table.add_row(record["notebook"], escape(point), status, seconds, escape(describe_problem(record)))
    console.print(table)


def describe_problem(record: dict[str, Any]) -> str:
    """`cell 7: history = fit(...): ValueError: what it says` for a failed task, the note for any other."""
    error = record["error"]
    if not error:
        return record["note"]
    place = f"cell {error['cell']}: {error['line']}\n" if error["cell"] else ""
    return f"{place}{error['name']}: {error['value']}"
