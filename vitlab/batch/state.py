"""What is known of each task of a batch, kept on disk after each: what was done, how it went, what
is out of date.
"""

from __future__ import annotations

import json
from typing import Any

from vitlab.batch.fingerprint import describe_changes, describe_runs, find_dataset
from vitlab.batch.plan import Batch, Task
from vitlab.errors import UserError
from vitlab.files import find_damage, write_json
from vitlab.places import project_root, reports_dir
from vitlab.run_folders import read_info
from vitlab.runs import PROMISED, read_batch

OUTCOME = {
    "status": "pending",
    "seconds": None,
    "peak_memory_mb": None,
    "fingerprint": {},
    "error": None,
    "note": "",
    # when the run was made that the task has worked in; None for the task that made it
    "run_start": None,
}


class BatchState:
    """The content of reports/runs/batches/<name>/batch.json.

    content["tasks"] has one record a task, in the order of the plan; content["former"] keeps the
    records of tasks that the batch file no longer asks for, so that a grid made smaller and larger
    again costs nothing."""

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
            "name": batch.name,
            "file": file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file),
            "parameters": batch.parameters,
            "grid": batch.grid,
            "chain": [step.notebook for step in batch.chain],
            "tasks": [_new_record(task) | _outcome_of(known.pop(task.path, {})) for task in tasks],
            "former": list(known.values()),
        }
        self._starts = {
            run: self._read_start(run) for run in {task.run for task in tasks if task.run}
        }

    def measured_seconds(self) -> list[float | None]:
        """What each task took when it ended well; to be asked before `find_stale`, which forgets it
        where a task runs again.
        """
        return [
            record["seconds"] if record["status"] == "done" else None
            for record in self.content["tasks"]
        ]

    def find_stale(self, prints: list[dict[str, str]], force: bool) -> list[int]:
        """The numbers of the tasks to run. Their records are set to pending, with the reason as
        note.
        """
        stale: list[int] = []
        for number, (task, record) in enumerate(
            zip(self.tasks, self.content["tasks"], strict=True)
        ):
            reason = "asked for" if force else self._reason(task, record, prints[number], stale)
            if reason:
                stale.append(number)
                record |= OUTCOME | {"fingerprint": prints[number], "note": reason}
        return stale

    def begin(self, number: int) -> None:
        """Note which runs there are when a task that reads them all begins: the batch has made some
        since it was planned.
        """
        record = self.content["tasks"][number]
        if record["fingerprint"].get("runs"):
            record["fingerprint"] = record["fingerprint"] | {
                "runs": describe_runs(find_dataset(self.tasks[number]))
            }

    def settle(self, number: int, **outcome) -> None:
        run = self.tasks[number].run
        start = self._read_start(run) if run else None
        made_now = start != self._starts.get(run)
        self._starts[run] = start
        self.content["tasks"][number] |= {
            "note": "",
            "run_start": None if made_now else start,
        } | outcome
        self.write()

    def write(self) -> None:
        """Keep the content, if it differs from what is there: the file's date is that of the
        report.
        """
        content = json.loads(json.dumps(self.content, default=str))
        if content != self._written:
            write_json(self.path, content)
            self._written = content

    def _reason(
        self, task: Task, record: dict, fingerprint: dict[str, str], stale: list[int]
    ) -> str:
        again = [self.tasks[number].step.notebook for number in task.needs if number in stale]
        changed = describe_changes(record["fingerprint"], fingerprint)
        if not record["fingerprint"]:
            return "new"
        if again:
            return f"{again[0]} runs again"
        if changed:
            return changed
        if record["status"] != "done":
            return "not finished" if record["status"] == "pending" else f"{record['status']} before"
        if not (self.reports / task.path).is_file():
            return "executed copy is gone"
        if "run_name" in task.parameters and not self._run_is_done(task):
            return "run is not complete"
        damage = (
            find_damage(self.reports / task.run, PROMISED.get(task.step.notebook, ()))
            if task.run
            else []
        )
        if damage:
            return ", ".join(damage)
        if record["run_start"] is not None and record["run_start"] != self._starts[task.run]:
            # by another batch; what this task had left there is gone
            return "its run was made again since"
        return ""

    def _run_is_done(self, task: Task) -> bool:
        return self._read_run(task.run).get("status") == "done"

    def _read_start(self, run: str) -> float | None:
        return self._read_run(run).get("start_s")

    def _read_run(self, run: str) -> dict[str, Any]:
        """The content of a run.json; empty without one, or with a damaged one."""
        try:
            return read_info(self.reports / run)
        except UserError:
            return {}


def _new_record(task: Task) -> dict[str, Any]:
    identity = {
        "notebook": task.step.notebook,
        "point": task.point,
        "parameters": task.parameters,
        "path": task.path,
        "run": task.run,
    }
    return identity | OUTCOME


def _outcome_of(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key in OUTCOME}
