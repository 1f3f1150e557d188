"""A crew on a Dask cluster: each task a future that hangs on those of the tasks it needs, on a
worker that has a place for it.

A worker that is lost costs the tasks it was at their time, and nothing else. Left to itself, Dask
would do more: it moves what a lost worker had to do to workers that are busy, holds the next loss
against all that waits there, and gives up the innocent with the guilty; and it computes again what
a lost worker held, so that a notebook that had ended would run a second time. So here

- a task is handed over when a worker has a place free, and bound to it; if that is lost, the task
is handed over anew;
- a task that has lost LOSSES workers is given up;
- an outcome is kept with the scheduler once it is settled, where a task that is computed again
finds it."""

from __future__ import annotations

import os
import queue
import time
from concurrent.futures import Future as Errand, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Client, Future
from distributed.scheduler import KilledWorker

from vitlab.batch.chain import describe_error
from vitlab.batch.limits import Stopped
from vitlab.batch.plan import Task
from vitlab.batch.post import fetch_files, send_files
from vitlab.batch.probe import describe_vitlab
from vitlab.batch.progress import Board
from vitlab.batch.remote import Job, close_site, count_running, run_task
from vitlab.batch.workers import Workers, describe_resources
from vitlab.errors import UserError

SILENCE = 30  # seconds without a connection to the scheduler, after which the batch ends
TICK = 0.25  # seconds
LOSSES = 3  # workers that may be lost over one task


class ClusterGone(UserError):
    """There is nobody left to run the batch. What has ended is kept."""


class DaskCrew:
    """Executes the tasks of one batch on a cluster, as many at a time as its workers have
    threads.
    """

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
        self.client, self.workers, self.session, self.reports = (
            client,
            workers,
            session,
            reports.resolve(),
        )
        self.token, self.imports, self.board, self.patience = token, imports, board, patience
        # not resolved: runs/ may be a link to another disk
        self._token_name = token.relative_to(reports).as_posix()
        self.address, self._tasks = address, tasks
        # kept until the end: the dashboard shows them, and later tasks hang on them
        self._futures: dict[int, Future] = {}
        # number -> where (None: no place), takes (resources), since, begun, losses
        self._running: dict[int, dict[str, Any]] = {}
        self._settled: dict[int, str] = {}  # number -> the worker that holds its outcome
        self._errands: dict[int, Errand] = {}  # results on their way home
        self._messages: queue.SimpleQueue = queue.SimpleQueue()
        self._couriers = ThreadPoolExecutor(4, "vitlab-post")
        self._handed, self._homeless = 0, None  # the task that was last looked a place for in vain
        self._alive = self._connected = time.monotonic()
        client.subscribe_topic(session, lambda event: self._messages.put(event[1]))

    def has_place(self, task: Task) -> bool:
        return self._find_place(task) is not None

    def start(self, number: int, task: Task) -> None:
        at = {
            "where": self._find_place(task),
            "takes": self._resources(task),
            "since": time.monotonic(),
        }
        self._running[number] = at | {"begun": False, "losses": 0}
        self._submit(number, [self._futures[need] for need in task.needs if need in self._futures])

    def collect(self) -> list[tuple[int, dict[str, Any]]]:
        deadline, ended = time.monotonic() + 1, []
        while not ended and time.monotonic() < deadline:
            self._read_messages()
            ended = [
                (number, outcome)
                for number in list(self._running)
                if (outcome := self._take(number)) is not None
            ]
        for number, outcome in ended:
            self._settled[number] = self._running.pop(number)["where"]
            # should it be lost, the task may run a second time, and no harm is done
            with suppress(Exception):
                self.client.set_metadata(self._futures[number].key, outcome)
        self._look_around()
        return ended

    def stop(self) -> list[tuple[int, dict[str, Any]]]:
        futures = {
            number: self._futures[number] for number in self._running if number in self._futures
        }
        ended = []
        for number, future in futures.items():
            with suppress(Exception):
                if self.client.status == "running" and future.status == "finished":
                    outcome = future.result(timeout=10)
                    # what is not at home is no result
                    ended += [(number, outcome)] if "left" not in outcome else []
        with suppress(Exception):
            self.client.cancel(list(futures.values()), force=True)
            deadline = time.monotonic() + 15
            while any(self._everywhere(count_running).values()) and time.monotonic() < deadline:
                time.sleep(0.2)
        return ended

    def close(self) -> None:
        """Leave nothing on the workers, and no file for their sake."""
        self.token.unlink(missing_ok=True)
        self._couriers.shutdown(wait=False, cancel_futures=True)
        self.client.unsubscribe_topic(self.session)
        self._everywhere(close_site)
        self._futures.clear()

    def _everywhere(self, function) -> dict[str, Any]:
        addresses = list(self.workers.known) if self.client.status == "running" else []
        found = (
            self.client.run(function, self.session, workers=addresses, on_error="ignore")
            if addresses
            else {}
        )
        return {address: answer for address, answer in found.items() if answer}

    def _find_place(self, task: Task) -> str | None:
        busy = [(job["where"], job["takes"]) for job in self._running.values()]
        where = self.workers.find_free(self._resources(task), busy)
        if where is not None:
            self._alive = time.monotonic()
        else:
            self._homeless = task
        return where

    def _resources(self, task: Task) -> dict[str, float]:
        if task.step.resources is not None:
            return task.step.resources
        return {"GPU": 1.0} if self.workers.have_gpu() else {}

    def _submit(self, number: int, needs: list[Future]) -> None:
        task, at = self._tasks[number], self._running[number]
        try:
            source = task.step.source.read_bytes()
        except OSError as error:  # somebody has removed the notebook
            at["problem"] = describe_error(error)
            return
        self._handed += 1
        point = task.label.removeprefix(task.step.notebook).strip()
        # the dashboard groups by what is before -
        key = f"{task.step.notebook}-{self.session}{self._handed:04d} {point}".strip()
        job = Job(
            session=self.session,
            key=key,
            number=number,
            label=task.label,
            notebook=task.step.notebook,
            source=source,
            copy=task.path,
            parameters=task.parameters,
            limits=task.step.limits,
            imports=self.imports,
            home=str(self.reports),
            token=self._token_name,
            folder=os.getcwd(),
            sharers=self.workers.count_sharers(),
        )
        self._futures[number] = self.client.submit(
            run_task,
            job,
            *[need for need in needs if need.status == "finished"],
            key=key,
            workers=[at["where"]],
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
        if message["key"] != self._futures[number].key:  # of one that was handed over anew since
            return
        if message["kind"] == "started":
            if at["begun"]:  # the worker came back under the same address before its loss was seen
                self._lose(number)
            else:
                at["begun"] = True
        elif message["kind"] == "cell":
            self.board.show(number, task.label, message["cell"], message["cells"])
        elif message["kind"] == "needs":
            runs = [self._tasks[need].run for need in task.needs] + [task.run]
            folders = list(dict.fromkeys(run for run in runs if run))
            self._couriers.submit(
                send_files, self.client, message["worker"], message["folder"], self.reports, folders
            )

    def _take(self, number: int) -> dict[str, Any] | None:
        """The outcome of a task when it has ended and its results are at home, else None."""
        errand, at = self._errands.get(number), self._running[number]
        if errand is not None:
            return self._unpack(number, errand) if errand.done() else None
        if "problem" in at:
            return at["problem"]
        if at["losses"] >= LOSSES:
            told = (
                f"{LOSSES} workers were lost while they ran it; often that is for more memory than"
                " such a worker may take"
            )
            return describe_error(WorkersLost(told)) | {
                "seconds": round(time.monotonic() - at["since"], 1)
            }
        if at["where"] is None:
            return None
        future = self._futures[number]
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
        errand = self._couriers.submit(
            fetch_files, self.client, left, self.reports, self._tasks[number].path
        )
        errand.outcome, errand.worker = outcome, left["worker"]
        self._errands[number] = errand
        return None

    def _unpack(self, number: int, errand: Errand) -> dict[str, Any] | None:
        del self._errands[number]
        error = errand.exception()
        if error is None:
            return errand.outcome
        self._look_for_losses(force=True)
        if errand.worker in self.workers.there:  # not its fault: the disk here is full, say
            return describe_error(error)
        if self._running[number]["where"] is not None:  # that has not been seen by the look
            self._lose(number)
        return None

    def _explain(self, number: int, error: BaseException) -> dict[str, Any] | None:
        if not isinstance(error, KilledWorker | Stopped):
            return describe_error(error)
        self._lose(number)  # the worker is closing; or the scheduler allows no loss at all
        return None

    def _lose(self, number: int) -> None:
        """The worker of a task is lost: the task waits for another place, unless it has had enough
        of them.
        """
        at = self._running[number]
        at["losses"] += 1
        at["where"], at["begun"] = None, False
        self._withdraw(number)
        self.board.close(number)

    def _look_for_losses(self, force: bool = False) -> None:
        refused, lost = self.workers.look(force)
        for address in refused:
            there, here = (
                describe_vitlab(self.workers.describe(address)),
                describe_vitlab(self.workers.here),
            )
            self.board.write(
                f"worker {address} is not used: it has vitlab {there}, this machine {here}"
            )
        if lost:
            self._read_messages()  # one that has begun is not to be handed over anew
        for address in lost:
            for number in [number for number, where in self._settled.items() if where == address]:
                self._futures.pop(number, None)  # nobody needs it; else Dask would compute it again
            for number, at in self._running.items():
                if number not in self._errands and at["where"] == address:
                    self._lose(number)
                elif not at["begun"] and at["where"]:  # it may hang on what was lost
                    self._withdraw(number)
                    self._submit(number, [])

    def _withdraw(self, number: int) -> None:
        with suppress(Exception):  # without a connection, Dask forgets it by itself
            self.client.cancel(self._futures[number], force=True)

    def _house(self) -> None:
        """Find another place for those that have lost theirs."""
        for number, at in self._running.items():
            if at["where"] is None and at["losses"] < LOSSES:
                at["takes"] = self._resources(self._tasks[number])  # there may be no GPU any more
                at["where"] = self._find_place(self._tasks[number])
                if at["where"] is not None:
                    self.board.write(
                        f"{self._tasks[number].label}: its worker was lost; again on"
                        f" {self._name(at['where'])}"
                    )
                    self._submit(number, [])

    def _look_around(self) -> None:
        """Take newcomers in, and do not wait for ever where nobody is."""
        now = time.monotonic()
        if self.client.status == "running":
            self._connected = now
        elif now - self._connected > SILENCE:
            raise ClusterGone(f"the scheduler {self.address} does not answer any more; {CARRY_ON}")
        else:
            return
        self._look_for_losses()
        self._house()
        if self._errands or any(at["where"] in self.workers.there for at in self._running.values()):
            self._alive = now
        if now - self._alive > self.patience:
            raise ClusterGone(
                f"{self.address} has had no worker{self._describe_want()} for"
                f" {self.patience / 60:g} minutes; {CARRY_ON}"
            )
        self.board.note(f"{len(self._running)} running on {len(self.workers.known)} workers")

    def _describe_want(self) -> str:
        """What no worker offers, where there are any: ` that offers GPU=1, which 03_finetune asks
        for,`.
        """
        wanted = (
            self._resources(self._homeless)
            if self.workers.known and self._homeless is not None
            else {}
        )
        return (
            f" that offers {describe_resources(wanted)}, which {self._homeless.step.notebook} asks"
            " for,"
            if wanted
            else ""
        )

    def _name(self, address: str) -> str:
        worker = self.workers.known.get(address)
        return (
            address
            if worker is None or worker["name"] == address
            else f"{worker['name']} ({address})"
        )


class WorkersLost(UserError):
    """A task over which too many workers were lost."""


CARRY_ON = "what has ended is kept, and the same command carries on from there"
