"""Whether what the report rests on is whole: notebooks that ended well, runs that are done, the files that they promise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vitlab.report.gather import HOME, Page
from vitlab.report.guards.finding import Finding
from vitlab.runs import PROMISED, dataset_folder, find_damage, reports_dir


def check_unfinished(pages: Sequence[Page]) -> list[Finding]:
    """Findings of the rules unfinished and run: first of the notebooks and runs of the report, then of runs beside them.

    The comparison reads every finished run of its data set. A run beside them that is unfinished or lacks files is a result that
    the comparison does without, so that is a finding of its page.
    """
    findings, seen = [], {}
    for page in pages:
        if page.trouble:
            message = "its executed copy is missing" if page.status == "done" else f"its status in the batch is {page.status}"
            findings.append(Finding("unfinished", page.path, message, page=page.slug, shown=True))
        if page.run:
            folder = reports_dir() / page.run
            if page.run not in seen:
                seen[page.run] = _judge_run(folder, page, page.run)
                findings += seen[page.run]
            if not seen[page.run]:
                findings += _judge_files(folder, page, page.run, PROMISED.get(page.stem, ()))
    for page in pages:
        if page.stem == HOME and page.dataset:
            for file in sorted((reports_dir() / "runs" / dataset_folder(page.dataset)).glob("*/run.json")):
                run = file.parent.relative_to(reports_dir()).as_posix()
                if run not in seen:
                    advice = "; the comparison does without it: finish or remove it"
                    seen[run] = _judge_run(file.parent, page, run, advice)
                    seen[run] = seen[run] or _judge_files(file.parent, page, run, PROMISED["03_finetune"], advice)
                    findings += seen[run]
    return findings


def _judge_files(folder: Path, page, run, files, advice="; run the batch again"):
    damage = find_damage(folder, files)
    return [Finding("run", run, f"{', '.join(damage)}{advice}", page=page.slug)] if damage else []


def _judge_run(folder: Path, page, run, advice="; run the batch again"):
    file = folder / "run.json"
    if not file.is_file():
        return [Finding("run", run, f"it holds no run.json{advice}", page=page.slug)]
    try:
        status = json.loads(file.read_text(encoding="utf-8"))["status"]
    except (ValueError, LookupError, TypeError, OSError) as error:
        return [Finding("run", run, f"its run.json cannot be read ({type(error).__name__}){advice}", page=page.slug)]
    return [] if status == "done" else [Finding("run", run, f"this run is {status}, not done{advice}", page=page.slug)]
