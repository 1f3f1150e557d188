"""The tables that a batch prints: before it, what it would do and at what cost; after it, how it went."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.batch.estimate import REFERENCE, UTILISATION

COLORS = {"done": "green", "failed": "red", "skipped": "yellow", "pending": "default"}
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))
PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9))


def print_summary(content: dict[str, Any], console: Console | None = None) -> None:
    """Print the tasks of a batch.json: notebook, point, how it ended, in what time, and what went wrong in which cell."""
    table = _start_table(content, "time")
    for record in content["tasks"]:
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f} s"
        table.add_row(*_identify(record), seconds, escape(describe_problem(record)))
    _open_console(console).print(table)


def print_plan(content: dict[str, Any], console: Console | None = None) -> None:
    """Print what a dry run gives: each task with its estimated cost and why it would run, the total, and how it was estimated."""
    estimate, console = content["estimate"], _open_console(console)
    table = _start_table(content, "FLOPs", "here", f"1 {REFERENCE}")
    for record, cost in zip(content["tasks"], estimate["tasks"], strict=True):
        training = f"{cost['images']:,} images × {cost['epochs']} epochs" if cost.get("images") else ""
        here = "" if cost["seconds"] is None else f"{'' if cost['measured'] else '~'}{format_seconds(cost['seconds'])}"
        reference = "" if cost["reference_s"] is None else f"~{format_seconds(cost['reference_s'])}"
        flops = "" if cost["flops"] is None else format_flops(cost["flops"])
        problem = f"not estimated: {cost['problem']}" if cost["problem"] else ""
        note = "; ".join(part for part in (describe_problem(record), training, problem) if part)
        table.add_row(*_identify(record), flops, here, reference, escape(note or "up to date"))
    console.print(table)
    for line in describe_estimate(content):
        console.print(line, markup=False, highlight=False)


def describe_estimate(content: dict[str, Any]) -> list[str]:
    """The total of a dry run in words, and how it came about."""
    totals, speeds = content["estimate"]["totals"], content["estimate"]["speeds"]
    if not totals["tasks"]:
        return ["Everything is up to date; nothing would run."]
    known = totals["tasks"] - totals["without_seconds"]
    lines = [f"To run: {totals['tasks']} of {len(content['tasks'])} notebooks."]
    if known:
        lines[0] += f" Here, {known} of them take about {format_seconds(totals['seconds'])} in all."
    if totals["without_seconds"]:
        lines[0] += f" Without an estimate: {totals['without_seconds']}."
    if totals["flops"]:
        lines.append(
            f"Training alone: {format_flops(totals['flops'])}, about {format_seconds(totals['reference_s'])} on one {REFERENCE}."
        )
    for speed in speeds:
        rate = (
            f"{format_flops(speed['flops_per_s'])} a second in {speed['precision']}" if speed["flops_per_s"] else speed["problem"]
        )
        line = f"Matrix products on this machine ({speed['device']}): {rate}."
        lines += [line] if line not in lines else []
    how = "An estimate. Without ~: seconds that the notebook took when it last ran."
    if totals["flops"]:
        how += (
            " With ~: training images × epochs × 3 × FLOPs of a forward pass (less with a frozen part), counted on the model, "
            f"over {UTILISATION} of the rate of matrix products: this machine's as measured now, the {REFERENCE}'s by its data "
            "sheet (312 TFLOP/s in bf16, 19.5 in fp32). All epochs, one notebook after the other. Validation and the rest of the "
            "notebook come on top, and so does the preparation of images, which may keep a fast GPU waiting longer than its own "
            "work takes. Within a factor of three at best; small and many-layered models are slower."
        )
    return [*lines, how]


def describe_problem(record: dict[str, Any]) -> str:
    """`cell 7: history = fit(...): ValueError: what it says` for a failed task, the note for any other."""
    error = record["error"]
    if not error:
        return record["note"]
    place = f"cell {error['cell']}: {error['line']}\n" if error["cell"] else ""
    return f"{place}{error['name']}: {error['value']}"


def format_seconds(seconds: float) -> str:
    """Two digits are enough for a plan: `34 s`, `5.2 min`, `3.4 h`, `12 d`."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= 2 * size), ("s", 1))
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 or value == 0 else f"{value:.1f} {unit}"


def format_flops(flops: float) -> str:
    prefix, size = next(((prefix, size) for prefix, size in PREFIXES if flops >= size), ("M", 1e6))
    value = flops / size
    return f"{value:.0f} {prefix}FLOP" if value >= 10 else f"{value:.1f} {prefix}FLOP"


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
