"""Whether a page was made with the parameters, files, runs, libraries and code of vitlab that the
batch would use now.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vitlab.batch.fingerprint import describe_changes, fingerprint_tasks
from vitlab.batch.plan import load_batch, plan_tasks
from vitlab.markup import code
from vitlab.report.gather import Page
from vitlab.report.guards.finding import Finding
from vitlab.runs import project_root, reports_dir


def check_outdated(pages: Sequence[Page]) -> list[Finding]:
    """Findings of the rule out of date: of what ended well, what the batch would do again if it
    were called now.

    Batches may share a run, and with it the executed copies: one of them to which a copy is new
    enough will do. Nothing is said where the batch file is gone or has mistakes; nor of the data,
    whose version may be another on another machine though the images are the same."""
    paths = {page.path for page in pages if page.status == "done"}
    reasons: dict[str, list[str]] = {}
    for file in sorted((reports_dir() / "runs" / "batches").glob("*/batch.json")):
        for path, reason in _judge_batch(file, paths):
            reasons.setdefault(path, []).append(reason)
    stale = {path: each[0] for path, each in reasons.items() if all(each)}
    return [
        Finding(
            "out of date", page.path, f"{stale[page.path]}; run the batch again", page=page.slug
        )
        for page in pages
        if page.path in stale
    ]


def _judge_batch(file: Path, paths):
    """(path, what has changed) of each of these executed copies that the batch has made; "" for
    nothing that is known of.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return []
    records = [
        record
        for record in content["tasks"]
        if record["status"] == "done" and record["path"] in paths
    ]
    try:
        tasks = plan_tasks(load_batch(project_root() / content["file"])) if records else []
        prints = fingerprint_tasks(tasks, lambda dataset: "")
    except (ValueError, LookupError, OSError):
        return [(record["path"], "") for record in records]
    now = {
        _identify(task.step.notebook, task.point): parts
        for task, parts in zip(tasks, prints, strict=True)
    }
    name = code(content["file"])
    return [(record["path"], _judge_task(record, now, name)) for record in records]


def _judge_task(record, now, name):
    then, parts = record.get("fingerprint"), now.get(_identify(record["notebook"], record["point"]))
    if not then:
        return ""
    if parts is None:
        return f"{name} does not ask for it any more"
    if then.get("parameters") != parts["parameters"]:
        return f"{name} gives it other parameters now"
    ignored = {"notebook", "parameters", "data", "needs"}
    # it may use other code; the rule source says more
    if then.get("notebook") != parts["notebook"]:
        ignored |= {"code", "libraries"}
    return describe_changes(then, parts, ignored)


def _identify(notebook, point):
    return notebook, json.dumps(point, sort_keys=True, default=str)
