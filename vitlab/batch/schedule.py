"""Run a batch: execute the tasks that are out of date, each as soon as those it needs have ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vitlab.batch.estimate import estimate_batch
from vitlab.batch.fingerprint import fingerprint_tasks, notebook_imports
from vitlab.batch.plan import Task, load_batch, plan_tasks
from vitlab.batch.state import BatchState
from vitlab.kernels import WarmProcess
from vitlab.notebook import fit_parameters

if TYPE_CHECKING:
    from vitlab.batch.execute import Execution

NAME_CHECKS = {"dataset": "vitlab.data:check_name", "model": "vitlab.models:check_name"}


def run_batch(file: Path | str, *, workers: int = 1, force: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Execute what is missing or out of date of a batch, and give the content of its batch.json.

    A task is up to date when it ended well, its executed copy (and its run, marked as done) is there, none of the tasks that it
    needs runs again, and notebook, parameters, data and the code of vitlab it uses are what they were. A task that fails is
    kept with its error; later notebooks of its point are skipped, everything else goes on.

    workers: notebooks at a time. force: run everything. dry_run: run nothing and download nothing; `note` says why a task would
    run, and a further key `estimate` holds what `estimate_batch` gives.
    Mistakes in the file are a ValueError before anything runs. KeyboardInterrupt ends the kernels; the next call carries on.
    """
    batch = load_batch(file)
    tasks = plan_tasks(batch)
    with kernel_environment(workers), WarmProcess() as warm:
        warm.preload(sorted(set().union(*(notebook_imports(step.source) for step in batch.chain))))
        # papermill takes seconds to import: here, the same seconds that the warm process takes
        from vitlab.batch.execute import Execution

        prints = fingerprint_tasks(tasks, lambda dataset: warm.call("vitlab.data:data_version", dataset))
        check_names([task.parameters for task in tasks], warm)
        state = BatchState(batch, tasks)
        measured = state.measured_seconds()
        stale = state.find_stale(prints, force)
        if dry_run:
            return state.content | {"estimate": estimate_batch(tasks, stale, measured, warm.call)}
        state.write()
        if stale:

            def prepare(task: Task, position: int) -> Execution:
                return Execution(task.step.source, state.reports / task.path, task.parameters, warm, task.label, position)

            _execute_tasks(tasks, stale, state, workers, prepare)
    return state.content


def run_notebook(notebook: Path | str, copy: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Execute one notebook with parameters, checked before any cell runs, and give what `Execution.run` gives."""
    notebook = Path(notebook)
    parameters = fit_parameters(notebook, parameters)
    with kernel_environment(), WarmProcess() as warm:
        warm.preload(sorted(notebook_imports(notebook)))
        from vitlab.batch.execute import Execution

        check_names([parameters], warm)
        return Execution(notebook, copy, parameters, warm).run()


@contextmanager
def kernel_environment(workers: int = 1) -> Iterator[None]:
    """Environment variables that kernels take over: figures inline, and for each of several workers its share of the cores."""
    values = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if workers > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        values["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_names(parameters: list[dict[str, Any]], warm: WarmProcess) -> None:
    """ValueError for a dataset or model that there is not."""
    for kind, function in NAME_CHECKS.items():
        for name in dict.fromkeys(given[kind] for given in parameters if kind in given):
            warm.call(function, name)


def _execute_tasks(tasks: list[Task], stale: list[int], state: BatchState, workers: int, prepare: Callable) -> None:
    """Execute the tasks as soon as those they need have ended, the earliest of the plan first."""
    waiting, running, width = list(stale), {}, max(len(tasks[number].label) for number in stale)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                for number in list(waiting):
                    task, unsettled = tasks[number], {*waiting, *(other for other, _ in running.values())}
                    if len(running) == workers or not unsettled.isdisjoint(task.needs):
                        continue
                    waiting.remove(number)
                    broken = _find_broken(tasks, number, state)
                    if broken:
                        state.settle(number, status="skipped", note=f"{broken} failed")
                        tqdm.write(f"{task.label:{width}}  skipped: {broken} failed")
                    else:
                        positions = {execution.position for _, execution in running.values()}
                        execution = prepare(task, min(set(range(workers)) - positions))
                        running[pool.submit(execution.run)] = number, execution
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    number, _ = running.pop(future)
                    outcome = _outcome(future)
                    state.settle(number, **outcome)
                    tqdm.write(f"{tasks[number].label:{width}}  {outcome['status']:6} {outcome['seconds']:7.1f} s")
                for _, execution in running.values():
                    execution.tick()
        except KeyboardInterrupt:
            _stop(running)
            raise


def _find_broken(tasks: list[Task], number: int, state: BatchState) -> str:
    """The first notebook that failed among those this task builds on; one that runs once, or gathers points, does without."""
    task = tasks[number]
    for other in task.needs if not task.step.once else ():
        builds_on = tasks[other].point.items() <= task.point.items()
        if builds_on and state.content["tasks"][other]["status"] == "failed":
            return tasks[other].step.notebook
    return ""


def _outcome(future: Future) -> dict[str, Any]:
    try:
        return future.result()
    except Exception as error:  # the kernel did not start, or the disk is full: the batch goes on
        problem = {"cell": None, "line": "", "name": type(error).__name__, "value": str(error)}
        return {"status": "failed", "seconds": 0.0, "peak_memory_mb": None, "error": problem}


def _stop(running: dict[Future, tuple[int, Execution]]) -> None:
    for attempt in range(6):  # an interrupt that falls between two cells is lost, so send it again; kill in the end
        for future, (_, execution) in running.items():
            if not future.done():
                execution.stop(force=attempt == 5)
        if not wait(running, timeout=1).not_done:
            break
