"""Run a batch: execute the tasks that are out of date, each as soon as those it needs have
ended.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from vitlab.batch.claim import claim_runs
from vitlab.batch.display import Display
from vitlab.batch.fingerprint import fingerprint_tasks, notebook_imports
from vitlab.batch.plan import Task, load_batch, plan_tasks
from vitlab.batch.state import BatchState, Outcome
from vitlab.errors import UserError
from vitlab.kernels import WarmProcess
from vitlab.notebook import fit_parameters, notebook_parameters
from vitlab.places import count_cores, environment, inside_project
from vitlab.training.options import TRAINS

NAME_CHECKS = {
    "dataset": "vitlab.data.datasets:check_name",
    "model": "vitlab.models.zoo:check_name",
}


class Executor(Protocol):
    """What executes the tasks: threads here (execute.py), or a cluster (dask_executor.py)."""

    def has_place(self, task: Task) -> bool: ...

    def start(self, number: int, task: Task) -> None:
        """Start a task; only after `has_place` was true."""

    def collect(self) -> list[tuple[int, Outcome]]:
        """Wait for a second at most; number and outcome of the tasks that have ended."""

    def stop(self) -> list[tuple[int, Outcome]]:
        """End what is running with all its processes; the tasks that had ended, as `collect`."""

    def close(self) -> None: ...


def run_batch(
    file: Path | str,
    *,
    workers: int = 1,
    force: bool = False,
    dry_run: bool = False,
    scheduler: str = "",
) -> dict[str, Any]:
    """Execute what is missing or out of date of a batch, and give the content of its batch.json.

    A task is up to date when it ended well, its executed copy is there, its run is done and holds
    the files that the notebook promises (`vitlab.runs.PROMISED`), none of the tasks that it needs
    runs again, and what it depends on is as it was: see `fingerprint_tasks`. A task that fails is
    kept with its error; later notebooks of its point are skipped, all others run.

    workers: notebooks at a time, on this machine. scheduler: the address of a Dask scheduler, or a
    YAML file that describes a cluster to start; the notebooks then run on its workers, as many at a
    time as these have threads. force: run everything. dry_run: run and download nothing; `note`
    says why a task would run. Two more keys are then `measured_s`, the seconds that each task took
    when it last ended well (or None), and `jobs`, the script of a cluster's jobs.

    UserError before anything runs: mistakes in the file, a scheduler that does not answer, workers
    with another vitlab, another batch that works on the same runs. KeyboardInterrupt ends the
    kernels; the next call continues. A cluster is started only if there is something to run."""
    batch = load_batch(file)
    tasks = plan_tasks(batch)
    jobs = _describe_jobs(scheduler) if dry_run and scheduler else ""
    with inside_project(batch.file), kernel_environment(workers), WarmProcess() as warm:
        prints = fingerprint_tasks(tasks, partial(warm.call, "vitlab.data:data_version"))
        state = BatchState(batch, tasks)
        measured = state.measured_seconds()
        stale = state.find_stale(prints, force)
        for number in stale:
            task = tasks[number]
            check_values(task.label, task.step.declared, task.parameters, warm)
        if dry_run:
            return state.content | {"measured_s": measured, "jobs": jobs}
        if stale:
            with claim_runs(state.path.parent, [task.run for task in tasks if task.run]):
                state = BatchState(batch, tasks)  # as it is now that no other batch changes it
                stale = state.find_stale(prints, force)
                if stale:
                    _execute(tasks, stale, state, warm, workers, scheduler)
        state.write()
    return state.content


def run_notebook(notebook: Path | str, copy: Path, parameters: dict[str, Any]) -> Outcome:
    """Execute one notebook with checked parameters, and give what `Execution.run` gives."""
    notebook = Path(notebook)
    parameters = fit_parameters(notebook, parameters)
    declared = {name: default for name, (default, _) in notebook_parameters(notebook).items()}
    with inside_project(notebook), kernel_environment(), WarmProcess() as warm:
        warm.preload(sorted(notebook_imports(notebook)))
        from vitlab.batch.execute import Execution

        check_values(notebook.stem, declared, parameters, warm)
        with Display(1) as display:
            progress = partial(display.show, 0, notebook.stem)
            return Execution(notebook, copy, parameters, warm, on_progress=progress).run()


def check_values(
    label: str, declared: dict[str, Any], given: dict[str, Any], warm: WarmProcess
) -> None:
    """UserError for a data set, model or training arguments that cannot be; declared: defaults."""
    for kind, function in NAME_CHECKS.items():
        if kind in given:
            warm.call(function, given[kind])
    if declared.keys() >= TRAINS:
        try:
            warm.call("vitlab.training.options:check_arguments", declared | given)
        except UserError as error:
            raise UserError(f"{label}: {error}") from None


@contextmanager
def kernel_environment(workers: int = 1) -> Iterator[None]:
    """Variables for kernels: figures inline; for each of several workers its share of cores."""
    values = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if workers > 1:
        share = str(max(1, count_cores() // workers))
        values["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", share)
    with environment(values):
        yield


class Ended(KeyboardInterrupt):
    """The signal of this number asked for the end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def end_in_order() -> Iterator[None]:
    """While the block lasts, SIGTERM and SIGHUP end a batch as Ctrl+C does, by raising `Ended`. A
    signal with another handler, or that is ignored (`nohup`), is left alone. For the main thread.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number, frame):
        for other in taken:
            # a closed terminal sends it twice; the second must not interrupt the end
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _execute(
    tasks: list[Task],
    stale: list[int],
    state: BatchState,
    warm: WarmProcess,
    workers: int,
    scheduler: str,
) -> None:
    sources = {task.step.source for task in tasks}
    imports = sorted(set().union(*map(notebook_imports, sources)))
    with Display(len(stale), max(len(tasks[number].label) for number in stale)) as display:
        if scheduler:
            from vitlab.batch.dask_executor import open_executor

            warm.close()  # the kernels start where the workers are
            opened = open_executor(scheduler, tasks, state.reports, imports, display)
        else:
            warm.preload(imports)
            # papermill takes seconds, while the warm process imports
            from vitlab.batch.execute import LocalExecutor

            opened = closing(LocalExecutor(workers, warm, state.reports, display))
        with opened as executor:
            state.write()
            execute_tasks(tasks, stale, state, executor, display)


def execute_tasks(
    tasks: list[Task], stale: list[int], state: BatchState, executor: Executor, display: Display
) -> None:
    """Execute these tasks in order and keep each outcome; after a failure, its point is skipped."""

    def settle(number: int, outcome: Outcome) -> None:
        state.settle(number, outcome)
        detail = outcome.get("note") or f"{outcome['seconds']:7.1f} s"
        display.settle(number, tasks[number].label, f"{outcome['status']:7} {detail}")

    waiting, running = list(stale), set()
    try:
        while waiting or running:
            for number in list(waiting):
                task = tasks[number]
                if not {*waiting, *running}.isdisjoint(task.needs):
                    continue
                failed = _find_failed(tasks, number, state)
                if failed:
                    waiting.remove(number)
                    settle(number, {"status": "skipped", "note": f"{failed} failed"})
                elif executor.has_place(task):
                    waiting.remove(number)
                    running.add(number)
                    state.begin(number)
                    executor.start(number, task)
            for number, outcome in executor.collect() if running or waiting else ():
                running.remove(number)
                settle(number, outcome)
    except BaseException:
        for number, outcome in executor.stop():
            if outcome["status"] == "done":  # any other one may have failed by being stopped
                settle(number, outcome)
        raise


def _find_failed(tasks: list[Task], number: int, state: BatchState) -> str:
    """The failed notebook that a task builds on; "" for none, and for tasks that gather points."""
    task = tasks[number]
    for need in task.needs:
        builds_on = not task.step.once and tasks[need].point.items() <= task.point.items()
        if builds_on and state.content["tasks"][need]["status"] == "failed":
            return tasks[need].step.notebook
    return ""


def _describe_jobs(scheduler: str) -> str:
    from vitlab.batch.dask_cluster import describe_jobs

    return describe_jobs(scheduler)
