"""Whether the outputs of an executed notebook come from one run of it as it is now: the same cells,
in order, without an error.

Cells are mappings with cell_type, source (one text), metadata and, for code, execution_count and
outputs, as nbformat has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from vitlab.markup import code
from vitlab.notebook import is_filled

WIDTH = 60  # characters of a line of code that a message quotes
Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CellProblem:
    """rule: "failed", "not executed", "order" or "source". message: in Markdown. cell: its number
    in the executed notebook, from 1, with Markdown cells counted; None for a notebook without
    cells. expected: an earlier failed cell explains the problem."""

    rule: str
    message: str
    cell: int | None
    expected: bool = False


def find_execution_problems(cells: Cells) -> list[CellProblem]:
    """Why the cells were not executed once, in order (1, 2, 3), without an error; empty where they
    were. Empty cells are skipped, because Jupyter does not execute them."""
    problems, previous, failed, after_failure = [], 0, False, []
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] != "code" or not is_filled(cell):
            continue
        count = cell["execution_count"]
        error = next(
            (output for output in cell["outputs"] if output["output_type"] == "error"), None
        )
        if error:
            failed = True
            problems.append(
                CellProblem("failed", f"{error['ename']}: {error['evalue']}".split("\n")[0], number)
            )
        elif count is None and failed:
            after_failure.append(number)
        elif count is None:
            problems.append(CellProblem("not executed", "this cell was not executed", number))
        elif count != previous + 1:
            problems.append(
                CellProblem(
                    "order", f"executed as number {count}, expected number {previous + 1}", number
                )
            )
        previous = previous + 1 if count is None else count
    if after_failure:
        message = (
            f"{len(after_failure)} code cells from here on were not executed, because an earlier"
            " cell failed"
        )
        problems.append(CellProblem("not executed", message, after_failure[0], expected=True))
    return problems


def find_source_problems(executed: Cells, source: Cells) -> list[CellProblem]:
    """Each cell that only one of the two has, or that has another text. Empty cells and those that
    papermill added are skipped."""
    now = [(cell["cell_type"], cell["source"]) for cell in source if is_filled(cell)]
    there = [
        (number, cell)
        for number, cell in enumerate(executed, start=1)
        if is_filled(cell) and not _is_added(cell)
    ]
    then = [(cell["cell_type"], cell["source"]) for _, cell in there]
    problems = []
    for change, i, i_end, j, j_end in SequenceMatcher(
        None, now, then, autojunk=False
    ).get_opcodes():
        if change == "equal":
            continue
        both = min(i_end - i, j_end - j)
        for place in range(j, j_end):
            other = now[i + place - j][1] if place - j < both else None
            number, cell = there[place]
            problems.append(CellProblem("source", _describe_change(cell["source"], other), number))
        if i_end - i > both:
            number = there[min(max(j_end - 1, 0), len(there) - 1)][0] if there else None
            new = ", ".join(
                code(_shorten(_first_line(text))) for _, text in now[i + both : i_end][:3]
            )
            problems.append(
                CellProblem(
                    "source", f"the notebook has {i_end - i - both} more cells here: {new}", number
                )
            )
    return problems


def _is_added(cell: Mapping[str, Any]) -> bool:
    """Whether papermill added the cell: the parameters, or the text that marks a failed cell."""
    tags = cell["metadata"].get("tags", ())
    return "injected-parameters" in tags or (
        cell["cell_type"] == "markdown" and "papermill-error-cell-tag" in tags
    )


def _describe_change(executed: str, now: str | None) -> str:
    if now is None:
        return f"the notebook no longer has this cell: {code(_shorten(_first_line(executed)))}"
    before, after = _first_difference(executed, now)
    return f"executed as {code(before)}, but the notebook now has {code(after)}"


def _first_difference(before: str, after: str) -> list[str]:
    """The first line that differs, before and after, from shortly before the difference."""
    pairs = zip_longest(before.split("\n"), after.split("\n"), fillvalue="")
    lines = next((pair for pair in pairs if pair[0] != pair[1] and "".join(pair).strip()), ("", ""))
    same = next(
        (i for i, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]),
        min(map(len, lines)),
    )
    start = max(0, same - WIDTH // 3)
    return [_shorten(("…" if start else "") + line[start:]) for line in lines]


def _first_line(source: str) -> str:
    lines = [line for line in source.split("\n") if line.strip()]
    return next((line for line in lines if not line.startswith("#|")), lines[0] if lines else "")


def _shorten(line: str) -> str:
    line = line.strip()
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
