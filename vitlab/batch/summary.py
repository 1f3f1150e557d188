"""The tables that a batch prints: before it, what it would do and how long that took last time;
after it, how it went.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLORS = {"done": "green", "failed": "red", "skipped": "yellow", "pending": "default"}
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


def print_summary(content: dict[str, Any], console: Console | None = None) -> None:
    """Print the tasks of a batch.json: notebook, point, how it ended, in what time, and what went
    wrong in which cell.
    """
    table = _start_table(content, "time")
    for record in content["tasks"]:
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f} s"
        table.add_row(*_identify(record), seconds, escape(describe_problem(record)))
    _open_console(console).print(table)


def print_plan(content: dict[str, Any], console: Console | None = None) -> None:
    """Print what a dry run gives: each task, how long it took when it last ran, why it would run
    again, and the total.
    """
    console, table = _open_console(console), _start_table(content, "last time")
    for record, seconds in zip(content["tasks"], content["measured_s"], strict=True):
        last = "" if seconds is None else format_seconds(seconds)
        table.add_row(*_identify(record), last, escape(describe_problem(record) or "up to date"))
    console.print(table)
    console.print(describe_plan(content), markup=False, highlight=False)


def describe_plan(content: dict[str, Any]) -> str:
    """The total of a dry run in words."""
    pairs = zip(content["tasks"], content["measured_s"], strict=True)
    last = [seconds for record, seconds in pairs if record["status"] == "pending"]
    if not last:
        return "Everything is up to date; nothing would run."
    known = [seconds for seconds in last if seconds is not None]
    words = f"To run: {len(last)} of {len(content['tasks'])} notebooks."
    if known:
        words += (
            f" {len(known)} of them took {format_seconds(sum(known))} in all when they last ran."
        )
    if len(known) < len(last):
        words += f" Never run before, so of unknown time: {len(last) - len(known)}."
    return words


def describe_problem(record: dict[str, Any]) -> str:
    """`cell 7: history = fit(...): ValueError: what it says` for a failed task, else the note.

    Where the program itself failed, it is the traceback.
    """
    error = record["error"]
    if not error:
        return record["note"]
    place = f"cell {error['cell']}: {error['line']}\n" if error["cell"] else ""
    return error.get("traceback") or f"{place}{error['name']}: {error['value']}"


def format_seconds(seconds: float) -> str:
    """Two digits are enough for a plan: `34 s`, `5.2 min`, `3.4 h`, `12 d`."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= 2 * size), ("s", 1))
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 or value == 0 else f"{value:.1f} {unit}"


def _start_table(content: dict[str, Any], *measures: str) -> Table:
    table = Table(title=escape(content["title"]), title_justify="left", expand=False)
    for column in ("notebook", "point", "status", *measures, ""):
        table.add_column(column, justify="right" if column in measures else "left", overflow="fold")
    return table


def _identify(record: dict[str, Any]) -> tuple[str, str, str]:
    point = " ".join(str(value) for value in record["point"].values())
    return record["notebook"], escape(point), f"[{COLORS[record['status']]}]{record['status']}[/]"


def _open_console(console: Console | None) -> Console:
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a log has no edge to wrap at
    return console
