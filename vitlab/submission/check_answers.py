"""Checks of an assignment: are the questions answered, and is there what the rubric looks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from vitlab.submission.answers import Answer, find_answers, find_repeats
from vitlab.submission.notebooks import list_labelled
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result
from vitlab.submission.rubric import Evidence, Rubric, find_unknown_questions, load_rubric, points_table

PICTURES = ("image/png", "image/svg+xml", "image/jpeg")


def check_answers(bundle: Bundle) -> list[Result]:
    """Every marked cell holds an answer, and no question is asked in two cells."""
    answers = read_answers(bundle)
    if not answers:
        return [Result("answers", "", SKIPPED, "no notebook has cells marked `#| answer: NAME`")]
    results = [Result("answers", "", FAIL, repeat) for repeat in find_repeats(answers)]
    for answer in answers:
        told = f"{answer.words} words" if answer.text else "empty"
        status = PASS if answer.text else FAIL
        results.append(Result("answers", answer.name, status, f"{told} ({answer.notebook}, cell {answer.cell})"))
    return results


def check_rubric(bundle: Bundle) -> list[Result]:
    """The rubric's questions are asked, and its evidence is there."""
    try:
        rubric = read_rubric(bundle)
    except ValueError as error:
        return [Result("rubric", "", FAIL, str(error))]
    if rubric is None:
        return [Result("rubric", "", SKIPPED, "no rubric in the bundle, none given with --rubric")]
    answers = read_answers(bundle)
    results = [Result("rubric", "", FAIL, problem) for problem in find_unknown_questions(rubric, answers)]
    for row in make_points_table(bundle).itertuples():
        if row.answer == "no such cell":
            continue
        told = f"{row.points:g} points" + (f"; missing: {row.missing}" if row.missing else "")
        results.append(Result("rubric", row.question, FAIL if row.missing else PASS, told))
    return results


def make_points_table(bundle: Bundle) -> pd.DataFrame | None:
    """The table of `points_table` for the bundle; None without a rubric, or with one that cannot be read."""
    try:
        rubric = read_rubric(bundle)
    except ValueError:
        return None
    return points_table(rubric, read_answers(bundle), find_evidence(bundle)) if rubric else None


def read_rubric(bundle: Bundle) -> Rubric | None:
    """The marker's rubric where one was given, else that of the bundle."""
    path = bundle.options.rubric or bundle.folder / "rubric.yml"
    return load_rubric(path) if bundle.options.rubric or path.is_file() else None


def read_answers(bundle: Bundle) -> list[Answer]:
    """The answers in each notebook, once where it was executed for several runs; one that cannot be read is left out."""
    first = {}
    for book in bundle.notebooks:
        first.setdefault(book["clean"], book["executed"])
    return find_answers(_read_notebooks(bundle, first.values()))


def _read_notebooks(bundle: Bundle, names: Iterable[str]) -> Iterator[tuple[str, dict]]:
    for name in names:
        try:
            yield Path(name).name, bundle.read_notebook(name)
        except ValueError:
            continue  # check_executed says what is wrong with it


def find_evidence(bundle: Bundle) -> Evidence:
    """What a rubric may ask for."""
    stems, figures, tables, metrics = set(), set(), set(), set()
    for book in bundle.notebooks:
        try:
            notebook = bundle.read_notebook(book["executed"])
        except ValueError:
            continue
        stems.add(Path(book["executed"]).stem)
        for label, cell in list_labelled(notebook).items():
            kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
            if kinds & set(PICTURES):
                figures.add(label)
            if any(kind.startswith("text/") for kind in kinds):
                tables.add(label)
    for run in bundle.runs:
        with contextlib.suppress(ValueError, TypeError):  # check_metrics says what is wrong with it
            metrics |= set(bundle.read_json(f"{run['path']}/metrics.json"))
    files = frozenset(bundle.manifest["files"])
    return Evidence(frozenset(stems), frozenset(figures), frozenset(tables), frozenset(metrics), files)
