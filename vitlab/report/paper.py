"""The report to hand in: chosen sections of the executed notebooks without code, what was trained
how, and what is needed to do it again, as one notebook for the PDF.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from vitlab.errors import UserError
from vitlab.files import hash_file
from vitlab.markup import code, escape, pipe_table
from vitlab.places import reports_dir
from vitlab.report.clean import resolve_dead_references
from vitlab.report.combine import combine_chapters
from vitlab.report.gather import HOME, Page, Report
from vitlab.report.markdown import cell_label, read_options, split_sections, write_options
from vitlab.runs import Run

ANSWER = "The answer"
BEFORE = (  # chapter, notebook, its sections
    ("Summary", HOME, (ANSWER, "Checks", "Limits")),
    (
        "Data",
        "01_explore_data",
        (
            "Images, classes and splits",
            "What the images look like",
            "How balanced are the classes?",
            "Are training and test images different?",
            "New images, or new groups?",
        ),
    ),
)
AFTER = (
    (
        "Results",
        HOME,
        (
            "How certain are the results?",
            "All models over all seeds",
            "New images, or new groups?",
            "Without near-duplicates",
            "Cost",
            "Comparison with published results",
        ),
    ),
    (
        "Evaluation",
        "04_evaluate",
        (
            "Metrics",
            "Are the probabilities calibrated?",
            "Is it equally good everywhere?",
            "The most confident mistakes",
        ),
    ),
    ("Interpretation", "05_interpret", ("Methods side by side", "Summary")),
    ("Compression", "06_compress", ("Speed, size and accuracy", "What was lost, and where")),
)


def has_answer(report: Report) -> bool:
    """Whether the report has a comparison that begins with an answer: what the paper is about."""
    return any(
        title == ANSWER
        for page in report.pages
        if page.stem == HOME
        for title, _ in split_sections(page.notebook.cells)
    )


def write_paper(report: Report) -> NotebookNode:
    """The paper as one notebook, in the order summary, data, methods, results, evaluation,
    interpretation, compression, reproduction. A chapter of which the report has nothing is left
    out. Of several runs of a notebook, the first is shown, and named.
    """
    runs = _find_runs(report)
    chapters = _select(report, BEFORE)
    if runs:
        chapters.append(("Methods", "methods", _describe_methods(runs)))
    chapters += _select(report, AFTER)
    chapters.append(("Reproduction", "reproduction", _describe_reproduction(report, runs)))
    return combine_chapters(report, chapters, flow=True)


def _select(report: Report, plan: Sequence[tuple]) -> list[tuple[str, str, list[NotebookNode]]]:
    chapters = []
    for title, stem, wanted in plan:
        page = next((page for page in report.pages if page.stem == stem), None)
        if page is None or page.trouble:
            continue
        sections = dict(split_sections(page.notebook.cells))
        cells = [_hide_code(cell) for name in wanted for cell in sections.get(name, ())]
        if not cells:
            continue
        resolve_dead_references(cells, {cell_label(cell) for cell in page.notebook.cells})
        others = [other for other in report.pages if other.stem == stem and other is not page]
        if others:
            about = f"*This chapter is about {escape(_name(page))}; the web pages hold the others.*"
            cells.insert(0, new_markdown_cell(about))
        chapters.append((title, f"{title.lower()}-{page.slug}", cells))
    return chapters


def _name(page: Page) -> str:
    return page.title.partition(" · ")[2].replace(" · ", ", ")


def _hide_code(cell: NotebookNode) -> NotebookNode:
    if cell.cell_type == "code":
        options, text = read_options(cell.source)
        cell = NotebookNode(cell)
        cell.source = write_options({**options, "echo": False}, text)
    return cell


def _find_runs(report: Report) -> list[Run]:
    """The finished runs of the report's pages, each once, in order."""
    runs = {}
    for page in report.pages:
        if page.run and page.run not in runs:
            try:
                runs[page.run] = Run(reports_dir() / page.run)
            except UserError:  # damaged or gone: the page itself says so
                continue
    return [run for run in runs.values() if run.status == "done"]


def _describe_methods(runs: Sequence[Run]) -> list[NotebookNode]:
    rows = []
    for run in runs:
        facts = run.facts
        trained = f"{facts['trained_parameters']:,} of {facts['parameters']:,}"
        options = ", ".join(f"{key} {value}" for key, value in run.options.items()) or "as usual"
        cells = (run.title, str(run.draw), options, trained)
        rows.append([*map(escape, cells), str(facts["best_epoch"]), f"{facts['train_s']:.0f}"])
    header = ["model", "seed", "options", "trained parameters", "best epoch", "seconds"]
    machines = sorted({f"{run.info['machine']}, device {run.facts['device']}" for run in runs})
    text = (
        "Each model was fine-tuned by its recipe (`vitlab.recipe`) with the options in the table."
        " The epoch with the best score on the validation split was kept. Everything that was"
        " chosen (epoch, threshold, temperature, compressed variant) was chosen on validation; the"
        f" test split was scored once for each run. Machine: {escape('; '.join(machines))}."
    )
    return [new_markdown_cell(f"{text}\n\n" + "\n".join(pipe_table(header, rows)))]


def _describe_reproduction(report: Report, runs: Sequence[Run]) -> list[NotebookNode]:
    parts = ["The commands that made this report:\n\n```\n" + "\n".join(report.commands) + "\n```"]
    if runs:
        info = runs[0].info
        versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
        parts.append(f"Versions: {escape(versions)}; commit {code(info['commit'] or 'unknown')}.")
        rows = [
            [
                escape(run.name),
                *(
                    hash_file(run.path / name)[:12]
                    for name in ("splits.csv", "predictions.parquet")
                ),
            ]
            for run in runs
        ]
        header = ["run", "splits (SHA-256)", "predictions (SHA-256)"]
        parts.append("\n".join(pipe_table(header, rows)))
    return [new_markdown_cell("\n\n".join(parts))]
