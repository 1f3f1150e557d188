"""The verdict in the terminal: one row a check, what failed in rows of its own, and the points of the rubric."""

from __future__ import annotations

from itertools import groupby

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.submission.opened import FAIL, PASS, SKIPPED, Result
from vitlab.submission.verify import Verdict

COLORS = {PASS: "green", FAIL: "red", SKIPPED: "yellow"}
MOST_SHOWN = 20  # failures of one check that have a row each
LONGEST = 1_000  # letters of one text
WIDTH = 160  # of a log, which has no edge to wrap at


def print_verdict(verdict: Verdict, name: str, console: Console | None = None) -> None:
    """Print what was checked and what was seen. What a stranger wrote is shown without its control characters."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    by = f"{verdict.title}, by {verdict.author}: " if verdict.title else ""
    table = Table(title=show(f"{by}{name}"), title_justify="left", expand=False)
    for column in ("check", "of", "", "what was seen"):
        table.add_column(column, overflow="fold")
    for row in summarise(verdict):
        table.add_row(show(row.check), show(row.subject), f"[{COLORS[row.status]}]{row.status}[/]", show(row.detail))
    console.print(table)
    if verdict.points is not None:
        console.print(_make_points_table(verdict.points))
    console.print(show(describe_verdict(verdict)), highlight=False)


def summarise(verdict: Verdict) -> list[Result]:
    """One row for what passed of a check, one for what was skipped, and one for each failure, up to twenty; a rerun in full."""
    rows = []
    for check, group in groupby(verdict.results, key=lambda result: result.check):
        results = list(group)
        if check == "rerun":
            rows += results
            continue
        for status in (PASS, SKIPPED):
            of = [result for result in results if result.status == status]
            if len(of) == 1:
                rows += of
            elif of:
                details = list(dict.fromkeys(result.detail for result in of))
                told = details[0] if len(details) == 1 else f"the first: {of[0].detail}"
                rows.append(Result(check, f"{len(of)} of {len(results)}", status, told))
        failed = [result for result in results if result.status == FAIL]
        rows += failed[:MOST_SHOWN]
        if len(failed) > MOST_SHOWN:
            rows.append(Result(check, f"{len(failed) - MOST_SHOWN} more", FAIL, ""))
    return rows


def describe_verdict(verdict: Verdict) -> str:
    """The last line: how many failed, or what a pass does not show."""
    if verdict.failed:
        names = list(dict.fromkeys(result.check for result in verdict.failed))
        return f"{len(verdict.failed)} failed, in: {', '.join(names)}."
    rerun = [result.status for result in verdict.results if result.check == "rerun"]
    if rerun == [SKIPPED]:
        return "Nothing failed. Whether the code gives these numbers, only --rerun shows."
    return "Nothing failed."


def show(text: str) -> str:
    """A stranger's text as it may stand in a terminal: no control characters, no markup of rich."""
    return escape("".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST]))


def _make_points_table(points: pd.DataFrame) -> Table:
    missing = points["missing"] != ""
    open_points, total = points.loc[~missing, "points"].sum(), points["points"].sum()
    title = (
        f"Rubric: {total:g} points; all that is looked for is there for questions worth {open_points:g}. Marks are the marker's."
    )
    table = Table(title=title, title_justify="left", expand=False)
    for column in points.columns:
        table.add_column(column, justify="right" if column == "points" else "left", overflow="fold")
    for row in points.itertuples(index=False):
        table.add_row(show(row.question), f"{row.points:g}", show(row.answer), show(row.there), f"[red]{show(row.missing)}[/]")
    return table
