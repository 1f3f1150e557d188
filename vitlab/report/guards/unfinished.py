"""Whether what the report rests on is whole: notebooks that ended well, runs that are done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vitlab.report.gather import HOME, Page
from vitlab.report.guards.finding import Finding
from vitlab.runs import dataset_folder, reports_dir


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
            for folder in sorted((reports_dir() / "runs" / dataset_folder(page.dataset)).glob("*/run.json")):
                run = folder.parent.relative_to(reports_dir()).as_posix()
                if run not in seen:
                    seen.add(run)
                    findings += _judge_run(folder.parent, page, run, "; the comparison does without it: finish or remove it")
    return findings


def _judge_run(folder: Path, page, run, advice="; run the batch again"):
    file = folder / "run.json"
    if not file.is_file():
        return [Finding("run", run, f"it holds no run.json{advice}", page=page.slug)]
    try:
        status = json.loads(file.read_text(encoding="utf-8"))["status"]
    except (ValueError, LookupError, TypeError, OSError) as error:
        return [Finding("run", run, f"its run.json cannot be read ({type(error).__name__}){advice}", page=page.slug)]
    return [] if status == "done" else [Finding("run", run, f"this run is {status}, not done{advice}", page=page.slug)]
