"""What runs on a Dask worker: one notebook, in a kernel of its own, with results where the batch
can reach them.

A worker that sees the reports folder of the batch works in it. Any other one works in a scratch
folder: it asks for the runs that its notebook reads, and keeps what the notebook has changed until
the batch has fetched it. Nothing of this outlives the batch: kernels and warm processes are
children of the worker and end with it, by SIGKILL too; they end as well when the task is cancelled,
which happens by itself when the batch dies."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import get_worker
from distributed.utils import sync
from distributed.worker import Worker

from vitlab.batch.chain import describe_error
from vitlab.batch.files import find_changes, list_files
from vitlab.batch.limits import Limits, Stopped
from vitlab.batch.probe import probe_worker
from vitlab.kernels import WarmProcess, environment

# seconds after which a warm process without work is let go; the batch does so itself, unless it was
# killed
IDLE = 60
# Dask sets them to 1 in its workers
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A task as it travels. copy, token: the executed notebook, and a file that holds `session`,
    below `home`.

    sharers: how many notebooks run at a time on the cores of that name.
    """

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
    home: str
    token: str
    folder: str
    sharers: dict[str, int]


class Site:
    """What the notebooks of a batch share on one worker: the warm process and, if it cannot see
    their home, a scratch folder.
    """

    def __init__(self, job: Job, worker: Worker):
        self.home = find_home(job)
        self.scratch = Path(worker.local_directory) / f"vitlab-{job.session}"
        own = os.environ.get("VITLAB_REPORTS")
        self.cache = (
            Path(own).resolve() if own else Path(worker.local_directory) / "vitlab"
        ) / "cache"
        cores = probe_worker()["cores"]
        threads = str(max(1, cores["count"] // job.sharers.get(cores["name"], 1)))
        set_by_hand = os.environ.get("OMP_NUM_THREADS", "1") != "1"
        self.environment = {} if set_by_hand else dict.fromkeys(THREADS, threads)
        self.environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        self.folder = job.folder if self.home and Path(job.folder).is_dir() else None
        with environment(self.environment):
            self.warm = WarmProcess()
        self.warm.preload(job.imports)
        self.busy, self.timer = 0, None

    def close(self) -> None:
        self.warm.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


SITES: dict[str, Site] = {}
ARRIVED: dict[str, list] = {}  # folder -> an event, and what went wrong on the way
LOCK = threading.RLock()


def run_task(job: Job, *needs: dict) -> dict[str, Any]:
    """Execute one notebook and give its outcome, with what has changed on this worker under `left`
    when nobody else sees it.

    needs: outcomes of the tasks before it. A task that had ended before, and whose outcome was lost
    with a worker, is not run again: the scheduler keeps what the batch has settled. An error is
    described here, as Dask keeps no more than the text of one that cannot be pickled."""
    worker = get_worker()
    settled = sync(worker.loop, worker.scheduler.get_metadata, keys=[job.key], default=None)
    if settled:
        return settled

    def tell(**facts) -> None:
        worker.log_event(
            job.session, {"number": job.number, "key": job.key, "worker": worker.address, **facts}
        )

    def is_unwanted() -> bool:
        task = worker.state.tasks.get(job.key)
        return (
            task is None or task.state == "cancelled" or worker.status.name in ("closing", "closed")
        )

    tell(kind="started")
    try:
        with _borrow_site(job, worker) as site:
            return _run_on(site, job, tell, is_unwanted, worker.address)
    except Stopped:
        raise
    except Exception as error:
        return describe_error(error)


def _run_on(
    site: Site, job: Job, tell: Callable, is_unwanted: Callable[[], bool], address: str
) -> dict[str, Any]:
    from vitlab.batch.execute import Execution  # with papermill, which takes seconds

    desk = site.scratch / f"{job.number}-{secrets.token_hex(4)}"
    desk.mkdir(parents=True)
    keep = False
    try:
        source = desk / f"{job.notebook}.ipynb"
        source.write_bytes(job.source)
        reports = site.home or desk / "reports"
        if not site.home:
            _set_up(reports, site.cache)
            problem = _order_files(reports, tell, is_unwanted)
            if problem:
                return {
                    "status": "failed",
                    "seconds": 0.0,
                    "peak_memory_mb": None,
                    "error": problem,
                }
        before = list_files(reports) if not site.home else {}
        execution = Execution(
            source,
            reports / job.copy,
            job.parameters,
            site.warm,
            job.label,
            limits=job.limits,
            environment={**site.environment, "VITLAB_REPORTS": str(reports)},
            folder=site.folder,
            on_progress=lambda cell, cells: tell(kind="cell", cell=cell, cells=cells),
            unwanted=is_unwanted,
        )
        outcome = execution.run()
        if is_unwanted():
            raise Stopped(job.label)
        if not site.home:
            files, removed = find_changes(before, list_files(reports))
            outcome["left"] = {
                "worker": address,
                "folder": str(reports),
                "files": files,
                "removed": removed,
            }
            keep = True
        return outcome
    finally:
        if not keep:
            shutil.rmtree(desk, ignore_errors=True)


def find_home(job: Job) -> Path | None:
    """The reports folder of the batch as seen from here: what VITLAB_REPORTS names, else the same
    path. None: not seen.
    """
    reports = Path(os.environ.get("VITLAB_REPORTS") or job.home).resolve()
    try:
        return reports if (reports / job.token).read_text() == job.session else None
    except OSError:
        return None


def tell_arrived(folder: str, problem: dict | None) -> None:
    """All files that a notebook has asked for are there; or they are not, and why."""
    if folder in ARRIVED:
        ARRIVED[folder][1] = problem
        ARRIVED[folder][0].set()


def drop_desk(reports: str) -> None:
    """What a notebook has left here is at home."""
    shutil.rmtree(Path(reports).parent, ignore_errors=True)


def count_running(session: str) -> int:
    return SITES[session].busy if session in SITES else 0


def close_site(session: str) -> None:
    with LOCK:
        site = SITES.pop(session, None)
    if site is not None:
        site.close()


@contextmanager
def _borrow_site(job: Job, worker: Worker) -> Iterator[Site]:
    with LOCK:
        site = SITES.get(job.session)
        if site is None:
            site = SITES[job.session] = Site(job, worker)
        if site.timer is not None:
            site.timer.cancel()
        site.busy += 1
    try:
        yield site
    finally:
        with LOCK:
            site.busy -= 1
            if site.busy == 0:
                site.timer = threading.Timer(IDLE, _close_idle, [job.session])
                site.timer.daemon = True
                site.timer.start()


def _close_idle(session: str) -> None:
    """End the warm process; what the batch has yet to fetch stays."""
    with LOCK:
        site = SITES.get(session)
        if site is not None and site.busy == 0:
            del SITES[session]
            site.warm.close()


def _set_up(reports: Path, cache: Path) -> None:
    (reports / "runs").mkdir(parents=True)
    cache.mkdir(parents=True, exist_ok=True)
    (reports / "cache").symlink_to(cache, target_is_directory=True)  # data sets stay on the worker


def _order_files(
    reports: Path, tell: Callable, is_unwanted: Callable[[], bool]
) -> dict[str, Any] | None:
    arrived = ARRIVED[str(reports)] = [threading.Event(), None]
    try:
        tell(kind="needs", folder=str(reports))
        while not arrived[0].wait(0.5):
            if is_unwanted():
                raise Stopped
        return arrived[1]
    finally:
        del ARRIVED[str(reports)]
