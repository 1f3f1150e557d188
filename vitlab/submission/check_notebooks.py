"""Checks of the executed notebooks: how they were executed, from which source, and for which
run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.executed import CellProblem, find_execution_problems, find_source_problems
from vitlab.notebook import find_assignments
from vitlab.submission.opened import FAIL, PASS, Bundle, Result, judge_each

CLEAN = "project/notebooks"  # where a bundle holds the notebooks without outputs


def clean_name(executed: str) -> str:
    """The path in the bundle of the clean notebook that an executed one was made from."""
    return f"{CLEAN}/{Path(executed).name}"


def check_parameters(bundle: Bundle) -> list[Result]:
    """Each run was finished, and its notebooks were given its data set, model and seed."""

    def judge(run: str) -> tuple[str, str]:
        info = bundle.read_json(f"{run}/run.json")
        if info["status"] != "done":
            return FAIL, f"the run was not finished: its status is {info['status']}"
        for notebook in bundle.notebooks:
            given = (
                injected_parameters(bundle.read_cells(notebook))
                if bundle.find_run(notebook) == run
                else {}
            )
            for name in ("dataset", "model", "seed"):
                if name in given and given[name] != info["parameters"].get(name):
                    own = info["parameters"].get(name)
                    return (
                        FAIL,
                        (
                            f"{notebook} was executed with {name} {given[name]!r}, but the run has"
                            f" {own!r}"
                        ),
                    )
        chosen = [
            f"{name} {value}"
            for name, value in info["parameters"].items()
            if value not in (None, "")
        ]
        return PASS, ", ".join(chosen)[:120]

    return judge_each("parameters", bundle.runs, judge)


def check_executed(bundle: Bundle) -> list[Result]:
    """Executed from top to bottom in a fresh kernel: execution counts 1, 2, 3, no error."""

    def judge(name: str) -> tuple[str, str]:
        return _judge_problems(
            find_execution_problems(bundle.read_cells(name)), "execution counts in order, no error"
        )

    return judge_each("executed", bundle.notebooks, judge)


def check_sources(bundle: Bundle) -> list[Result]:
    """The executed notebook has the cells of the clean one, and papermill added nothing but
    parameters.
    """

    def judge(name: str) -> tuple[str, str]:
        cells = bundle.read_cells(name)
        injected_parameters(cells)
        return _judge_problems(
            find_source_problems(cells, bundle.read_cells(clean_name(name))),
            "same as the clean notebook",
        )

    return judge_each("sources", bundle.notebooks, judge)


def _judge_problems(problems: list[CellProblem], passed: str) -> tuple[str, str]:
    told = [f"cell {problem.cell}: {problem.message}" for problem in problems]
    return (FAIL, "; ".join(told[:5])) if told else (PASS, passed)


def injected_parameters(cells: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The parameters that papermill added: name -> value. UserError where a cell tagged as such
    holds anything else.
    """
    given: dict[str, Any] = {}
    for cell in cells:
        if "injected-parameters" in cell["tags"]:
            try:
                found = {
                    name: _read_value(statement.value)
                    for name, statement in find_assignments(cell["source"]).items()
                }
                extra = len(ast.parse(cell["source"]).body) - len(found)
            except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
                raise UserError(
                    f"the cell with the parameters holds more than parameters: {str(error)[:100]}"
                ) from error
            if extra or given or cell["cell_type"] != "code":
                raise UserError(
                    "the cell with the parameters holds more than parameters, or there are two"
                    " of it"
                )
            given = found
    return given


def _read_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node) in (
        "float('nan')",
        "float('inf')",
        "float('-inf')",
    ):
        return float(ast.literal_eval(node.args[0]))  # as papermill writes them
    return ast.literal_eval(node)
