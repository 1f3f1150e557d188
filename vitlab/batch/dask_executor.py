"""Executes the tasks of a batch on a Dask cluster.

A worker that is lost costs the tasks it was running their time, and nothing else. Dask alone would
do more: it moves what a lost worker had to do to workers that are busy, counts the next loss
against all tasks that wait there, and gives up innocent tasks with the guilty one. So here a task
is submitted when a worker has a place free, and bound to it. If the worker is lost, the task is
submitted again; a task that has lost MAX_WORKER_LOSSES workers has failed."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
from distributed import Client
from distributed.scheduler import KilledWorker

from vitlab.batch.dask_cluster import (
    Cluster,
    ClusterGone,
    Worker,
    Workers,
    describe_resources,
    describe_vitlab,
    open_cluster,
)
from vitlab.batch.dask_worker import Job, close_warm_process, count_running, run_task
from vitlab.batch.display import Display
from vitlab.batch.plan import Task
from vitlab.batch.state import Outcome, describe_error
from vitlab.batch.transfer import list_files, read_files, store_changes
from vitlab.batch.watch import Stopped
from vitlab.errors import UserError

LOOK_SECONDS = 2  # between two looks at the workers
DISCONNECTED_SECONDS = 30  # without the scheduler, after which the batch ends
STOP_SECONDS = 15  # for running notebooks to end
MAX_WORKER_LOSSES = 3
CONTINUE = "finished results are kept, and the same command continues"


class WorkersLost(UserError):
    """A task lost too many workers."""


class TaskCancelled(Exception):
    """Dask has cancelled a task: its worker was lost, or the scheduler has lost the batch."""


@contextmanager
def open_executor(
    scheduler: str, tasks: list[Task], reports: Path, imports: list[str], display: Display
) -> Iterator[DaskExecutor]:
    """An executor on the cluster of an address or a YAML file. UserError if a worker has another
    vitlab, or none offers the resources of a task. It leaves nothing on the workers.
    """
    with open_cluster(scheduler) as cluster:
        session = secrets.token_hex(4)
        # a worker that can read it shares the folder; runs/ may be a link to another disk
        token = reports / "runs" / f".shared-{session}"
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(session, encoding="utf-8")
        executor = None
        try:
            executor = DaskExecutor(cluster, tasks, reports, session, imports, display)
            yield executor
        finally:
            if executor is not None:
                executor.close()
            token.unlink(missing_ok=True)


@dataclass(eq=False)
class Running:
    """A task that was started. worker: None while it waits for another one. resources: what it
    takes there. future: the task of Dask.
    """

    number: int
    task: Task
    since: float
    losses: int = 0
    worker: Worker | None = None
    resources: dict[str, float] | None = None
    future: distributed.Future | None = None


class DaskExecutor:
    """Executes the tasks of one batch, as many at a time as the workers have threads."""

    def __init__(
        self,
        cluster: Cluster,
        tasks: list[Task],
        reports: Path,
        session: str,
        imports: list[str],
        display: Display,
    ):
        self.cluster, self.client, self.tasks = cluster, cluster.client, tasks
        self.reports, self.session, self.imports = reports.resolve(), session, imports
        self.display = display
        self.workers = Workers(self.client, self.reports, session)
        self._running: dict[Future, Running] = {}  # by the result that is awaited
        self._waiting: list[Running] = []  # for another worker
        self._unplaced: Task | None = None  # that no worker could take when last asked
        self._checked, self._announced = False, set()
        self._submitted, self._looked = 0, 0.0
        self._alive = self._connected = time.monotonic()
        self.client.subscribe_topic(session, lambda event: display.show(**event[1]))
        self._look()
        if not self.workers.present:
            self.display.write(f"waiting for the first worker: {cluster.hint}")

    def has_place(self, task: Task) -> bool:
        return self._find_worker(task) is not None

    def start(self, number: int, task: Task) -> None:
        self._submit(Running(number, task, time.monotonic()))

    def collect(self) -> list[tuple[int, Outcome]]:
        if self._running:
            done = wait(self._running, timeout=1, return_when=FIRST_COMPLETED).done
        else:
            time.sleep(0.5)
            done = set()
        self._look(force=any(result.exception() for result in done))
        ended = []
        for result in done:
            running = self._running.pop(result)
            outcome = self._finish(running, result)
            if outcome is not None:
                ended.append((running.number, outcome))
        for running in list(self._waiting):
            if self.has_place(running.task):
                self._waiting.remove(running)
                self._submit(running)
                text = f"{running.task.label}: its worker was lost; again on {running.worker}"
                self.display.write(text)
        return ended

    def stop(self) -> list[tuple[int, Outcome]]:
        ended = []
        for result, running in self._running.items():
            if result.done() and not result.exception():
                ended.append((running.number, self._finish(running, result)))
        with suppress(Exception):
            futures = [running.future for running in self._running.values() if running.future]
            self.client.cancel(futures, force=True)
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                if not any(self._on_workers(count_running, self.session)):
                    break
                time.sleep(0.2)
        return ended

    def close(self) -> None:
        with suppress(Exception):  # a cluster that has ended needs no closing
            self.client.unsubscribe_topic(self.session)
            self._on_workers(close_warm_process)

    def _on_workers(self, function: Callable, *arguments) -> list:
        addresses = list(self.workers.usable)
        if self.client.status != "running" or not addresses:
            return []
        found = self.client.run(function, *arguments, workers=addresses, on_error="ignore")
        return list(found.values())

    def _find_worker(self, task: Task) -> Worker | None:
        """The worker with most places free among those that could start the task now."""
        wanted = self._find_resources(task)
        best, most_free = None, 0
        for worker in self.workers.usable.values():
            taken = [
                running.resources
                for running in self._running.values()
                if running.worker.address == worker.address
            ]
            free = worker.threads - len(taken)
            if free > most_free and worker.offers(wanted, taken):
                best, most_free = worker, free
        if best is None:
            self._unplaced = task
        else:
            self._alive = time.monotonic()
        return best

    def _find_resources(self, task: Task) -> dict[str, float]:
        """What a task takes on a worker: by default a GPU, where any worker offers one."""
        if task.step.resources is not None:
            return task.step.resources
        gpu = {"GPU": 1.0}
        return gpu if any(worker.offers(gpu) for worker in self.workers.usable.values()) else {}

    def _submit(self, running: Running) -> None:
        running.resources = self._find_resources(running.task)
        running.worker = self._find_worker(running.task)
        try:
            running.future = self._send(running)
        except Exception as error:  # the notebook was removed, or the worker is lost
            result = Future()
            result.set_exception(error)
        else:
            result = asyncio.run_coroutine_threadsafe(
                _await_result(self.client, running.future), self.client.loop.asyncio_loop
            )
        self._running[result] = running

    def _send(self, running: Running) -> distributed.Future:
        task, worker, files = running.task, running.worker, {}
        if worker.reports is None:
            needed = [self.tasks[need].run for need in task.needs] + [task.run]
            folders = dict.fromkeys(run for run in needed if run)
            content = read_files(self.reports, list_files(self.reports, folders))
            (files,) = self.client.scatter([content], workers=[worker.address], hash=False)
        self._submitted += 1
        point = task.label.removeprefix(task.step.notebook).strip()
        # the dashboard groups by what is before -
        key = f"{task.step.notebook}-{self.session}{self._submitted:04d} {point}".strip()
        job = Job(
            session=self.session,
            key=key,
            number=running.number,
            label=task.label,
            notebook=task.step.notebook,
            source=task.step.source.read_bytes(),
            copy=task.path,
            parameters=task.parameters,
            limits=task.step.limits,
            imports=self.imports,
            threads=self.workers.count_threads(worker),
            reports=worker.reports,
            folder=os.getcwd(),
        )
        return self.client.submit(
            run_task,
            job,
            files,
            key=key,
            workers=[worker.address],
            resources=running.resources or None,
            priority=-running.number,
            pure=False,
        )

    def _finish(self, running: Running, result: Future) -> Outcome | None:
        """The outcome of a task; None if its worker was lost and it is to run again."""
        error = result.exception()
        if error is None:
            outcome, changes = result.result()
            try:
                store_changes(self.reports, changes, running.task.path)
            except Exception as problem:  # the disk is full, say
                return describe_error(problem)
            return outcome
        is_gone = running.worker.address not in self.workers.present
        if not is_gone and isinstance(error, TaskCancelled):
            address = self.cluster.address
            raise ClusterGone(f"the scheduler {address} has lost this batch; {CONTINUE}")
        # Stopped: the worker is closing
        if not is_gone and not isinstance(error, KilledWorker | Stopped):
            return describe_error(error)
        running.losses += 1
        self.display.hide(running.number)
        if running.losses >= MAX_WORKER_LOSSES:
            text = (
                f"{running.losses} workers were lost while they ran it; often it needs more memory"
                " than a worker has"
            )
            seconds = round(time.monotonic() - running.since, 1)
            return describe_error(WorkersLost(text), seconds)
        running.worker = running.future = None
        self._waiting.append(running)
        return None

    def _look(self, force: bool = False) -> None:
        """Every two seconds: cancel tasks of lost workers, accept new ones, end without any."""
        now = time.monotonic()
        if self.client.status == "running":
            self._connected = now
        elif now - self._connected > DISCONNECTED_SECONDS:
            address = self.cluster.address
            raise ClusterGone(f"the scheduler {address} does not answer any more; {CONTINUE}")
        else:
            return
        if not force and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        workers = self.workers
        workers.refresh()
        if not self._checked and (workers.usable or workers.refused):
            workers.check({task.step.notebook: task.step for task in self.tasks}.values())
            self._checked = True
        for address in workers.refused.keys() - self._announced:
            self._announced.add(address)
            text = f"worker {address} is not used: it has {workers.refused[address]}"
            self.display.write(f"{text}, this machine {describe_vitlab()}")
        for running in self._running.values():
            if running.worker.address in workers.present:
                self._alive = now
            elif running.future is not None:
                self.client.cancel(running.future, force=True)
        if not workers.present:
            self.cluster.check_queue()
        if now - self._alive > self.cluster.patience:
            raise ClusterGone(self._describe_patience())
        self.display.note(f"{len(self._running)} running on {len(workers.usable)} workers")

    def _describe_patience(self) -> str:
        waiting = ""
        if self._unplaced is not None:
            wanted = describe_resources(self._find_resources(self._unplaced))
            waiting = f" for {self._unplaced.label}" + f" that offers {wanted}" * bool(wanted)
        minutes, hint = self.cluster.patience / 60, self.cluster.hint
        return (
            f"{self.cluster.address} has had no worker{waiting} in {minutes:g} minutes ({hint});"
            f" {CONTINUE}"
        )


async def _await_result(client: Client, future: distributed.Future) -> Any:
    """The result of a task, also transferred to this machine."""
    try:
        return await client.gather(future, asynchronous=True)
    except distributed.CancelledError as error:
        raise TaskCancelled(str(error)) from None
