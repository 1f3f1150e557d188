"""A crew on this machine: threads that each look after one kernel, all forked from one warm
process.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from vitlab.batch.chain import describe_error
from vitlab.batch.execute import Execution
from vitlab.batch.plan import Task
from vitlab.batch.progress import Board
from vitlab.kernels import WarmProcess


class LocalCrew:
    """Executes up to `workers` notebooks at a time; what they leave goes into `reports`."""

    def __init__(self, workers: int, warm: WarmProcess, reports: Path, board: Board):
        self.workers, self.warm, self.reports, self.board = workers, warm, reports, board
        self._threads = ThreadPoolExecutor(workers)
        self._running: dict[Future, tuple[int, Execution]] = {}

    def has_place(self, task: Task) -> bool:
        return len(self._running) < self.workers

    def start(self, number: int, task: Task) -> None:
        execution = Execution(
            task.step.source,
            self.reports / task.path,
            task.parameters,
            self.warm,
            task.label,
            limits=task.step.limits,
            on_progress=partial(self.board.show, number, task.label),
        )
        self._running[self._threads.submit(execution.run)] = number, execution

    def collect(self) -> list[tuple[int, dict[str, Any]]]:
        ended = wait(self._running, timeout=1, return_when=FIRST_COMPLETED).done
        return [(self._running.pop(future)[0], _outcome(future)) for future in ended]

    def stop(self) -> list[tuple[int, dict[str, Any]]]:
        # an interrupt that falls between two cells is lost, so send it again; kill in the end
        for attempt in range(6):
            for future, (_, execution) in self._running.items():
                if not future.done():
                    execution.stop(force=attempt == 5)
            if not wait(self._running, timeout=1).not_done:
                break
        self._threads.shutdown(cancel_futures=True)
        return [
            (number, _outcome(future))
            for future, (number, _) in self._running.items()
            if not future.cancelled()
        ]


def _outcome(future: Future) -> dict[str, Any]:
    try:
        return future.result()
    except Exception as error:  # the kernel did not start, or the disk is full
        return describe_error(error)
