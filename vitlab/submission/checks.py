"""Checks of a bundle's files, executed notebooks and answers. check_results.py has those of the
results.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.errors import UserError
from vitlab.executed import CellProblem, find_execution_problems, find_source_problems
from vitlab.files import hash_file
from vitlab.notebook import find_assignments
from vitlab.registry import unknown
from vitlab.submission.archive import MANIFEST, Bundle
from vitlab.submission.rubric import Answer, Rubric, find_answers, load_rubric, points_table

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"
CLEAN = "project/notebooks"  # where a bundle has the notebooks without outputs
NEEDED = ("README.md", "TITLE.md", "environment/installed.txt", "report/report.pdf")
OF_A_RUN = ("splits.csv", "predictions.parquet", "model.json", "data_card.md", "model_card.md")
LABEL = re.compile(r"(?m)^#\|[ \t]*label:[ \t]*[\"']?([\w-]+)[\"']?[ \t]*$")
PICTURES = {"image/png", "image/svg+xml", "image/jpeg"}
PAPERMILL_FLOATS = ("float('nan')", "float('inf')", "float('-inf')")


@dataclass(frozen=True)
class Result:
    """check: its name. subject: the file, run or question. status: pass, fail or skipped."""

    check: str
    subject: str
    status: str
    detail: str = ""


def judge_each(
    check: str, subjects: Iterable[str], judge: Callable[[str], tuple[str, str]]
) -> list[Result]:
    """One result for each subject, by what `judge` returns; an exception is a failure."""
    results = []
    for subject in subjects:
        try:
            status, detail = judge(subject)
        except Exception as error:  # of any library, for a damaged file
            status, detail = FAIL, describe_error(error)
        results.append(Result(check, subject, status, detail))
    return results


def describe_error(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def check_manifest(bundle: Bundle) -> list[Result]:
    """Every file has the SHA-256 that the manifest lists; none is missing, none is added."""
    try:
        listed = bundle.manifest.files
    except ValueError as error:
        return [Result("manifest", MANIFEST, FAIL, str(error))]
    failed = [Result("manifest", name, FAIL, problem) for name, problem in bundle.problems.items()]
    return failed or [Result("manifest", "", PASS, f"{len(listed):,} files as packed")]


def check_contents(bundle: Bundle) -> list[Result]:
    """There are runs, executed notebooks, and what a marker needs of each."""
    pages = len(list((bundle.folder / "report").glob("*.html")))
    runs, notebooks = bundle.runs, bundle.notebooks
    wanted = [*NEEDED, *(f"{run}/{name}" for run in runs for name in OF_A_RUN)]
    for notebook in notebooks:
        run = bundle.find_run(notebook)
        if run and Path(notebook).stem == "04_evaluate":
            wanted.append(f"{run}/metrics.json")
    missing = [name for name in wanted if not (bundle.folder / name).is_file()]
    groups = {"a run": runs, "an executed notebook": notebooks, "a page in report/": pages}
    missing += [what for what, found in groups.items() if not found]
    if missing:
        return [Result("contents", name, FAIL, "missing") for name in missing]
    seen = f"{pages} pages and PDF, {len(notebooks)} notebooks, {len(runs)} runs with cards"
    return [Result("contents", "", PASS, seen)]


def check_weights(bundle: Bundle) -> list[Result]:
    """Weights have the checksum that model.json notes."""

    def judge(run: str) -> tuple[str, str]:
        noted = str(bundle.read_json(f"{run}/model.json")["weights_sha256"])
        path = bundle.folder / run / "model.safetensors"
        if not path.is_file():
            return SKIPPED, f"not in the bundle; SHA-256 {noted[:64]}"
        if hash_file(path) != noted:
            return FAIL, "model.safetensors does not have the checksum in model.json"
        return PASS, f"SHA-256 {noted[:12]}..."

    return judge_each("weights", bundle.runs, judge)


def check_parameters(bundle: Bundle) -> list[Result]:
    """Each run was finished, and its notebooks were given its data set, model and seed."""

    def judge(run: str) -> tuple[str, str]:
        info = bundle.read_json(f"{run}/run.json")
        if info["status"] != "done":
            return FAIL, f"the run was not finished: its status is {info['status']}"
        own = info["parameters"]
        for notebook in bundle.notebooks:
            if bundle.find_run(notebook) != run:
                continue
            given = injected_parameters(bundle.read_cells(notebook))
            for name in ("dataset", "model", "seed"):
                if name in given and given[name] != own.get(name):
                    text = f"was executed with {name} {given[name]!r}"
                    return FAIL, f"{notebook} {text}, but the run has {own.get(name)!r}"
        chosen = [f"{name} {value}" for name, value in own.items() if value not in (None, "")]
        return PASS, ", ".join(chosen)[:120]

    return judge_each("parameters", bundle.runs, judge)


def check_executed(bundle: Bundle) -> list[Result]:
    """Executed from top to bottom in a fresh kernel: execution counts 1, 2, 3, no error."""

    def judge(name: str) -> tuple[str, str]:
        problems = find_execution_problems(bundle.read_cells(name))
        return _judge_problems(problems, "execution counts in order, no error")

    return judge_each("executed", bundle.notebooks, judge)


def check_sources(bundle: Bundle) -> list[Result]:
    """The executed notebook has the cells of the clean one, and only parameters in addition."""

    def judge(name: str) -> tuple[str, str]:
        cells = bundle.read_cells(name)
        injected_parameters(cells)
        problems = find_source_problems(cells, bundle.read_cells(clean_name(name)))
        return _judge_problems(problems, "same as the clean notebook")

    return judge_each("sources", bundle.notebooks, judge)


def _judge_problems(problems: list[CellProblem], passed: str) -> tuple[str, str]:
    if not problems:
        return PASS, passed
    return FAIL, "; ".join(f"cell {problem.cell}: {problem.message}" for problem in problems[:5])


def clean_name(executed: str) -> str:
    """The path in the bundle of the clean notebook that an executed one was made from."""
    return f"{CLEAN}/{Path(executed).name}"


def injected_parameters(cells: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The parameters that papermill added: name -> value; UserError for anything else."""
    injected = [cell["source"] for cell in cells if "injected-parameters" in cell["tags"]]
    if not injected:
        return {}
    if len(injected) > 1:
        raise UserError("several cells are tagged injected-parameters; papermill adds one")
    wrong = "the cell tagged injected-parameters must have assignments of plain values only"
    try:
        found = find_assignments(injected[0])
        given = {name: _read_value(statement.value) for name, statement in found.items()}
        extra = len(ast.parse(injected[0]).body) - len(given)
    except (SyntaxError, ValueError, TypeError) as error:
        raise UserError(f"{wrong} ({error})") from error
    if extra:
        raise UserError(wrong)
    return given


def _read_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node) in PAPERMILL_FLOATS:
        return float(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def check_answers(bundle: Bundle) -> list[Result]:
    """Every marked cell has an answer, and no question is asked in two cells."""
    answers = read_answers(bundle)
    if not answers:
        return [Result("answers", "", SKIPPED, "no notebook has cells marked `#| answer: NAME`")]
    results, places = [], defaultdict(list)
    for answer in answers:
        place = f"{answer.notebook} cell {answer.cell}"
        places[answer.name].append(place)
        status, detail = (PASS, f"{answer.words} words") if answer.text else (FAIL, "empty")
        results.append(Result("answers", answer.name, status, f"{detail} ({place})"))
    for name, cells in places.items():
        if len(cells) > 1:
            detail = f"several cells have this mark: {', '.join(cells)}"
            results.append(Result("answers", name, FAIL, detail))
    return results


def check_rubric(bundle: Bundle) -> list[Result]:
    """The rubric's questions are asked, and its evidence is there."""
    points = make_points_table(bundle)
    if points is None:
        return [Result("rubric", "", SKIPPED, "no rubric in the bundle, none given with --rubric")]
    names = list(dict.fromkeys(answer.name for answer in read_answers(bundle)))
    results = []
    for row in points.itertuples():
        if row.question not in names:
            advice = "They are the cells marked `#| answer: NAME`."
            detail = unknown("question", row.question, names, advice)
        else:
            detail = f"{row.points:g} points" + (f"; missing: {row.missing}" if row.missing else "")
        status = FAIL if row.missing else PASS
        results.append(Result("rubric", row.question, status, detail))
    return results


def make_points_table(bundle: Bundle) -> pd.DataFrame | None:
    """The `points_table` of the bundle; None without a rubric."""
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
    """Name and cells of each executed notebook that can be read."""
    found = []
    for name in bundle.notebooks:
        with contextlib.suppress(ValueError):
            found.append((name, bundle.read_cells(name)))
    return found


def find_evidence(bundle: Bundle) -> dict[str, set[str]]:
    """Kind -> names of the evidence in the bundle that a rubric may ask for."""
    notebooks, figures, tables, metrics = set(), set(), set(), set()
    for name, cells in _read_notebooks(bundle):
        notebooks.add(Path(name).stem)
        for cell in cells:
            labels = LABEL.findall(cell["source"])
            outputs = cell.get("outputs", ())
            kinds = {kind for output in outputs for kind in output.get("data", {})}
            if kinds & PICTURES:
                figures.update(labels)
            if any(kind.startswith("text/") for kind in kinds):
                tables.update(labels)
    for run in bundle.runs:
        with contextlib.suppress(ValueError, TypeError):  # check_metrics names the problem
            metrics.update(bundle.read_json(f"{run}/metrics.json"))
    return {
        "notebook": notebooks,
        "figure": figures,
        "table": tables,
        "metric": metrics,
        "file": set(bundle.manifest.files),
    }
