"""What is known of each task of a batch, written to batch.json after each: what was done, how it
ended, and what is out of date.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from vitlab.batch.fingerprint import (
    Fingerprint,
    describe_changes,
    describe_runs,
    fingerprint_tasks,
)
from vitlab.batch.plan import Batch, Task, load_batch, plan_tasks
from vitlab.errors import UserError
from vitlab.files import find_damage, write_json
from vitlab.markup import code
from vitlab.places import project_root, reports_dir
from vitlab.run_folders import read_info
from vitlab.runs import PROMISED, read_batch

Outcome = dict[str, Any]
PENDING: Outcome = {
    "status": "pending",
    "seconds": None,
    "peak_memory_mb": None,
    "fingerprint": {},
    "error": None,
    "note": "",
    # when the run was made that the task has worked in; None for the task that made it
    "run_start": None,
}


def describe_error(error: BaseException, seconds: float = 0.0) -> Outcome:
    """The outcome of a task whose kernel did not start, or whose results could not be written: the
    batch continues.

    An error of the program, other than one of the user or the system, has its traceback."""
    problem = {"cell": None, "line": "", "name": type(error).__name__, "value": str(error)}
    if not isinstance(error, UserError | OSError):
        problem["traceback"] = "".join(traceback.format_exception(error))
    return {"status": "failed", "seconds": seconds, "peak_memory_mb": None, "error": problem}


class BatchState:
    """The content of reports/runs/batches/<name>/batch.json.

    content["tasks"] has one record for each task, in the order of the plan; content["former"] keeps
    the records of tasks that the batch file no longer asks for. So a point that was removed from
    the grid and comes back need not run again."""

    def __init__(self, batch: Batch, tasks: list[Task]):
        self.tasks, self.reports = tasks, reports_dir()
        self.path = self.reports / "runs" / "batches" / batch.name / "batch.json"
        self._written = before = read_batch(self.path) if self.path.is_file() else {}
        known = {
            record["path"]: record for record in before.get("former", []) + before.get("tasks", [])
        }
        root, file = project_root(batch.file.parent), batch.file.resolve()
        self.content = {
            "title": batch.title,
            "author": batch.author,
            "abstract": batch.abstract,
            "name": batch.name,
            "file": file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file),
            "parameters": batch.parameters,
            "grid": batch.grid,
            "chain": [step.notebook for step in batch.chain],
            "tasks": [_make_record(task, known.pop(task.path, {})) for task in tasks],
            "former": list(known.values()),
        }
        self._starts = {task.run: self._read_run(task).get("start_s") for task in tasks}

    def measured_seconds(self) -> list[float | None]:
        """What each task took when it last ended well; `find_stale` forgets it."""
        return [
            record["seconds"] if record["status"] == "done" else None
            for record in self.content["tasks"]
        ]

    def find_stale(self, prints: list[Fingerprint], force: bool) -> list[int]:
        """The numbers of the tasks to run; their records become pending, with a reason as note."""
        stale: list[int] = []
        for number, (task, record) in enumerate(
            zip(self.tasks, self.content["tasks"], strict=True)
        ):
            again = [self.tasks[need].step.notebook for need in task.needs if need in stale]
            if force:
                reason = "asked for"
            elif not record["fingerprint"]:
                reason = "new"
            elif again:
                reason = f"{again[0]} runs again"
            else:
                reason = describe_changes(record["fingerprint"], prints[number])
                reason = reason or self._find_problem(task, record)
            if reason:
                stale.append(number)
                record |= PENDING | {"fingerprint": prints[number], "note": reason}
        return stale

    def _find_problem(self, task: Task, record: dict[str, Any]) -> str:
        """Why the results of a task are not complete; empty if they are."""
        if record["status"] != "done":
            return "not finished" if record["status"] == "pending" else f"{record['status']} before"
        if not (self.reports / task.path).is_file():
            return "executed copy is gone"
        if "run_name" in task.parameters and self._read_run(task).get("status") != "done":
            return "run is not complete"
        if task.run:
            damage = find_damage(self.reports / task.run, PROMISED.get(task.step.notebook, ()))
            if damage:
                return ", ".join(damage)
        if record["run_start"] is not None and record["run_start"] != self._starts[task.run]:
            # by another batch; what this task had left there is gone
            return "its run was made again since"
        return ""

    def begin(self, number: int) -> None:
        """Note which runs there are when a task begins that reads all of them."""
        record = self.content["tasks"][number]
        if record["fingerprint"].get("runs"):
            runs = describe_runs(self.tasks[number].dataset)
            record["fingerprint"] = record["fingerprint"] | {"runs": runs}

    def settle(self, number: int, outcome: Outcome) -> None:
        """Keep the outcome of a task."""
        task = self.tasks[number]
        start = self._read_run(task).get("start_s")
        made_now = start != self._starts[task.run]
        self._starts[task.run] = start
        record = {"note": "", "run_start": None if made_now else start}
        self.content["tasks"][number] |= record | outcome
        self.write()

    def write(self) -> None:
        """Write the content if it has changed: the date of the file is that of the report."""
        content = json.loads(json.dumps(self.content, default=str))
        if content != self._written:
            write_json(self.path, content)
            self._written = content

    def _read_run(self, task: Task) -> dict[str, Any]:
        """The content of the run.json of a task; empty if there is none, or it is damaged."""
        try:
            return read_info(self.reports / task.run) if task.run else {}
        except UserError:
            return {}


def find_outdated(file: Path) -> dict[str, str]:
    """For a batch.json: executed copy -> what has changed since it was made, of each task that
    ended well; empty if nothing has, or if that is unknown. Without an entry: the batch file is
    gone or has mistakes.

    The data are not compared: their version may differ on another machine though the images are
    the same. Nor are changes of the notebook, which the report shows line by line."""
    try:
        content = read_batch(file)
        records = [record for record in content["tasks"] if record["status"] == "done"]
        tasks = plan_tasks(load_batch(project_root() / content["file"]))
        prints = fingerprint_tasks(tasks, lambda dataset: "")
    except (ValueError, LookupError, OSError):
        return {}
    now = {task.path: parts for task, parts in zip(tasks, prints, strict=True)}
    changes = {}
    for record in records:
        path, then = record["path"], record.get("fingerprint")
        if not then:
            changes[path] = ""
        elif path not in now:
            changes[path] = f"{code(content['file'])} now asks for other parameters or points"
        else:
            ignored = {"notebook", "data", "needs"}
            if then.get("notebook") != now[path]["notebook"]:
                ignored |= {"code", "libraries"}  # the changed notebook may use other code
            changes[path] = describe_changes(then, now[path], ignored)
    return changes


def _make_record(task: Task, known: dict[str, Any]) -> dict[str, Any]:
    identity = {
        "notebook": task.step.notebook,
        "point": task.point,
        "parameters": task.parameters,
        "path": task.path,
        "run": task.run,
    }
    return identity | PENDING | {key: value for key, value in known.items() if key in PENDING}
