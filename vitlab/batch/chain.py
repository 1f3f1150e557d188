"""The order of a batch: each task as soon as those it needs have ended, the earliest of the plan
first, on whatever crew.
"""

from __future__ import annotations

import traceback
from typing import Any, Protocol

from vitlab.batch.plan import Task
from vitlab.batch.progress import Board
from vitlab.batch.state import BatchState
from vitlab.errors import UserError


class Crew(Protocol):
    """Who executes the tasks: worker threads of this machine (local.py), or a Dask cluster
    (cluster.py).
    """

    def has_place(self, task: Task) -> bool: ...

    def start(self, number: int, task: Task) -> None:
        """Begin with a task; to be called after `has_place` has said True."""

    def collect(self) -> list[tuple[int, dict[str, Any]]]:
        """Wait a second at most, and give the tasks that have ended: number and outcome, as from
        `Execution.run`.
        """

    def stop(self) -> list[tuple[int, dict[str, Any]]]:
        """End what is running, come back when no process of it is left, and give the tasks that had
        ended, as `collect`.
        """


def execute_chain(
    tasks: list[Task], stale: list[int], state: BatchState, crew: Crew, board: Board
) -> None:
    """Execute the tasks of these numbers and keep what becomes of each. A failed one costs its
    point the notebooks after it.
    """
    waiting, running = list(stale), set()
    try:
        while waiting or running:
            for number in list(waiting):
                task = tasks[number]
                if not {*waiting, *running}.isdisjoint(task.needs):
                    continue
                outcome = _find_obstacle(tasks, number, state)
                if outcome:
                    waiting.remove(number)
                    _settle(state, board, number, task, outcome)
                elif crew.has_place(task):
                    waiting.remove(number)
                    running.add(number)
                    state.begin(number)
                    crew.start(number, task)
            for number, outcome in crew.collect() if running or waiting else ():
                running.remove(number)
                _settle(state, board, number, tasks[number], outcome)
            board.tick()
    except BaseException:
        for number, outcome in crew.stop():
            if outcome["status"] == "done":  # any other one may have failed by being stopped
                _settle(state, board, number, tasks[number], outcome)
        raise


def describe_error(error: BaseException) -> dict[str, Any]:
    """An outcome for a task whose kernel did not even start, or whose results could not be kept:
    the batch goes on.

    An error of the program, other than one of the user or the system, brings its traceback.
    """
    problem = {"cell": None, "line": "", "name": type(error).__name__, "value": str(error)}
    if not isinstance(error, UserError | OSError):
        problem["traceback"] = "".join(traceback.format_exception(error))
    return {"status": "failed", "seconds": 0.0, "peak_memory_mb": None, "error": problem}


def _settle(
    state: BatchState, board: Board, number: int, task: Task, outcome: dict[str, Any]
) -> None:
    state.settle(number, **outcome)
    took = f"{outcome['seconds']:7.1f} s" if "seconds" in outcome else outcome["note"]
    board.settle(
        number,
        task.label,
        f"{outcome['status']:6} {took}" if "seconds" in outcome else f"{outcome['status']}: {took}",
    )


def _find_obstacle(tasks: list[Task], number: int, state: BatchState) -> dict[str, Any] | None:
    """What keeps a task from being tried: a notebook it builds on that failed, or whose results
    somebody has removed since.

    A notebook that runs once, or gathers points, does without what is missing.
    """
    task = tasks[number]
    needs = [
        other
        for other in task.needs
        if not task.step.once and tasks[other].point.items() <= task.point.items()
    ]
    for other in needs:
        if state.content["tasks"][other]["status"] == "failed":
            return {"status": "skipped", "note": f"{tasks[other].step.notebook} failed"}
    for other in needs:
        copy = state.reports / tasks[other].path
        if state.content["tasks"][other]["status"] == "done" and not copy.is_file():
            made = f"{copy.parent.parent}, made by {tasks[other].step.notebook}, was removed"
            return describe_error(RunFolderRemoved(f"{made}; the same command makes it again"))
    return None


class RunFolderRemoved(UserError):
    """A folder with results has gone while the batch was running."""
