"""`vitlab check`: notebook 00_check on a folder, a table, or a data set, as one HTML page."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vitlab.checks.result import FAIL, MARKS, NOT_APPLICABLE, CheckResult, read_checks, silence
from vitlab.errors import UserError
from vitlab.places import inside_project
from vitlab.run_folders import dataset_folder

TABLES = (".csv", ".parquet")
COLOURS = {"fail": "red", "warn": "yellow", "pass": "green", "silenced": "dim"}


def name_dataset(path: str) -> str:
    """The name of a data set: `folder:` before a folder, `csv:` before a table."""
    place = Path(path).expanduser()
    if place.is_dir():
        return f"folder:{os.path.abspath(place)}"
    if place.suffix in TABLES and (place.is_file() or os.sep in path):
        return f"csv:{os.path.abspath(place)}"
    if os.sep in path and ":" not in path:
        raise UserError(
            f"there is no folder or file {path}; give a folder with a sub-folder for each class, a"
            " CSV or Parquet table, or the name of a data set, such as elpv"
        )
    return path


def run_checks(
    notebook: Path, path: str, *, group: str, model: str, ignore: list[str], seed: int = 0
) -> tuple[Path, list[CheckResult], str]:
    """Execute the notebook for these data: the page, the results and the verdict.

    UserError for names that do not exist, before anything runs, and for data that cannot be
    checked."""
    from vitlab.batch import run_notebook
    from vitlab.batch.display import describe_problem
    from vitlab.report.pandoc import render_single

    dataset, ignored = name_dataset(path), "; ".join(ignore)
    silence([], ignored)
    given = {"dataset": dataset, "group": group, "model": model, "ignore": ignored, "seed": seed}
    with inside_project(notebook) as reports:
        folder = reports / "checks" / dataset_folder(dataset)
        copy, found = folder / notebook.name, folder / "checks.json"
        found.unlink(missing_ok=True)
        outcome = run_notebook(
            notebook, copy, {key: value for key, value in given.items() if value}
        )
        if outcome["status"] != "done":
            error = outcome["error"] or {}
            if error.get("name") == UserError.__name__:
                raise UserError(error["value"])
            raise UserError(f"{copy} failed:\n{describe_problem(outcome)}")
        page = folder / "check.html"
        render_single(copy, page, path)
    results, facts = read_checks(found)
    return page, results, facts["verdict"]


def print_checks(page: Path, results: list[CheckResult], verdict: str) -> None:
    """Print the verdict, a line for each check that applies, and the path of the page."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape(verdict.replace("**", "")), style="bold")
    for result in results:
        if result.status == NOT_APPLICABLE:
            continue
        mark, colour = MARKS[result.status][0], COLOURS[result.status]
        line = f"{result.title}: {result.evidence}"
        line += f" (silenced: {result.reason})" if result.reason else ""
        console.print(f"[bold {colour}]{mark} {result.status:8}[/] {result.id} {escape(line)}")
        if result.advice:
            console.print(f"           → {escape(result.advice)}")
    console.print(f"Page: {escape(str(page))}")


def has_failed(results: list[CheckResult]) -> bool:
    """Whether a check that is not silenced failed."""
    return any(result.status == FAIL for result in results)
