"""Whether what the report rests on is whole: notebooks that ended well, runs that are done, the
files that they promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitlab.errors import MissingFileError, UserError
from vitlab.files import find_damage
from vitlab.report.gather import HOME, Page
from vitlab.report.guards.finding import Finding
from vitlab.run_folders import list_runs
from vitlab.runs import PROMISED, Run, reports_dir, runs_folder


def check_unfinished(pages: Sequence[Page]) -> list[Finding]:
    """Findings of the rules unfinished and run: first of the notebooks and runs of the report, then
    of runs beside them.

    The comparison reads every finished run of its data set. A run beside them that is unfinished or
    lacks files is a result that the comparison does without, so that is a finding of its page."""
    findings, seen = [], {}
    for page in pages:
        if page.trouble:
            message = (
                "its executed copy is missing"
                if page.status == "done"
                else f"its status in the batch is {page.status}"
            )
            findings.append(Finding("unfinished", page.path, message, page=page.slug, shown=True))
        if page.run:
            folder = reports_dir() / page.run
            if page.run not in seen:
                seen[page.run] = _judge_run(folder, page, page.run)
                findings += seen[page.run]
            if not seen[page.run]:
                findings += _judge_files(folder, page, page.run)
    for page in pages:
        if page.stem == HOME and page.dataset:
            for folder in list_runs(runs_folder(page.dataset)):
                run = folder.relative_to(reports_dir()).as_posix()
                if run not in seen:
                    seen[run] = _judge_run(
                        folder, page, run, "; the comparison does without it: finish or remove it"
                    )
                    findings += seen[run]
    return findings


def _judge_files(folder: Path, page, run):
    damage = find_damage(folder, PROMISED.get(page.stem, ()))
    return (
        [Finding("run", run, f"{', '.join(damage)}; run the batch again", page=page.slug)]
        if damage
        else []
    )


def _judge_run(folder: Path, page, run, advice="; run the batch again"):
    try:
        problem = Run(folder).problem
    except MissingFileError:
        problem = "it holds no run.json"
    except UserError:
        problem = "its run.json cannot be read"
    return [Finding("run", run, f"{problem}{advice}", page=page.slug)] if problem else []
