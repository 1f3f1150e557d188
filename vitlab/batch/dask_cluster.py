"""The Dask cluster of a batch and its workers: a running one, by the address of its scheduler, or a
new one that a YAML file describes.

```yaml
# or pbs, sge, lsf, oar, htcondor (all through dask-jobqueue), jobqueue-local to try it out, local
cluster: slurm
jobs: 4                 # how many to submit
patience: 600           # minutes to wait while there is no worker; 60 without this key
options:                # those of dask_jobqueue.SLURMCluster or of the class of the other queue
  cores: 8
  processes: 1
  memory: 32 GB
  walltime: "04:00:00"
```
"""

from __future__ import annotations

import asyncio
import logging
import pkgutil
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.core import Status, connect as connect_comm

import vitlab
from vitlab.batch.plan import Step
from vitlab.batch.specs import CLUSTERS, ClusterSpec, read_spec
from vitlab.errors import UserError
from vitlab.files import hash_package

ANSWER_SECONDS = 6  # that a scheduler has for its first answer
LIST_SECONDS = 20  # that it has to name its workers
PATIENCE_MINUTES = 5  # without any worker, for a cluster that runs already
QUIET = (
    "distributed.client",
    "distributed.core",
    "distributed.comm",
    "distributed.utils_perf",
    "tornado.application",
)


class ClusterGone(UserError):
    """Nothing is left that could run the batch. Finished results are kept."""


@dataclass
class Cluster:
    """A connection to a scheduler. patience: seconds to wait while there is no worker. hint: how to
    get one. rejections: messages of a queue that did not accept one of `jobs` jobs.
    """

    client: Client
    address: str
    patience: float
    hint: str
    jobs: int = 1
    rejections: list[str] = field(default_factory=list)

    def check_queue(self) -> None:
        """ClusterGone when the queue has rejected all jobs."""
        if len(self.rejections) >= self.jobs:
            raise ClusterGone(f"the queue rejected the jobs: {self.rejections[0]}")


@contextmanager
def open_cluster(scheduler: str) -> Iterator[Cluster]:
    """Connect to the scheduler at that address, or start the cluster of that YAML file and end it
    with the block. UserError when no scheduler answers, or for a file with a mistake.
    """
    for name in QUIET:  # the batch reports what matters
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not is_file(scheduler):
        hint = f"`dask worker {shlex.quote(scheduler)} --nthreads 1` starts one"
        with connect(scheduler) as client:
            yield Cluster(client, scheduler, PATIENCE_MINUTES * 60, hint)
        return
    spec, rejections = read_cluster_file(scheduler), []
    with build_cluster(spec, rejections) as dask_cluster:
        if spec.cluster != "local":
            # unlike `scale`, it submits another job when one has ended
            dask_cluster.adapt(minimum_jobs=spec.jobs, maximum_jobs=spec.jobs)
        address, patience = dask_cluster.scheduler_address, spec.patience * 60
        with connect(address) as client:
            hint = "its jobs have been submitted"
            yield Cluster(client, address, patience, hint, spec.jobs, rejections)


def is_file(scheduler: str) -> bool:
    return scheduler.endswith((".yml", ".yaml"))


def read_cluster_file(path: str) -> ClusterSpec:
    return read_spec(ClusterSpec, path, "file of a cluster")


def connect(address: str) -> Client:
    """A client of the scheduler at that address; UserError, within ten seconds, without one."""
    hint = (
        "Start one with `dask scheduler`, workers with `dask worker ADDRESS --nthreads 1`; or leave"
        " out --scheduler."
    )
    if "://" not in address or not address.rpartition(":")[2].rstrip("/").isdigit():
        raise UserError(
            f"--scheduler is {address!r}; write its address, like tcp://10.0.0.5:8786, or a YAML"
            f" file of a cluster. {hint}"
        )
    try:  # the Client itself would wait without a limit for a program that accepts and is silent
        kind = asyncio.run(asyncio.wait_for(_ask_type(address), ANSWER_SECONDS))
        if kind == "Scheduler":
            return Client(address, timeout=ANSWER_SECONDS, set_as_default=False, name="vitlab")
        problem = f"a {kind} answers there"
    except TimeoutError:
        problem = f"nothing within {ANSWER_SECONDS} s"
    # another protocol causes many kinds of errors: MemoryError, TypeError
    except Exception as error:
        problem = ": ".join(filter(None, (type(error).__name__, str(error))))
    raise UserError(f"no Dask scheduler answers at {address} ({problem}). {hint}")


async def _ask_type(address: str) -> str:
    comm = await connect_comm(address, timeout=ANSWER_SECONDS)
    try:
        await comm.write({"op": "identity", "reply": True})
        return str((await comm.read()).get("type"))
    finally:
        comm.abort()


def describe_jobs(scheduler: str) -> str:
    """For a dry run with a YAML file, the script of each job; empty for an address."""
    if not is_file(scheduler):
        return ""
    spec = read_cluster_file(scheduler)
    if spec.cluster == "local":
        return f"Workers: {spec.jobs} on this machine."
    with build_cluster(spec, []) as cluster:
        return f"Jobs: {spec.jobs}. Each of them:\n{cluster.job_script()}"


def build_cluster(spec: ClusterSpec, rejections: list[str]):
    """The Dask cluster of a file, without jobs; `rejections` gets messages of the queue."""
    options = dict(spec.options)
    if spec.cluster == "local":
        fixed = {"threads_per_worker": 1, "dashboard_address": None}
        options = {"n_workers": spec.jobs, **fixed, **options}
    try:
        make_cluster = pkgutil.resolve_name(CLUSTERS[spec.cluster])
    except ImportError as error:
        raise UserError(
            f"{spec.cluster} needs dask-jobqueue: pip install 'vitlab[cluster]'"
        ) from error
    if hasattr(make_cluster, "job_cls"):
        options["job_cls"] = _record_rejections(make_cluster.job_cls, rejections)
    try:
        return make_cluster(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{make_cluster.__name__} does not accept these options: {error}"
        ) from error


def _record_rejections(job_class: type, rejections: list[str]) -> type:
    """A class of jobs that records a rejection by the queue; Dask itself waits for ever."""

    class RecordedJob(job_class):
        async def start(self):
            try:
                await super().start()
            except Exception as error:
                rejections.append(" ".join(f"{type(error).__name__}: {error}".split()))
                self.status = Status.failed  # else Dask would not close its cluster
                raise

    return RecordedJob


@dataclass(frozen=True)
class Worker:
    """threads: notebooks at a time. resources: as `dask worker --resources` gives them. cores: how
    many it may use. host: a name for these; workers with the same name share them. reports: the
    reports folder of the batch as it sees it, None if it does not.
    """

    address: str
    name: str
    threads: int
    resources: dict[str, float]
    cores: int
    host: str
    reports: str | None

    def offers(self, wanted: dict[str, float], taken: Iterable[dict[str, float]] = ()) -> bool:
        """Whether it has these resources, besides what is taken."""
        for name, amount in wanted.items():
            used = sum(other.get(name, 0) for other in taken)
            if self.resources.get(name, 0) - used < amount:
                return False
        return True

    def __str__(self) -> str:
        return self.address if self.name == self.address else f"{self.name} ({self.address})"


class Workers:
    """The workers of a cluster, as of the last `refresh`.

    usable: by address, those that may be given work. refused: address -> what makes a worker
    unusable. present: the addresses of all workers, including those that are closing."""

    def __init__(self, client: Client, reports: Path, session: str):
        self.client, self._probe = client, make_probe(str(reports), session)
        self.usable: dict[str, Worker] = {}
        self.refused: dict[str, str] = {}
        self.present: set[str] = set()
        self._answers: dict[str, Any] = {}

    def refresh(self) -> None:
        """If the scheduler does not answer, all stays as it was."""
        try:
            # not client.scheduler_info: its cache often names no worker
            identity = self.client.scheduler.identity
            there = self.client.sync(identity, n_workers=-1, callback_timeout=LIST_SECONDS)
        except OSError:  # TimeoutError is one
            return
        there = there["workers"]
        new = [address for address in there if address not in self._answers]
        if new:
            self._answers |= self.client.run(self._probe, workers=new, on_error="return")
        self.present, self.usable, self.refused = set(there), {}, {}
        for address, info in there.items():
            answer = self._answers[address]
            if isinstance(answer, OSError):  # it has ended, or was busy: ask again
                del self._answers[address]
            elif isinstance(answer, Exception):
                self.refused[address] = f"no answer ({type(answer).__name__}: {answer})"
            elif answer["vitlab"] != describe_vitlab():
                self.refused[address] = answer["vitlab"]
            elif info.get("status", "running") == "running":
                self.usable[address] = Worker(
                    address=address,
                    name=str(info.get("name") or address),
                    threads=int(info["nthreads"]),
                    resources=dict(info.get("resources") or {}),
                    cores=answer["cores"],
                    host=answer["host"],
                    reports=answer["reports"],
                )

    def check(self, steps: Iterable[Step]) -> None:
        """UserError for workers with another vitlab, and for resources that no worker has."""
        if self.refused:
            others = "; worker ".join(f"{name} has {has}" for name, has in self.refused.items())
            raise UserError(
                f"no notebook was started: this machine has {describe_vitlab()}, but worker"
                f" {others}. Bring them to the same version (the same commit, in the Python that"
                " runs `dask worker`) and start them again."
            )
        for step in steps:
            wanted = step.resources or {}
            if not any(worker.offers(wanted) for worker in self.usable.values()):
                text = describe_resources(wanted)
                option = f"--nthreads 1 --resources {shlex.quote(text)}"
                raise UserError(
                    f"no worker offers the resources {text} that {step.notebook} asks for; start"
                    f" one with `dask worker ADDRESS {option}`"
                )

    def count_threads(self, worker: Worker) -> int:
        """The cores for each notebook of a worker, when all workers that share them are busy."""
        same = [other.threads for other in self.usable.values() if other.host == worker.host]
        return max(1, worker.cores // max(1, sum(same)))


def make_probe(reports: str, session: str) -> Callable[[], dict[str, Any]]:
    """A function that describes the worker it runs on. It is nested, because Dask then sends its
    source: a worker with another vitlab, or with none, can answer, too."""

    def probe() -> dict[str, Any]:
        import os
        import socket
        from pathlib import Path

        try:
            import vitlab
            from vitlab.files import hash_package

            found = f"vitlab {vitlab.__version__} (code {hash_package()})"
        except ImportError:
            found = "no vitlab, or an old one"
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))
        else:
            cores = list(range(os.cpu_count() or 1))
        folder = Path(os.environ.get("VITLAB_REPORTS") or reports).resolve()
        try:
            shares = (folder / "runs" / f".shared-{session}").read_text() == session
        except OSError:
            shares = False
        return {
            "vitlab": found,
            "cores": len(cores),
            "host": f"{socket.gethostname()} {','.join(map(str, cores))}",
            "reports": str(folder) if shares else None,
        }

    return probe


def describe_vitlab() -> str:
    return f"vitlab {vitlab.__version__} (code {hash_package()})"


def describe_resources(wanted: dict[str, float]) -> str:
    """`GPU=1,memory=8`, as `dask worker --resources` takes it."""
    return ",".join(f"{name}={amount:g}" for name, amount in wanted.items())
