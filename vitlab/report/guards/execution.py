"""Whether what a page shows was made by the notebook as it is now: the same cells, all executed, in order, without an error."""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import zip_longest

from vitlab.markup import code
from vitlab.notebook import is_filled, read_cells
from vitlab.report.gather import Page
from vitlab.report.guards.finding import Finding
from vitlab.report.options import read_options

ADDED_BY_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}
WIDTH = 60  # characters of a line of code that a message quotes


def check_execution(page: Page) -> list[Finding]:
    """Findings of the rules source, failed, not executed and order; nothing for a page without an executed copy."""
    return [] if page.executed is None else [*_compare_sources(page), *_check_cells(page)]


def _check_cells(page):
    findings, last, failed, left_out = [], 0, False, []
    for number, cell in enumerate(page.executed.cells, start=1):
        if cell.cell_type != "code" or not is_filled(cell):
            continue
        where = {"file": page.path, "page": page.slug, "cell": number, "label": cell_label(cell)}
        error = next((output for output in cell.outputs if output.output_type == "error"), None)
        count = cell.execution_count
        if error:
            failed = True
            findings.append(Finding("failed", message=f"{error.ename}: {error.evalue}".split("\n")[0], shown=True, **where))
        elif count is None and failed:
            left_out.append(where)
        elif count is None:
            findings.append(Finding("not executed", message="this cell was not executed", **where))
        elif count <= last:
            findings.append(Finding("order", message=f"executed as number {count}, after number {last} further up", **where))
        last = max(last, count or 0)
    if left_out:
        message = f"{len(left_out)} code cells from here on were not executed, because one before them failed"
        findings.append(Finding("not executed", message=message, shown=True, **left_out[0]))
    return findings


def _compare_sources(page):
    """Each cell of the executed copy that the notebook has no more, or has in other words; and each that it has got since."""
    if page.source is None:
        return []
    if not page.source.is_file():
        message = f"the notebook that this was made from is gone: {code(page.source)}"
        return [Finding("source", page.path, message, page=page.slug)]
    now = [(cell["cell_type"], cell["source"]) for cell in read_cells(page.source) if is_filled(cell)]
    there = [
        (number, cell)
        for number, cell in enumerate(page.executed.cells, start=1)
        if is_filled(cell) and not ADDED_BY_PAPERMILL & set(cell.metadata.get("tags", ()))
    ]
    then = [(cell.cell_type, cell.source) for _, cell in there]
    findings = []
    for change, i, i_end, j, j_end in SequenceMatcher(None, now, then, autojunk=False).get_opcodes():
        if change == "equal":
            continue
        both = min(i_end - i, j_end - j)
        for place in range(j, j_end):
            other = now[i + place - j][1] if place - j < both else None
            findings.append(_describe_change(page, there[place], other))
        if i_end - i > both:
            number, cell = there[min(max(j_end - 1, 0), len(there) - 1)] if there else (None, None)
            new = ", ".join(code(_shorten(_first_line(source))) for _, source in now[i + both : i_end][:3])
            message = f"the notebook has {i_end - i - both} more cells here: {new}"
            label = cell_label(cell) if cell else ""
            findings.append(Finding("source", page.path, message, cell=number, label=label, page=page.slug))
    return findings


def _describe_change(page, numbered, other):
    number, cell = numbered
    if other is None:
        message = f"the notebook has no such cell any more: {code(_shorten(_first_line(cell.source)))}"
    else:
        before, after = _first_difference(cell.source, other)
        message = f"executed as {code(before)}, and the notebook now says {code(after)}"
    return Finding("source", page.path, message, cell=number, label=cell_label(cell), page=page.slug)


def _first_difference(before, after):
    """Of the first line that differs and is not empty, the part around the place where it begins to, before and after."""
    pairs = zip_longest(before.split("\n"), after.split("\n"), fillvalue="")
    lines = next((pair for pair in pairs if pair[0] != pair[1] and "".join(pair).strip()), ("", ""))
    same = next((i for i, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]), min(map(len, lines)))
    start = max(0, same - WIDTH // 3)
    return [_shorten(("…" if start else "") + line[start:]) for line in lines]


def _first_line(source):
    lines = [line for line in source.split("\n") if line.strip()]
    return next((line for line in lines if not line.startswith("#|")), lines[0] if lines else "")


def _shorten(line):
    line = line.strip()
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def cell_label(cell) -> str:
    """The `#| label` of a code cell, "" where there is none."""
    if cell.cell_type != "code":
        return ""
    try:
        return str(read_options(cell.source)[0].get("label", ""))
    except ValueError:
        return ""
