"""Checks of an assignment: are the questions answered, and is the evidence of the rubric there."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pandas as pd

from vitlab.submission.answers import Answer, find_answers, find_repeats
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result
from vitlab.submission.rubric import Rubric, find_unknown_questions, load_rubric, points_table

LABEL = re.compile(r"(?m)^#\|[ \t]*label:[ \t]*[\"']?([\w-]+)[\"']?[ \t]*$")
PICTURES = {"image/png", "image/svg+xml", "image/jpeg"}


def check_answers(bundle: Bundle) -> list[Result]:
    """Every marked cell holds an answer, and no question is asked in two cells."""
    answers = read_answers(bundle)
    if not answers:
        return [Result("answers", "", SKIPPED, "no notebook has cells marked `#| answer: NAME`")]
    results = [Result("answers", "", FAIL, repeat) for repeat in find_repeats(answers)]
    for answer in answers:
        detail = f"{answer.words} words" if answer.text else "empty"
        status = PASS if answer.text else FAIL
        results.append(
            Result(
                "answers", answer.name, status, f"{detail} ({answer.notebook}, cell {answer.cell})"
            )
        )
    return results


def check_rubric(bundle: Bundle) -> list[Result]:
    """The rubric's questions are asked, and its evidence is there."""
    rubric = read_rubric(bundle)
    if rubric is None:
        return [Result("rubric", "", SKIPPED, "no rubric in the bundle, none given with --rubric")]
    results = [
        Result("rubric", "", FAIL, problem)
        for problem in find_unknown_questions(rubric, read_answers(bundle))
    ]
    for row in make_points_table(bundle).itertuples():
        if row.answer == "no such cell":
            continue
        detail = f"{row.points:g} points" + (f"; missing: {row.missing}" if row.missing else "")
        results.append(Result("rubric", row.question, FAIL if row.missing else PASS, detail))
    return results


def make_points_table(bundle: Bundle) -> pd.DataFrame | None:
    """The table of `points_table` for the bundle; None without a rubric. UserError for an invalid
    rubric.
    """
    rubric = read_rubric(bundle)
    return points_table(rubric, read_answers(bundle), find_evidence(bundle)) if rubric else None


def read_rubric(bundle: Bundle) -> Rubric | None:
    """The marker's rubric where one was given, else that of the bundle."""
    path = bundle.options.rubric or bundle.folder / "rubric.yml"
    return load_rubric(path) if bundle.options.rubric or path.is_file() else None


def read_answers(bundle: Bundle) -> list[Answer]:
    """The answers in each notebook, once where it was executed for several runs."""
    first: dict[str, list[dict]] = {}
    for name, cells in _read_notebooks(bundle):
        first.setdefault(Path(name).name, cells)
    return find_answers(first.items())


def _read_notebooks(bundle: Bundle) -> list[tuple[str, list[dict]]]:
    """Name and cells of each executed notebook that can be read; check_executed names the
    others.
    """
    found = []
    for name in bundle.notebooks:
        with contextlib.suppress(ValueError):
            found.append((name, bundle.read_cells(name)))
    return found


def find_evidence(bundle: Bundle) -> dict[str, set[str]]:
    """What a rubric may ask for: stems of notebooks, labels of figures and tables with content,
    metrics, files.
    """
    found: dict[str, set[str]] = {
        "notebook": set(),
        "figure": set(),
        "table": set(),
        "metric": set(),
    }
    for name, cells in _read_notebooks(bundle):
        found["notebook"].add(Path(name).stem)
        for cell in cells:
            kinds = {kind for output in cell.get("outputs", ()) for kind in output.get("data", {})}
            labels = LABEL.findall(cell["source"])
            found["figure"].update(labels if kinds & PICTURES else ())
            found["table"].update(labels if any(kind.startswith("text/") for kind in kinds) else ())
    for run in bundle.runs:
        with contextlib.suppress(ValueError, TypeError):  # check_metrics names the problem
            found["metric"].update(bundle.read_json(f"{run}/metrics.json"))
    return found | {"file": set(bundle.manifest.files)}
