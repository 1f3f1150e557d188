"""Run a batch: execute the tasks that are out of date, each as soon as those it needs have
ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from vitlab.batch.chain import execute_chain
from vitlab.batch.claim import claim_runs
from vitlab.batch.fingerprint import fingerprint_tasks, notebook_imports
from vitlab.batch.plan import Task, load_batch, plan_tasks
from vitlab.batch.progress import Board
from vitlab.batch.state import BatchState
from vitlab.errors import UserError
from vitlab.kernels import WarmProcess, environment
from vitlab.notebook import fit_parameters, notebook_parameters
from vitlab.places import inside_project
from vitlab.training.options import TRAINS

NAME_CHECKS = {"dataset": "vitlab.data:check_name", "model": "vitlab.models:check_name"}


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
    kept with its error; later notebooks of its point are skipped, all others go on.

    workers: notebooks at a time, on this machine. scheduler: the address of a Dask scheduler, or a
    YAML file that describes a cluster to start (see cluster.py); the notebooks then run on its
    workers, as many at a time as they have threads. force: run everything. dry_run: run nothing and
    download nothing; `note` says why a task would run. Two more keys are then `measured_s`, the
    seconds that each task took when it last ended well (or None), and `jobs`, the script of a
    cluster's jobs. Mistakes in the file, a scheduler that does not answer, workers with another
    vitlab and another batch that is at the same runs (see claim.py) are a ValueError before
    anything runs. KeyboardInterrupt ends the kernels; the next call carries on. A cluster is asked
    for only when there is something to run."""
    batch = load_batch(file)
    tasks = plan_tasks(batch)
    jobs = _describe_cluster(scheduler) if dry_run and scheduler else ""
    with inside_project(batch.file), kernel_environment(workers), WarmProcess() as warm:
        imports = sorted(set().union(*(notebook_imports(step.source) for step in batch.chain)))
        prints = fingerprint_tasks(
            tasks, lambda dataset: warm.call("vitlab.data:data_version", dataset)
        )
        state = BatchState(batch, tasks)
        measured = state.measured_seconds()
        stale = state.find_stale(prints, force)
        check_values(
            [
                (task.label, task.step.declared, task.parameters)
                for task in map(tasks.__getitem__, stale)
            ],
            warm,
        )
        if dry_run:
            return state.content | {"measured_s": measured, "jobs": jobs}
        if stale:
            with claim_runs(state.path.parent, [task.run for task in tasks if task.run]):
                state = BatchState(batch, tasks)  # as it stands now that no other batch changes it
                stale = state.find_stale(prints, force)
                if stale:
                    _execute(tasks, stale, state, warm, imports, workers, scheduler)
        state.write()
    return state.content


def _execute(
    tasks: list[Task],
    stale: list[int],
    state: BatchState,
    warm: WarmProcess,
    imports: list[str],
    workers: int,
    scheduler: str,
) -> None:
    with _open_cluster(scheduler) as cluster:
        if not cluster:
            warm.preload(imports)  # only now: a batch that is up to date is soon seen to be
            # papermill takes seconds, while the warm process imports
            from vitlab.batch.local import LocalCrew
        with Board(len(stale), max(len(tasks[number].label) for number in stale)) as board:
            if cluster:
                warm.close()  # the kernels start where the workers are
                crew = cluster.hire(tasks, state.reports, state.path.parent, imports, board)
            else:
                crew = LocalCrew(workers, warm, state.reports, board)
            state.write()
            execute_chain(tasks, stale, state, crew, board)


def _open_cluster(scheduler: str):
    if not scheduler:
        return nullcontext()
    from vitlab.batch.cluster import open_cluster

    return open_cluster(scheduler)


def _describe_cluster(scheduler: str) -> str:
    from vitlab.batch.cluster import describe_cluster

    return describe_cluster(scheduler)


def run_notebook(notebook: Path | str, copy: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Execute one notebook with parameters, checked before any cell runs, and give what
    `Execution.run` gives.
    """
    notebook = Path(notebook)
    parameters = fit_parameters(notebook, parameters)
    declared = {name: default for name, (default, _) in notebook_parameters(notebook).items()}
    with inside_project(notebook), kernel_environment(), WarmProcess() as warm:
        warm.preload(sorted(notebook_imports(notebook)))
        from vitlab.batch.execute import Execution

        check_values([(notebook.stem, declared, parameters)], warm)
        with Board(1) as board:
            return Execution(
                notebook, copy, parameters, warm, on_progress=partial(board.show, 0, notebook.stem)
            ).run()


@contextmanager
def kernel_environment(workers: int = 1) -> Iterator[None]:
    """Environment variables that kernels take over: figures inline, and for each of several workers
    its share of the cores.
    """
    values = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if workers > 1:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        values["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // workers)))
    with environment(values):
        yield


def check_values(
    tasks: list[tuple[str, dict[str, Any], dict[str, Any]]], warm: WarmProcess
) -> None:
    """UserError for a data set or model that does not exist, or training arguments that do not fit
    together.

    tasks: label, declared parameters with their defaults, and given parameters.
    """
    for kind, function in NAME_CHECKS.items():
        for name in dict.fromkeys(given[kind] for _, _, given in tasks if kind in given):
            warm.call(function, name)
    for label, declared, given in tasks:
        if declared.keys() >= TRAINS:
            try:
                warm.call("vitlab.training.options:check_arguments", declared | given)
            except UserError as error:
                raise UserError(f"{label}: {error}") from None
