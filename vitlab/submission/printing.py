"""The verdict in the terminal: one row for each check, one for each failure, and the points of the
rubric.
"""

from __future__ import annotations

from itertools import groupby

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.submission.opened import FAIL, PASS, SKIPPED, Result
from vitlab.submission.verify import Verdict

COLORS = {PASS: "green", FAIL: "red", SKIPPED: "yellow"}
MAX_FAILURES = 20  # of one check that have a row each
MAX_LETTERS = 1_000  # of one text
LOG_WIDTH = 160  # columns where the output is not a terminal


def print_verdict(verdict: Verdict, name: str, console: Console | None = None) -> None:
    """Print the checks and their results. Text from the bundle is shown without its control
    characters.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    by = f"{verdict.title}, by {verdict.author}: " if verdict.title else ""
    table = Table(title=show(f"{by}{name}"), title_justify="left", expand=False)
    for column in ("check", "of", "", "result"):
        table.add_column(column, overflow="fold")
    for row in summarise(verdict):
        table.add_row(
            show(row.check),
            show(row.subject),
            f"[{COLORS[row.status]}]{row.status}[/]",
            show(row.detail),
        )
    console.print(table)
    if verdict.points is not None:
        console.print(_make_points_table(verdict.points))
    console.print(show(describe_verdict(verdict)), highlight=False)


def summarise(verdict: Verdict) -> list[Result]:
    """For each check, one row for what passed, one for what was skipped, and one for each failure,
    up to 20; a rerun in full.
    """
    rows = []
    for check, group in groupby(verdict.results, key=lambda result: result.check):
        results = list(group)
        if check == "rerun":
            rows += results
            continue
        for status in (PASS, SKIPPED):
            of = [result for result in results if result.status == status]
            rows += (
                of
                if len(of) < 2
                else [
                    Result(
                        check, f"{len(of)} of {len(results)}", status, f"the first: {of[0].detail}"
                    )
                ]
            )
        failed = [result for result in results if result.status == FAIL]
        rows += failed[:MAX_FAILURES]
        if len(failed) > MAX_FAILURES:
            rows.append(Result(check, f"{len(failed) - MAX_FAILURES} more", FAIL, ""))
    return rows


def describe_verdict(verdict: Verdict) -> str:
    """The last line: how many failed, or that a rerun was not done."""
    if verdict.failed:
        names = list(dict.fromkeys(result.check for result in verdict.failed))
        return f"{len(verdict.failed)} failed, in: {', '.join(names)}."
    rerun = [result.status for result in verdict.results if result.check == "rerun"]
    if rerun == [SKIPPED]:
        return "Nothing failed. Only --rerun shows whether the code gives these numbers."
    return "Nothing failed."


def show(text: str) -> str:
    """Text from the bundle, safe for a terminal: without control characters and markup of rich."""
    return escape("".join(letter if letter.isprintable() else "?" for letter in text[:MAX_LETTERS]))


def _make_points_table(points: pd.DataFrame) -> Table:
    missing = points["missing"] != ""
    open_points, total = points.loc[~missing, "points"].sum(), points["points"].sum()
    title = (
        f"Rubric: {total:g} points; nothing is missing for questions worth {open_points:g}. The"
        " marker decides the marks."
    )
    table = Table(title=title, title_justify="left", expand=False)
    for column in points.columns:
        table.add_column(column, justify="right" if column == "points" else "left", overflow="fold")
    for row in points.itertuples(index=False):
        table.add_row(
            show(row.question),
            f"{row.points:g}",
            show(row.answer),
            show(row.there),
            f"[red]{show(row.missing)}[/]",
        )
    return table
