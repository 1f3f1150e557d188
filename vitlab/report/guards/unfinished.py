"""Whether what the report rests on is whole: notebooks that ended well, runs that are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitlab.errors import MissingFileError, UserError
from vitlab.report.gather import HOME, Page
from vitlab.report.guards.finding import Finding
from vitlab.run_folders import list_runs
from vitlab.runs import Run, reports_dir, runs_folder


def check_unfinished(pages: Sequence[Page]) -> list[Finding]:
    """Findings of the rules unfinished and run: first of the notebooks and runs of the report, then of runs beside them.

    The comparison reads every finished run of its data set. A half-done one beside them is a result that it lacks without saying
    so, hence a finding of that page.
    """
    findings, seen = [], set()
    for page in pages:
        if page.trouble:
            message = "its executed copy is missing" if page.status == "done" else f"its status in the batch is {page.status}"
            findings.append(Finding("unfinished", page.path, message, page=page.slug, shown=True))
        if page.run and page.run not in seen:
            seen.add(page.run)
            findings += _judge_run(reports_dir() / page.run, page, page.run)
    for page in pages:
        if page.stem == HOME and page.dataset:
            for folder in list_runs(runs_folder(page.dataset)):
                run = folder.relative_to(reports_dir()).as_posix()
                if run not in seen:
                    seen.add(run)
                    findings += _judge_run(folder, page, run, "; the comparison does without it: finish or remove it")
    return findings


def _judge_run(folder: Path, page, run, advice="; run the batch again"):
    try:
        problem = Run(folder).problem
    except MissingFileError:
        problem = "it holds no run.json"
    except UserError:
        problem = "its run.json cannot be read"
    return [Finding("run", run, f"{problem}{advice}", page=page.slug)] if problem else []
