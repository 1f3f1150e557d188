"""Whether what a page shows was made by the notebook as it is now: the same cells, all executed, in
order, without an error.
"""

from __future__ import annotations

from vitlab.executed import find_execution_problems, find_source_problems
from vitlab.markup import code
from vitlab.notebook import read_cells
from vitlab.report.gather import Page
from vitlab.report.guards.finding import Finding
from vitlab.report.options import read_options


def check_execution(page: Page) -> list[Finding]:
    """Findings of the rules source, failed, not executed and order; nothing for a page without an
    executed copy.
    """
    if page.executed is None:
        return []
    findings, problems = [], []
    if page.source is not None and not page.source.is_file():
        message = f"the notebook that this was made from is gone: {code(page.source)}"
        findings.append(Finding("source", page.path, message, page=page.slug))
    elif page.source is not None:
        problems += find_source_problems(page.executed.cells, read_cells(page.source))
    for problem in [*problems, *find_execution_problems(page.executed.cells)]:
        label = cell_label(page.executed.cells[problem.cell - 1]) if problem.cell else ""
        shown = problem.rule == "failed" or problem.expected
        findings.append(
            Finding(problem.rule, page.path, problem.message, problem.cell, label, page.slug, shown)
        )
    return findings


def cell_label(cell) -> str:
    """The `#| label` of a code cell, "" where there is none."""
    if cell.cell_type != "code":
        return ""
    try:
        return str(read_options(cell.source)[0].get("label", ""))
    except ValueError:
        return ""
