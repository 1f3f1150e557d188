"""What runs on a Dask worker: one notebook, in a kernel of its own.

A worker that sees the reports folder of the batch works in it. Any other one works in a scratch
folder: it gets the runs that its notebook reads, and gives back what the notebook has changed.
Nothing of this outlives the batch: kernels and the warm process are children of the worker and end
with it, by SIGKILL too; they also end when the task is cancelled, which Dask does when the batch
dies."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import get_worker

from vitlab.batch.specs import Limits
from vitlab.batch.state import Outcome, describe_error
from vitlab.batch.transfer import Changes, Files, list_files, read_changes, write_files
from vitlab.batch.watch import Stopped
from vitlab.kernels import WarmProcess
from vitlab.places import environment

# seconds after which an unused warm process ends; the batch ends it itself, unless it was killed
IDLE_SECONDS = 60
# Dask sets them to 1 in its workers
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A task as it is sent to a worker.

    session: a name for the batch, its topic for messages. copy: path of the executed notebook below
    the reports folder. threads: that the notebook may use. reports: the reports folder as the
    worker sees it; None for one that does not share it. folder: where the batch was started."""

    session: str
    key: str
    number: int
    label: str
    notebook: str
    source: bytes
    copy: str
    parameters: dict[str, Any]
    limits: Limits
    imports: list[str]
    threads: int
    reports: str | None
    folder: str


def run_task(job: Job, files: Files) -> tuple[Outcome, Changes]:
    """Execute one notebook; its outcome, and the changes on a worker that got `files`.

    Errors are described here, because Dask keeps only the text of one that cannot be pickled."""
    worker = get_worker()

    def is_unwanted() -> bool:
        task = worker.state.tasks.get(job.key)
        closing = worker.status.name in ("closing", "closed")
        return task is None or task.state == "cancelled" or closing

    def report_progress(cell: int, cells: int) -> None:
        message = {"number": job.number, "label": job.label, "cell": cell, "cells": cells}
        worker.log_event(job.session, message)

    try:
        with tempfile.TemporaryDirectory(prefix="vitlab-", dir=worker.local_directory) as scratch:
            cache = Path(worker.local_directory) / "vitlab" / "cache"
            return _run_in(Path(scratch), cache, job, files, report_progress, is_unwanted)
    except Stopped:
        raise
    except Exception as error:
        return describe_error(error), Changes()


def _run_in(
    scratch: Path,
    cache: Path,
    job: Job,
    files: Files,
    on_progress: Callable[[int, int], None],
    is_unwanted: Callable[[], bool],
) -> tuple[Outcome, Changes]:
    from vitlab.batch.execute import Execution  # with papermill, which takes seconds

    source = scratch / f"{job.notebook}.ipynb"
    source.write_bytes(job.source)
    if job.reports:
        reports, before = Path(job.reports), {}
        folder = job.folder if Path(job.folder).is_dir() else None
    else:
        reports, folder = scratch / "reports", None
        _make_reports_folder(reports, cache)
        write_files(reports, files)
        before = list_files(reports)
    variables = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # not set by hand
        variables |= dict.fromkeys(THREADS, str(job.threads))
    with WARM.use(job.imports, variables) as warm:
        outcome = Execution(
            source,
            reports / job.copy,
            job.parameters,
            warm,
            job.label,
            limits=job.limits,
            environment={**variables, "VITLAB_REPORTS": str(reports)},
            folder=folder,
            on_progress=on_progress,
            unwanted=is_unwanted,
        ).run()
    if is_unwanted():
        raise Stopped(job.label)
    return outcome, Changes() if job.reports else read_changes(reports, before)


def _make_reports_folder(reports: Path, cache: Path) -> None:
    """A reports folder whose cache stays on the worker: that of its own $VITLAB_REPORTS, if any."""
    own = os.environ.get("VITLAB_REPORTS")
    cache = Path(own).resolve() / "cache" if own else cache
    cache.mkdir(parents=True, exist_ok=True)
    (reports / "runs").mkdir(parents=True)
    (reports / "cache").symlink_to(cache, target_is_directory=True)


class SharedWarmProcess:
    """One warm process for all notebooks of this worker; it ends after a minute without use."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: WarmProcess | None = None
        self._users, self._timer = 0, None

    @contextmanager
    def use(self, imports: list[str], variables: dict[str, str]) -> Iterator[WarmProcess]:
        with self._lock:
            self._users += 1
            if self._timer is not None:
                self._timer.cancel()
            if self._process is None:
                with environment(variables):
                    self._process = WarmProcess()
            self._process.preload(imports)
        try:
            yield self._process
        finally:
            with self._lock:
                self._users -= 1
                self._timer = threading.Timer(IDLE_SECONDS, self.close)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """End the process, unless a notebook uses it."""
        with self._lock:
            if self._process is not None and not self._users:
                self._process.close()
                self._process = None


WARM = SharedWarmProcess()


def close_warm_process() -> None:
    WARM.close()


def count_running(session: str, dask_worker) -> int:
    """Tasks of a batch that a worker is executing; Dask passes `dask_worker`."""
    return sum(session in str(task.key) for task in dask_worker.state.executing)
