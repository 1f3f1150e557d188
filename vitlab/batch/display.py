"""What a batch prints: its live progress, the plan of a dry run, and how each task ended."""

from __future__ import annotations

import time
from threading import Lock
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

COLORS = {"done": "green", "failed": "red", "skipped": "yellow", "pending": "default"}
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


class Display:
    """Live progress of a batch: a bar for all of it, one for each running notebook, and a line for
    each that has ended. Where the output is no terminal, only these lines are written.

    total: notebooks to run; with one, there is no bar for the whole. width: of the labels. Threads
    may share it."""

    def __init__(self, total: int, width: int = 0):
        self.width = width
        self._console = open_console()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=2,
            disable=not self._console.is_terminal,
        )
        self._lock, self._ended = Lock(), set()
        self._bars: dict[int, TaskID] = {}
        self._total, self._done, self._note = total, 0, ""
        self._began = time.monotonic()
        self._whole = self._progress.add_task("batch", total=total, text="", visible=total > 1)

    def show(self, number: int, label: str, cell: int, cells: int) -> None:
        """Notebook `number` is at this cell; the first call adds a bar for it."""
        with self._lock:
            if number in self._ended:  # a message that comes late
                return
            if number not in self._bars:
                self._bars[number] = self._progress.add_task(label, text="")
            text = f"cell {cell} of {cells}"
            self._progress.update(self._bars[number], completed=cell, total=cells, text=text)

    def note(self, text: str) -> None:
        """Show on the bar of the whole where the batch runs: `2 running on 3 workers`."""
        self._note = text
        self._update_whole()

    def hide(self, number: int) -> None:
        """Notebook `number` is not running now."""
        with self._lock:
            if number in self._bars:
                self._progress.remove_task(self._bars.pop(number))

    def settle(self, number: int, label: str, text: str) -> None:
        """Notebook `number` has ended: replace its bar by a line with its outcome."""
        self._ended.add(number)
        self.hide(number)
        self.write(f"{label:{self.width}}  {text}")
        self._done += 1
        self._update_whole()

    def write(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _update_whole(self) -> None:
        text = f"{self._done} of {self._total} notebooks"
        left, time_left = self._total - self._done, ""
        if self._done and left:
            each = (time.monotonic() - self._began) / self._done
            time_left = f"about {format_seconds(each * left)} left"
        text = ", ".join(filter(None, [text, self._note, time_left]))
        self._progress.update(self._whole, completed=self._done, text=text)

    def __enter__(self) -> Display:
        self._update_whole()
        self._progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self._progress.stop()


def print_summary(content: dict[str, Any], console: Console | None = None) -> None:
    """Print the tasks of a batch.json: how each ended, in what time, and what went wrong."""
    table = _start_table(content, "time")
    for record in content["tasks"]:
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f} s"
        table.add_row(*_identify(record), seconds, escape(describe_problem(record)))
    (console or open_console()).print(table)


def print_plan(content: dict[str, Any], console: Console | None = None) -> None:
    """Print what a dry run gives: each task, its last time, why it would run, and the total."""
    console, table = console or open_console(), _start_table(content, "last time")
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
        total = format_seconds(sum(known))
        words += f" {len(known)} of them took {total} in all when they last ran."
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


def open_console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a log has no edge to wrap at
    return console


def _start_table(content: dict[str, Any], *measures: str) -> Table:
    table = Table(title=escape(content["title"]), title_justify="left", expand=False)
    for column in ("notebook", "point", "status", *measures, ""):
        table.add_column(column, justify="right" if column in measures else "left", overflow="fold")
    return table


def _identify(record: dict[str, Any]) -> tuple[str, str, str]:
    point = " ".join(str(value) for value in record["point"].values())
    return record["notebook"], escape(point), f"[{COLORS[record['status']]}]{record['status']}[/]"
