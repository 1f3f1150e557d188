"""Checks of the executed notebooks: how they were executed, from which source, and whether the run's numbers are shown."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path

from vitlab.errors import UserError
from vitlab.notebook import notebook_parameters
from vitlab.places import project_root
from vitlab.submission.notebooks import (
    find_execution_problems,
    find_labelled,
    find_pictures,
    find_source_problems,
    show_text,
)
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result, judge_each
from vitlab.submission.selection import CLEAN

NUMBER = re.compile(r"-?(?<!\d)\d++\.\d{3}(?: \[-?\d+\.\d{3}, -?\d+\.\d{3}\])?")
LARGEST_PAGE = 100 * 10**6  # bytes
EMBEDDED = "data:image/png;base64,"
PICTURE = re.compile(EMBEDDED + r"([A-Za-z0-9+/=]+)")


def check_executed(bundle: Bundle) -> list[Result]:
    """Executed from top to bottom in a fresh kernel: counts 1, 2, 3, no error."""

    def judge(name: str) -> tuple[str, str]:
        problems = find_execution_problems(bundle.read_notebook(name))
        return (FAIL, "; ".join(problems)) if problems else (PASS, "counts in order, no error")

    return judge_each("executed", [book["executed"] for book in bundle.notebooks], judge)


def check_sources(bundle: Bundle) -> list[Result]:
    """The source is that of the clean notebook, apart from the parameters that were put in; which are those of the manifest."""
    by_name = {book["executed"]: book for book in bundle.notebooks}

    def judge(name: str) -> tuple[str, str]:
        book = by_name[name]
        problems = find_source_problems(bundle.read_notebook(name), bundle.read_notebook(book["clean"]), book["parameters"])
        if book["parameters"]:
            declared = notebook_parameters(bundle.place(book["clean"]))
            problems += [f"the clean notebook has no parameter {given}" for given in book["parameters"] if given not in declared]
        return (FAIL, "; ".join(problems)) if problems else (PASS, "as the clean notebook" + _describe_own(bundle, book["clean"]))

    return judge_each("sources", by_name, judge)


def check_parameters(bundle: Bundle) -> list[Result]:
    """run.json and the manifest say the same, the run was finished, and its notebooks were given its data set, model and seed."""
    by_path = {run["path"]: run for run in bundle.runs}

    def judge(place: str) -> tuple[str, str]:
        run = by_path[place]
        info = bundle.read_json(f"{place}/run.json")
        if info["parameters"] != run["parameters"] or info["parameters"].get("dataset") != run["dataset"]:
            return FAIL, "run.json and the manifest name other parameters"
        if info["status"] != "done":
            return FAIL, f"the run was not finished: its status is {info['status']}"
        for book in bundle.notebooks:
            for name in ("dataset", "model", "seed") if book.get("run") == place else ():
                given, own = book["parameters"].get(name), info["parameters"].get(name)
                if name in book["parameters"] and given != own:
                    return FAIL, f"{book['executed']} was given {name} {given!r}, the run has {own!r}"
        chosen = [f"{name} {value}" for name, value in run["parameters"].items() if value not in (None, "")]
        return PASS, ", ".join(chosen)[:120]

    return judge_each("parameters", by_path, judge)


def check_shown(bundle: Bundle) -> list[Result]:
    """The table of metrics in notebook 04 and on its page shows metrics.json; each picture of a notebook is on its page."""
    by_name = {book["executed"]: book for book in bundle.notebooks}

    def judge(name: str) -> tuple[str, str]:
        book, notebook = by_name[name], bundle.read_notebook(name)
        page = _read_page(bundle, book["page"]) if book["page"] else ""
        said, wanted = [], _expected_numbers(bundle, book, notebook)
        if wanted:
            table = show_text(find_labelled(notebook, "tbl-metrics"))
            if any(number not in table for number in wanted) or set(NUMBER.findall(table)) - set(wanted):
                return FAIL, "the table of metrics in the notebook does not show the values of metrics.json"
            if page and any(number not in page for number in wanted):
                return FAIL, f"report/{book['page']} does not show the values of metrics.json"
            said.append("metrics as in metrics.json")
        if EMBEDDED in page:
            pictures = find_pictures({"cells": [_without_twins(cell) for cell in notebook["cells"]]})
            on_page = set(PICTURE.findall(page))
            lost = [number for number, picture in enumerate(pictures, start=1) if picture not in on_page]
            if lost:
                return FAIL, f"report/{book['page']} lacks picture {lost[0]} of the {len(pictures)} in the notebook"
            said.append(f"{len(pictures)} picture{'s' * (len(pictures) != 1)} on its page")
        if not wanted and find_labelled(notebook, "tbl-metrics") is not None:
            said.append("a table of metrics that belongs to no run here, compared with nothing")
        shown = bool(wanted) or EMBEDDED in page
        return (PASS if shown else SKIPPED), ", ".join(said) or "no page that holds its pictures, no table of metrics"

    return judge_each("shown", by_name, judge)


def _expected_numbers(bundle: Bundle, book: dict, notebook: dict) -> list[str]:
    """The values of metrics.json as a table shows them, where this notebook has that table."""
    name = f"{book.get('run') or '-'}/metrics.json"
    evaluates = book["executed"].endswith("/04_evaluate.ipynb") and find_labelled(notebook, "tbl-metrics") is not None
    if not evaluates or not (bundle.folder / name).is_file():
        return []
    rows = bundle.read_json(name).values()
    return [_format(row["value"], row["low"], row["high"]) for row in rows if math.isfinite(row["value"])]


def _format(value: float, low: float, high: float) -> str:
    value, low, high = (round(number, 3) + 0.0 for number in (value, low, high))  # -0.0002 is shown as 0.000
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else "")


def _without_twins(cell: dict) -> dict:
    """A cell without pictures that stand for a live figure, which the page shows instead."""
    if cell["cell_type"] != "code":
        return cell
    return {**cell, "outputs": [output for output in cell["outputs"] if "text/html" not in output.get("data", {})]}


def _read_page(bundle: Bundle, name: str) -> str:
    path = bundle.place(f"report/{name}")
    if path.stat().st_size > LARGEST_PAGE:
        raise UserError(f"report/{name} has {path.stat().st_size / 1e6:,.0f} MB; at most {LARGEST_PAGE / 1e6:g} are read")
    return " ".join(unescape(path.read_text(encoding="utf-8")).split())  # pandoc breaks lines within numbers, too


def _describe_own(bundle: Bundle, clean: str) -> str:
    """Whether the clean notebook is the one of the project in which this is checked."""
    own = project_root() / "notebooks" / Path(clean).name
    if not clean.startswith(f"{CLEAN}/") or not own.is_file():
        return ", which is not one of this project"
    theirs, ours = bundle.read_notebook(clean), json.loads(own.read_text(encoding="utf-8"))
    same = [cell["source"] for cell in theirs["cells"]] == ["".join(cell["source"]) for cell in ours["cells"]]
    return "" if same else ", which differs from the one of this project"
