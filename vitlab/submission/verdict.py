"""The verdict on a bundle: in the terminal, and as JUnit XML for autograders."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.files import atomic
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Result

COLORS = {PASS: "green", FAIL: "red", SKIPPED: "yellow"}
MAX_FAILURES = 20  # of one check that have a row each
MAX_LETTERS = 1_000  # of one text
LOG_WIDTH = 160  # columns where the output is not a terminal


@dataclass(frozen=True)
class Verdict:
    """results: in order. points: of the rubric, None without one. title, author: from the manifest.
    seconds: of each check.
    """

    results: tuple[Result, ...]
    points: pd.DataFrame | None = None
    title: str = ""
    author: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.status == FAIL]


def print_verdict(verdict: Verdict, name: str, console: Console | None = None) -> None:
    """Print the checks with their results, and the points of the rubric."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    by = f"{verdict.title}, by {verdict.author}: " if verdict.title else ""
    table = _make_table(f"{by}{name}", ["check", "of", "", "result"])
    for row in summarise(verdict):
        status = f"[{COLORS[row.status]}]{row.status}[/]"
        table.add_row(_show(row.check), _show(row.subject), status, _show(row.detail))
    console.print(table)
    if verdict.points is not None:
        console.print(_make_points_table(verdict.points))
    console.print(_show(describe_verdict(verdict)), highlight=False)


def summarise(verdict: Verdict) -> list[Result]:
    """For each check, one row for all that passed, one for all that was skipped, and one for each
    failure, up to 20. A rerun is shown in full.
    """
    rows: list[Result] = []
    for check, group in groupby(verdict.results, key=lambda result: result.check):
        results = list(group)
        if check == "rerun":
            rows += results
            continue
        for status in (PASS, SKIPPED):
            same = [result for result in results if result.status == status]
            if len(same) > 1:
                subject = f"{len(same)} of {len(results)}"
                same = [Result(check, subject, status, f"the first: {same[0].detail}")]
            rows += same
        failed = [result for result in results if result.status == FAIL]
        rows += failed[:MAX_FAILURES]
        if len(failed) > MAX_FAILURES:
            rows.append(Result(check, f"{len(failed) - MAX_FAILURES} more", FAIL))
    return rows


def describe_verdict(verdict: Verdict) -> str:
    """The last line: how many failed, or that a rerun was not done."""
    if verdict.failed:
        names = list(dict.fromkeys(result.check for result in verdict.failed))
        return f"{len(verdict.failed)} failed, in: {', '.join(names)}."
    if any(result.check == "rerun" and result.status == SKIPPED for result in verdict.results):
        return "Nothing failed. Only --rerun shows whether the code gives these numbers."
    return "Nothing failed."


def write_junit(verdict: Verdict, path: Path | str) -> None:
    """Write the results as JUnit XML, one test case for each: classname is `verify.<check>`, name
    the file, run or question. A check's time is with its first case.
    """
    statuses = [result.status for result in verdict.results]
    counts = {
        "tests": str(len(statuses)),
        "failures": str(statuses.count(FAIL)),
        "errors": "0",
        "skipped": str(statuses.count(SKIPPED)),
        "time": f"{sum(verdict.seconds.values()):.3f}",
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "vitlab verify", **counts})
    seconds = dict(verdict.seconds)
    for result in verdict.results:
        facts = {
            "classname": f"verify.{result.check}",
            "name": printable(result.subject or result.check),
            "time": f"{seconds.pop(result.check, 0.0):.3f}",
        }
        case = ElementTree.SubElement(suite, "testcase", facts)
        detail = printable(result.detail)
        if result.status == FAIL:
            ElementTree.SubElement(case, "failure", {"message": detail}).text = detail
        elif result.status == SKIPPED:
            ElementTree.SubElement(case, "skipped", {"message": detail})
        else:
            ElementTree.SubElement(case, "system-out").text = detail
    ElementTree.indent(suites, " ")
    with atomic(Path(path)) as temporary:
        ElementTree.ElementTree(suites).write(temporary, encoding="utf-8", xml_declaration=True)


def printable(text: str) -> str:
    """Text from a bundle without control characters, which could steer a terminal and are not
    allowed in XML.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_LETTERS])


def _show(text: str) -> str:
    return escape(printable(text))


def _make_points_table(points: pd.DataFrame) -> Table:
    complete = points.loc[points["missing"] == "", "points"].sum()
    title = (
        f"Rubric: {points['points'].sum():g} points; nothing is missing for questions worth"
        f" {complete:g}. The marker decides the marks."
    )
    table = _make_table(title, list(points.columns))
    for row in points.itertuples(index=False):
        missing = f"[red]{_show(row.missing)}[/]"
        table.add_row(
            _show(row.question), f"{row.points:g}", _show(row.answer), _show(row.there), missing
        )
    return table


def _make_table(title: str, columns: list[str]) -> Table:
    table = Table(title=_show(title), title_justify="left", expand=False)
    for column in columns:
        justify = "right" if column == "points" else "left"
        table.add_column(column, justify=justify, overflow="fold")
    return table
