"""A crew on a Dask cluster: each task a future that hangs on those of the tasks it needs.

Dask runs a task again when its worker is lost, and gives up after `distributed.scheduler.allowed-failures` lost workers (three,
unless the scheduler was told otherwise). Two things are done here, so that a lost worker costs nothing more than that:

- No more tasks are handed over than there are places. Dask holds the loss of a worker against every task that waits there, and
  after some losses all of them would be given up, not only the one that brings the workers down.
- An outcome is kept with the scheduler once it is settled. Futures live on workers; when one is lost, Dask computes again what it
  held, and a notebook that had ended would run a second time.
"""

from __future__ import annotations

import os
import queue
import time
from concurrent.futures import Future as Errand
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from vitlab.batch.chain import describe_error
from vitlab.batch.plan import Task
from vitlab.batch.post import fetch_files, send_files
from vitlab.batch.probe import describe_vitlab
from vitlab.batch.progress import Board
from vitlab.batch.remote import Job, close_site, count_running, run_task
from vitlab.batch.workers import Workers

SILENCE = 30  # seconds without a connection to the scheduler, after which the batch ends
TICK = 0.25  # seconds


class ClusterGone(ValueError):
    """There is nobody left to run the batch. What has ended is kept."""


class DaskCrew:
    """Executes the tasks of one batch on a cluster, as many at a time as its workers have threads."""

    def __init__(
        self,
        client: Client,
        address: str,
        tasks: list[Task],
        workers: Workers,
        session: str,
        reports: Path,
        token: Path,
        imports: list[str],
        board: Board,
        patience: float,
    ):
        self.client, self.workers, self.session, self.reports = client, workers, session, reports.resolve()
        self.token, self.imports, self.board, self.patience = token, imports, board, patience
        self.address, self._tasks = address, tasks
        self._futures: dict[int, Future] = {}  # kept until the end: the dashboard shows them, and later tasks hang on them
        self._running: dict[int, dict[str, Any]] = {}  # number -> where, takes (resources), since, starts
        self._errands: dict[int, Errand] = {}  # results on their way home
        self._messages: queue.SimpleQueue = queue.SimpleQueue()
        self._couriers = ThreadPoolExecutor(4, "vitlab-post")
        self._alive = self._connected = time.monotonic()
        client.subscribe_topic(session, lambda event: self._messages.put(event[1]))

    def has_place(self, task: Task) -> bool:
        return self._find_place(task) is not None

    def start(self, number: int, task: Task) -> None:
        where = self._find_place(task)
        self._running[number] = {"where": where, "takes": self._resources(task), "since": time.monotonic(), "starts": 0}
        self._submit(number, [self._futures[need] for need in task.needs if need in self._futures])

    def collect(self) -> list[tuple[int, dict[str, Any]]]:
        deadline, ended = time.monotonic() + 1, []
        while not ended and time.monotonic() < deadline:
            self._read_messages()
            ended = [(number, outcome) for number in list(self._running) if (outcome := self._take(number)) is not None]
        for number, outcome in ended:
            del self._running[number]
            with suppress(Exception):  # should it be lost, the task may run a second time, and no harm is done
                self.client.set_metadata(self._futures[number].key, outcome)
        self._look_around()
        return ended

    def stop(self) -> None:
        with suppress(Exception):
            self.client.cancel([self._futures[number] for number in self._running], force=True)
            deadline = time.monotonic() + 15
            while any(self._everywhere(count_running).values()) and time.monotonic() < deadline:
                time.sleep(0.2)

    def close(self) -> None:
        """Leave nothing on the workers, and no file for their sake."""
        self.token.unlink(missing_ok=True)
        self._couriers.shutdown(wait=False, cancel_futures=True)
        self.client.unsubscribe_topic(self.session)
        self._everywhere(close_site)
        self._futures.clear()

    def _everywhere(self, function) -> dict[str, Any]:
        addresses = list(self.workers.known)
        found = self.client.run(function, self.session, workers=addresses, on_error="ignore") if addresses else {}
        return {address: answer for address, answer in found.items() if answer}

    def _find_place(self, task: Task) -> str | None:
        busy = [(job["where"], job["takes"]) for job in self._running.values()]
        where = self.workers.find_free(self._resources(task), busy)
        if where is not None:
            self._alive = time.monotonic()
        return where

    def _resources(self, task: Task) -> dict[str, float]:
        if task.step.resources is not None:
            return task.step.resources
        return {"GPU": 1.0} if self.workers.have_gpu() else {}

    def _submit(self, number: int, needs: list[Future], suffix: str = "") -> None:
        task, at = self._tasks[number], self._running[number]
        point = task.label.removeprefix(task.step.notebook).strip()
        key = f"{task.step.notebook}-{self.session}{suffix} {point}".strip()  # the dashboard groups by what is before the dash
        job = Job(
            session=self.session,
            key=key,
            number=number,
            label=task.label,
            notebook=task.step.notebook,
            source=task.step.source.read_bytes(),
            copy=task.path,
            parameters=task.parameters,
            limits=task.step.limits,
            imports=self.imports,
            home=str(self.reports),
            token=self.token.resolve().relative_to(self.reports).as_posix(),
            folder=os.getcwd(),
            sharers=self.workers.count_sharers(),
        )
        self._futures[number] = self.client.submit(
            run_task,
            job,
            *[need for need in needs if need.status == "finished"],
            key=key,
            workers=[at["where"]],
            allow_other_workers=True,  # when that one is lost
            resources=at["takes"] or None,
            priority=-number,
            pure=False,
        )

    def _read_messages(self) -> None:
        with suppress(queue.Empty):
            message = self._messages.get(timeout=TICK)
            while True:
                self._hear(message)
                message = self._messages.get_nowait()

    def _hear(self, message: dict[str, Any]) -> None:
        number = message["number"]
        at, task = self._running.get(number), self._tasks[number]
        if at is None:
            return
        at["where"] = message["worker"]
        if message["kind"] == "started":
            at["starts"] += 1
            if at["starts"] > 1:
                self.board.write(f"{task.label}: a worker was lost; starts again on {self._name(message['worker'])}")
        elif message["kind"] == "cell":
            self.board.show(number, task.label, message["cell"], message["cells"])
        elif message["kind"] == "needs":
            runs = [self._tasks[need].run for need in task.needs] + [task.run]
            folders = list(dict.fromkeys(run for run in runs if run))
            self._couriers.submit(send_files, self.client, message["worker"], message["folder"], self.reports, folders)

    def _take(self, number: int) -> dict[str, Any] | None:
        """The outcome of a task when it has ended and its results are at home, else None."""
        future, errand = self._futures[number], self._errands.get(number)
        if errand is not None:
            return self._unpack(number, errand) if errand.done() else None
        if not future.done():
            return None
        try:
            if future.status == "cancelled":
                raise ClusterGone(f"the scheduler {self.address} has lost this batch; {CARRY_ON}")
            if future.status == "error":
                return self._explain(number, future.exception(timeout=10))
            outcome = future.result(timeout=10)
        except TimeoutError:  # the worker that held it was lost this moment; Dask is at it
            return None
        if "left" not in outcome:
            return outcome
        left = outcome.pop("left")
        errand = self._couriers.submit(fetch_files, self.client, left, self.reports, self._tasks[number].path)
        errand.outcome, errand.worker = outcome, left["worker"]
        self._errands[number] = errand
        return None

    def _unpack(self, number: int, errand: Errand) -> dict[str, Any] | None:
        del self._errands[number]
        error = errand.exception()
        if error is None:
            return errand.outcome
        self.workers.look(force=True)
        if errand.worker in self.workers.known:  # not its fault: the disk here is full, say
            return describe_error(error)
        time.sleep(TICK)
        return None  # the worker has been lost with what it held; the task runs again

    def _explain(self, number: int, error: BaseException) -> dict[str, Any] | None:
        if not isinstance(error, KilledWorker):
            return describe_error(error)
        if error.task != self._futures[number].key:  # one that it hung on was lost too often; by now its outcome is at home
            self._submit(number, [], f"-{self._running[number]['starts'] + 1}")
            return None
        last = getattr(error.last_worker, "name", None) or getattr(error.last_worker, "address", "?")
        told = (
            f"{error.allowed_failures + 1} workers were lost while they ran it, the last one {last}; "
            "often it takes more memory than such a worker may, and the system kills both"
        )
        seconds = round(time.monotonic() - self._running[number]["since"], 1)
        return describe_error(WorkersLost(told)) | {"seconds": seconds}

    def _look_around(self) -> None:
        """Take newcomers in, and do not wait for ever where nobody is."""
        now = time.monotonic()
        if self.client.status == "running":
            self._connected = now
        elif now - self._connected > SILENCE:
            raise ClusterGone(f"the scheduler {self.address} does not answer any more; {CARRY_ON}")
        else:
            return
        for address in self.workers.look():
            there = describe_vitlab(self.workers.describe(address))
            here = describe_vitlab(self.workers.here)
            self.board.write(f"worker {address} is not used: it has vitlab {there}, this machine {here}")
        if self._errands or any(at["where"] in self.workers.known for at in self._running.values()):
            self._alive = now
        if now - self._alive > self.patience:
            raise ClusterGone(f"{self.address} has had no worker for {self.patience / 60:g} minutes; {CARRY_ON}")
        self.board.note(f", {len(self._running)} running on {len(self.workers.known)} workers")

    def _name(self, address: str) -> str:
        worker = self.workers.known.get(address)
        return address if worker is None or worker["name"] == address else f"{worker['name']} ({address})"


class WorkersLost(Exception):
    """A task that Dask has given up."""


CARRY_ON = "what has ended is kept, and the same command carries on from there"
