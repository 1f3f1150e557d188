"""The verdict on a bundle: its checks in order, their results in the terminal, and as JUnit XML for
autograders.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlab.batch.display import open_console
from vitlab.errors import UserError
from vitlab.files import atomic, hash_file
from vitlab.submission.archive import Bundle, Options, UnsafeBundle, open_bundle
from vitlab.submission.check_results import check_data, check_metrics, check_predicted, check_splits
from vitlab.submission.checks import (
    FAIL,
    PASS,
    SKIPPED,
    Result,
    check_answers,
    check_contents,
    check_executed,
    check_manifest,
    check_parameters,
    check_rubric,
    check_sources,
    check_weights,
    describe_error,
    make_points_table,
)
from vitlab.submission.rerun import check_rerun
from vitlab.submission.rubric import load_rubric

COLORS = {PASS: "green", FAIL: "red", SKIPPED: "yellow"}
MAX_FAILURES = 20  # of one check that have a row each
MAX_LETTERS = 1_000  # of one text
# in the order in which they are made and shown
CHECKS: dict[str, Callable[[Bundle], list[Result]]] = {
    "manifest": check_manifest,
    "contents": check_contents,
    "parameters": check_parameters,
    "executed": check_executed,
    "sources": check_sources,
    "splits": check_splits,
    "data": check_data,
    "predictions": check_predicted,
    "metrics": check_metrics,
    "weights": check_weights,
    "answers": check_answers,
    "rubric": check_rubric,
    "rerun": check_rerun,
}


@dataclass(frozen=True)
class Verdict:
    """results: in order. points: of the rubric, None without one. title, author: as noted."""

    results: tuple[Result, ...]
    points: pd.DataFrame | None = None
    title: str = ""
    author: str = ""

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.status == FAIL]


def verify_bundle(
    path: Path | str,
    *,
    rerun: bool = False,
    tolerance: float = 0.02,
    rubric: Path | None = None,
    data: str = "",
    minutes: float = 120,
) -> Verdict:
    """Check a bundle (a zip, or the folder that it was unpacked to). Nothing of it is executed
    unless `rerun` is set.

    tolerance: how far each metric of the rerun may be from the bundle's. rubric: the marker's own
    file, instead of the one in the bundle. data: name of the data set on this machine
    (folder:PATH), where the bundle names a place on the author's. minutes: how long one notebook
    may take when it is executed again.

    MissingFileError for a path or rubric that is not there, UserError for a negative tolerance or
    an invalid rubric. Problems of the bundle are in the verdict and never raise."""
    if not 0 <= tolerance < float("inf"):
        raise UserError(f"--tolerance {tolerance} is not a distance; write 0 or more, like 0.02")
    if rubric is not None:
        load_rubric(rubric)  # so that a mistake of the marker does not count as one of the author
    if data:
        from vitlab.data.datasets import check_name

        prefix, _, place = data.partition(":")
        if prefix == "folder" and place:
            data = f"folder:{Path(place).expanduser().absolute()}"
        check_name(data)
    options = Options(rerun=rerun, tolerance=tolerance, rubric=rubric, data=data, minutes=minutes)
    path = Path(path).absolute()  # a rerun works in another folder
    try:
        with open_bundle(path) as folder:
            seen = f"SHA-256 {hash_file(path)}" if path.is_file() else "a folder, not the zip"
            return judge(Bundle(folder, options), opened=Result("archive", path.name, PASS, seen))
    except UnsafeBundle as error:
        rest = [Result(name, "", SKIPPED, "the bundle was not opened") for name in CHECKS]
        return Verdict((Result("archive", path.name, FAIL, str(error)), *rest))


def judge(
    bundle: Bundle, names: Sequence[str] = tuple(CHECKS), opened: Result | None = None
) -> Verdict:
    """The checks of these names in order; all are skipped if the manifest cannot be read."""
    results = [opened] if opened else []
    try:
        manifest = bundle.manifest
    except ValueError:
        results += check_manifest(bundle)
        for name in names:
            if name != "manifest":
                results.append(Result(name, "", SKIPPED, "the manifest could not be read"))
        return Verdict(tuple(results))
    for name in names:
        try:
            results += CHECKS[name](bundle)
        except Exception as error:  # a damaged file fails its check; the other checks go on
            results.append(Result(name, "", FAIL, describe_error(error)))
    points = None
    with contextlib.suppress(Exception):  # check_rubric has named the problem
        points = make_points_table(bundle)
    return Verdict(tuple(results), points, manifest.title, manifest.author)


def print_verdict(verdict: Verdict, name: str, console: Console | None = None) -> None:
    """Print the checks with their results, and the points of the rubric."""
    console = console or open_console()
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
    """One row for all subjects that passed a check, one for all that it skipped, and one for each
    of at most 20 failures. Each row of a rerun is shown."""
    rows: list[Result] = []
    for (check, status), group in groupby(verdict.results, key=lambda row: (row.check, row.status)):
        same = list(group)
        if status == FAIL or check == "rerun":
            rows += same[:MAX_FAILURES]
        elif len(same) == 1:
            rows += same
        else:
            rows.append(Result(check, f"{len(same)} {status}", status, same[0].detail))
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
    """Write the results as JUnit XML, one test case (classname `verify.<check>`) for each."""
    statuses = [result.status for result in verdict.results]
    counts = {
        "tests": str(len(statuses)),
        "failures": str(statuses.count(FAIL)),
        "errors": "0",
        "skipped": str(statuses.count(SKIPPED)),
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "vitlab verify", **counts})
    for result in verdict.results:
        facts = {
            "classname": f"verify.{result.check}",
            "name": printable(result.subject or result.check),
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
    """The text without control characters, which steer a terminal and are no XML."""
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
