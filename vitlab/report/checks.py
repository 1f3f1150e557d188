"""What `vitlab report --strict` asks of a report before it is published."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vitlab.batch.state import find_outdated
from vitlab.errors import MissingFileError, UserError
from vitlab.executed import find_execution_problems, find_source_problems
from vitlab.files import find_damage
from vitlab.markup import code
from vitlab.notebook import read_cells
from vitlab.places import reports_dir
from vitlab.report.clean import PICTURES, cell_number, find_library, for_web
from vitlab.report.findings import Finding
from vitlab.report.gather import HOME, Page, Report
from vitlab.report.markdown import cell_label, read_options
from vitlab.report.references import check_references
from vitlab.report.settings import Settings
from vitlab.run_folders import list_runs
from vitlab.runs import PROMISED, Run

MAX_PAGE_MB = 10.0  # the library for interactive figures alone is 4.8
FRAME = 40_000  # bytes of a page beside its cells: style sheet, navigation, script
LIVE = re.compile(r"vitlab-plotly|vitlab-viewer|plotly|<svg|<img|<canvas|<video|<iframe")
AGAIN = "run the batch again"


def check_report(
    report: Report, settings: Settings, max_page_mb: float = MAX_PAGE_MB
) -> list[Finding]:
    """What keeps a report from being published, in the order of its pages. UserError for a limit
    that is not above 0.
    """
    if not max_page_mb > 0:
        raise UserError(f"the largest page must have more than 0 MB, not {max_page_mb:g}")
    pages = report.pages
    findings = [*check_unfinished(pages), *check_outdated(pages)]
    for page in pages:
        if page.executed is not None:
            findings += [*check_execution(page), *check_figures(page)]
    findings += check_references(pages, settings.bibliography)
    findings += check_size(pages, max_page_mb)
    order = {page.slug: number for number, page in enumerate(pages)}
    return sorted(findings, key=lambda finding: (order[finding.page], finding.cell or 0))


def check_unfinished(pages: Sequence[Page]) -> list[Finding]:
    """Findings of the rules unfinished and run: first of the notebooks and runs of the report, then
    of runs beside them.

    The comparison reads every finished run of its data set. A run that is unfinished or lacks files
    is a result that the comparison does without, so that is a finding of its page."""
    findings, seen = [], set()
    for page in pages:
        if page.trouble:
            message = f"its status in the batch is {page.status}"
            if page.status == "done":
                message = "its executed copy is missing"
            findings.append(Finding("unfinished", page.path, message, page=page.slug, shown=True))
        if page.run:
            problem = _find_run_problem(page.run, PROMISED.get(page.stem, ()))
            if problem and (page.run, problem) not in seen:
                message = f"{problem}; {AGAIN}"
                findings.append(Finding("run", page.run, message, page=page.slug))
            seen |= {page.run, (page.run, problem)}
    for page in pages:
        if page.stem == HOME and page.dataset:
            for folder in list_runs(page.dataset):
                run = folder.relative_to(reports_dir()).as_posix()
                problem = _find_run_problem(run)
                if problem and run not in seen:
                    message = f"{problem}; the comparison leaves it out: finish or remove it"
                    findings.append(Finding("run", run, message, page=page.slug))
                    seen.add(run)
    return findings


def _find_run_problem(run: str, promised: Sequence[str] = ()) -> str:
    """Why a run is not whole, "" where it is. promised: files of a notebook that must be there."""
    folder = reports_dir() / run
    try:
        problem = Run(folder).problem
    except MissingFileError:
        problem = "it has no run.json"
    except UserError:
        problem = "its run.json cannot be read"
    return problem or ", ".join(find_damage(folder, promised))


def check_outdated(pages: Sequence[Page]) -> list[Finding]:
    """Findings of the rule out of date: what the batch would do again now.

    Batches may share a run: a copy that is new enough to one of them will do."""
    paths = {page.path for page in pages if page.status == "done"}
    reasons: dict[str, list[str]] = {}
    for file in sorted((reports_dir() / "runs" / "batches").glob("*/batch.json")):
        for path, reason in find_outdated(file).items():
            reasons.setdefault(path, []).append(reason)
    findings = []
    for page in pages:
        found = reasons.get(page.path, [])
        if page.path in paths and found and all(found):
            findings.append(
                Finding("out of date", page.path, f"{found[0]}; {AGAIN}", page=page.slug)
            )
    return findings


def check_execution(page: Page) -> Iterator[Finding]:
    """Findings of the rules source, failed, not executed and order."""
    cells, problems = page.executed.cells, []
    if page.source is not None and page.source.is_file():
        problems += find_source_problems(cells, read_cells(page.source))
    elif page.source is not None:
        message = f"the notebook that this was made from is gone: {code(page.source)}"
        yield Finding("source", page.path, message, page=page.slug)
    for problem in [*problems, *find_execution_problems(cells)]:
        label = cell_label(cells[problem.cell - 1]) if problem.cell else ""
        shown = problem.rule == "failed" or problem.expected
        place = (problem.cell, label, page.slug, shown)
        yield Finding(problem.rule, page.path, problem.message, *place)


def check_figures(page: Page) -> Iterator[Finding]:
    """Findings of the rules nothing shown, caption and alternative text, except for cells that
    failed or are hidden.

    A label `fig-` or `tbl-` promises a figure or table; so does a caption or an alternative text. A
    cell that says in words why there is nothing keeps the promise."""
    for number, cell in enumerate(page.executed.cells, start=1):
        if cell.cell_type != "code":
            continue
        options, _ = read_options(cell.source)
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed or options.get("include") is False or options.get("output", True) is False:
            continue
        label = str(options.get("label", ""))
        for rule, message in _judge_figure(label, options, cell.outputs):
            yield Finding(rule, page.path, message, number, label, page.slug)


def _judge_figure(label, options, outputs):
    shown = [output.data for output in outputs if "data" in output]
    is_table = label.startswith("tbl-") or ("tbl-cap" in options and "fig-cap" not in options)
    figure_options = {"fig-cap", "fig-alt"} & set(options)
    is_figure = not is_table and (label.startswith("fig-") or figure_options)
    drawn = any(_is_picture(item) for item in shown if not (is_table and _is_table(item)))
    if is_table and not any(_is_table(item) for item in shown):
        yield "nothing shown", f"no table, {'only a picture' if drawn else 'but it is announced'}"
    if is_figure and not any(_is_figure(item) for item in shown):
        table = any("<table" in item.get("text/html", "") for item in shown)
        yield "nothing shown", f"no figure, {'only a table' if table else 'but it is announced'}"
    if drawn and not is_table and not str(options.get("fig-cap") or "").strip():
        yield "caption", "this figure has no caption: write `#| fig-cap: ...`"
    if drawn and not str(options.get("fig-alt") or "").strip():
        yield "alternative text", "this figure has no alternative text: write `#| fig-alt: ...`"


def _has_image(data):
    return any(kind.startswith("image/") for kind in data)


def _is_picture(data):
    return _has_image(data) or LIVE.search(data.get("text/html", ""))


def _is_table(data):
    """Whether it is a table, or words in its place; HTML beside a picture is a live figure."""
    html = data.get("text/html", "").strip() and not _has_image(data)
    return html or data.get("text/markdown", "").strip()


def _is_figure(data):
    """Whether it is a picture that the report can show, a live figure, or words in its place."""
    html = data.get("text/html", "").strip()
    live = html and ("<table" not in html or LIVE.search(html))
    return live or data.get("text/markdown", "").strip() or not data.keys().isdisjoint(PICTURES)


def check_size(pages: Sequence[Page], max_page_mb: float) -> Iterator[Finding]:
    """A finding for each page of more than `max_page_mb` (10^6 bytes), with its largest cell."""
    for page in pages:
        sizes, library = measure_cells(page)
        total = (FRAME + library + sum(sizes.values())) / 1e6
        if total <= max_page_mb:
            continue
        message = f"this page has about {total:.1f} MB; the limit is {max_page_mb:g} MB"
        if library:
            message += f"; {library / 1e6:.1f} MB are the library for interactive figures"
        largest = max(sizes, key=sizes.get, default=0)
        label = ""
        if largest:
            message += f"; the largest cell has {sizes[largest] / 1e6:.1f} MB"
            label = cell_label(page.executed.cells[largest - 1])
        yield Finding("size", page.path, message, largest or None, label, page.slug)


def measure_cells(page: Page) -> tuple[dict[int, int], int]:
    """Bytes by place of the cell in the executed copy, and those of the Plotly library."""
    sizes: dict[int, int] = {}
    notebook = for_web(page.notebook)
    for cell in notebook.cells:
        size = len(cell.source)
        for output in cell.get("outputs", ()):
            for content in output.get("data", {"text/plain": output.get("text", "")}).values():
                size += len(content)
        number = cell_number(cell)
        sizes[number] = sizes.get(number, 0) + size
    return sizes, len(find_library(notebook))
