"""A Dask cluster for a batch: one that runs already, by the address of its scheduler, or one that a
YAML file describes.

```yaml
# or pbs, sge, lsf, oar, htcondor (all through dask-jobqueue), jobqueue-local to try it out, local
cluster: slurm
jobs: 4                 # how many to submit
patience: 600           # minutes to wait while there is no worker at all; an hour unless said
options:                # those of dask_jobqueue.SLURMCluster and its kin
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
import secrets
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.core import Status, connect as connect_comm

from vitlab.batch.crew import ClusterGone, DaskCrew
from vitlab.batch.plan import Step, Task
from vitlab.batch.probe import describe_vitlab, probe_worker
from vitlab.batch.progress import Board
from vitlab.batch.workers import Workers, describe_resources, probe_workers
from vitlab.errors import UserError
from vitlab.files import read_yaml
from vitlab.registry import unknown

CLUSTERS = {
    "slurm": "dask_jobqueue:SLURMCluster",
    "pbs": "dask_jobqueue:PBSCluster",
    "sge": "dask_jobqueue:SGECluster",
    "lsf": "dask_jobqueue:LSFCluster",
    "oar": "dask_jobqueue:OARCluster",
    "htcondor": "dask_jobqueue:HTCondorCluster",
    "jobqueue-local": "dask_jobqueue.local:LocalCluster",
    "local": "distributed:LocalCluster",
}
FILE_KEYS = ["cluster", "jobs", "patience", "options"]
ANSWER = 6  # seconds that a scheduler has for its answer
PATIENCE = 5  # minutes without any worker; of a cluster that has to come out of a queue first: 60


@contextmanager
def open_cluster(scheduler: str) -> Iterator[Cluster]:
    """Connect to the scheduler of that address, or start the cluster of that YAML file and end it
    with the block.

    ValueError when nobody answers, or for a file that describes no cluster.
    """
    for name in (
        "distributed.client",
        "distributed.core",
        "distributed.comm",
        "distributed.utils_perf",
        "tornado.application",
    ):
        # what matters of it is said in the table
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler.endswith((".yml", ".yaml")):
        content = read_cluster_file(scheduler)
        dask_cluster = start_cluster(content)
        address, patience = dask_cluster.scheduler_address, content.get("patience", 60)
    else:
        dask_cluster, address, patience = None, scheduler, PATIENCE
    cluster = None
    try:
        how = (
            f"`dask worker {shlex.quote(address)} --nthreads 1` starts one"
            if dask_cluster is None
            else "its jobs have been submitted"
        )
        cluster = Cluster(
            connect(address), address, patience * 60, how, getattr(dask_cluster, "refusals", None)
        )
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        if dask_cluster is not None:
            dask_cluster.close()


def connect(address: str) -> Client:
    """A client of the scheduler there. ValueError, within ten seconds, when there is none."""
    how = (
        "Start one with `dask scheduler`, workers with `dask worker ADDRESS --nthreads 1`; or leave"
        " out --scheduler."
    )
    if "://" not in address or not address.rpartition(":")[2].rstrip("/").isdigit():
        raise UserError(
            f"--scheduler is {address!r}; write its address, like tcp://10.0.0.5:8786, or a YAML"
            f" file of a cluster. {how}"
        )
    try:  # Client itself waits for ever where somebody takes the call and says nothing
        with ThreadPoolExecutor(1) as thread:  # a notebook has a loop of its own in this one
            kind = thread.submit(
                lambda: asyncio.run(asyncio.wait_for(_ask_who(address), ANSWER))
            ).result()
        if kind == "Scheduler":
            return Client(address, timeout=ANSWER, set_as_default=False, name="vitlab-batch")
        problem = f"a {kind} answers there"
    except TimeoutError:
        problem = f"nothing within {ANSWER} s"
    # what speaks another protocol brings many kinds: MemoryError, TypeError
    except Exception as error:
        problem = ": ".join(filter(None, (type(error).__name__, str(error))))
    raise UserError(f"no Dask scheduler answers at {address} ({problem}). {how}")


async def _ask_who(address: str) -> str:
    comm = await connect_comm(address, timeout=ANSWER)
    try:
        await comm.write({"op": "identity", "reply": True})
        return str((await comm.read()).get("type"))
    finally:
        comm.abort()


def read_cluster_file(path: str) -> dict[str, Any]:
    """The content of a YAML file that describes a cluster, checked."""
    file, content = Path(path), read_yaml(path, "file of a cluster")
    if not isinstance(content, dict) or "cluster" not in content:
        raise UserError(
            f"{file.name} must have the keys {', '.join(FILE_KEYS)}; at least `cluster: slurm`"
        )
    for key in content:
        if key not in FILE_KEYS:
            raise UserError(unknown(f"key in {file.name}:", str(key), FILE_KEYS))
    if content["cluster"] not in CLUSTERS:
        raise UserError(
            unknown(f"cluster in {file.name}:", str(content["cluster"]), list(CLUSTERS))
        )
    for key in ("jobs", "patience"):
        if key in content and not (isinstance(content[key], int) and content[key] > 0):
            raise UserError(
                f"{key} in {file.name} must be a whole number above 0; it is {content[key]!r}"
            )
    if not isinstance(content.get("options") or {}, dict):
        raise UserError(
            f"options in {file.name} must be written as name: value; they are"
            f" {content['options']!r}"
        )
    return content


def start_cluster(content: dict[str, Any]):
    """The Dask cluster that a checked file describes, with its jobs asked for."""
    cluster = build_cluster(content)
    if content["cluster"] != "local":
        jobs = content.get("jobs", 1)
        # unlike scale, puts another job in the place of one that has ended
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
    return cluster


def describe_cluster(scheduler: str) -> str:
    """For a dry run: the script that each job would run, of a YAML file; nothing is submitted.
    Empty for an address.
    """
    if not scheduler.endswith((".yml", ".yaml")):
        return ""
    content = read_cluster_file(scheduler)
    if content["cluster"] == "local":
        return f"Workers: {content.get('jobs', 1)} on this machine."
    with build_cluster(content) as cluster:
        return f"Jobs: {content.get('jobs', 1)}. Each of them:\n{cluster.job_script()}"


def build_cluster(content: dict[str, Any]):
    options = dict(content.get("options") or {})
    if content["cluster"] == "local":
        options = {
            "n_workers": content.get("jobs", 1),
            "threads_per_worker": 1,
            "dashboard_address": None,
        } | options
    try:
        maker = pkgutil.resolve_name(CLUSTERS[content["cluster"]])
    except ImportError as error:
        raise UserError(
            f"{content['cluster']} needs dask-jobqueue: pip install 'vitlab[cluster]'"
        ) from error
    refusals = Refusals(content.get("jobs", 1))
    if hasattr(maker, "job_cls"):
        options["job_cls"] = note_refusals(maker.job_cls, refusals)
    try:
        cluster = maker(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{maker.__name__} does not take these options: {error}") from error
    cluster.refusals = refusals
    return cluster


@dataclass
class Refusals:
    """What a queue has said to the jobs that it did not take, of so many."""

    jobs: int
    said: list[str] = field(default_factory=list)

    def are_all(self) -> bool:
        return len(self.said) >= self.jobs


def note_refusals(job_class: type, refusals: Refusals) -> type:
    """A queue's class of jobs that notes what the queue says when it does not take one; Dask itself
    goes on waiting for it.
    """

    class NotedJob(job_class):
        async def start(self):
            try:
                await super().start()
            except Exception as error:
                refusals.said.append(" ".join(f"{type(error).__name__}: {error}".split()))
                self.status = Status.failed  # else Dask would not close its cluster
                raise

    return NotedJob


class Cluster:
    """A connection to a scheduler. `hire` gives the crew of a batch."""

    def __init__(
        self,
        client: Client,
        address: str,
        patience: float,
        how: str,
        refusals: Refusals | None = None,
    ):
        self.client, self.address, self.patience, self.how, self.refusals = (
            client,
            address,
            patience,
            how,
            refusals,
        )
        self.crew: DaskCrew | None = None

    def hire(
        self, tasks: list[Task], reports: Path, folder: Path, imports: list[str], board: Board
    ) -> DaskCrew:
        """Wait for a worker, and see that all of them have the vitlab of this machine and what the
        tasks ask for.

        reports: the folder for results; folder: that of the batch in it, for a file by which a
        worker sees that it shares it. ValueError otherwise: with the names of the workers and their
        versions, or of what no worker offers."""
        found = self._wait_for_workers(board)
        check_versions(found)
        workers = Workers(self.client, found)
        check_resources([task.step for task in tasks], workers)
        session = secrets.token_hex(4)
        token = folder / f".shared-{session}"
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text(session, encoding="utf-8")
        self.crew = DaskCrew(
            self.client,
            self.address,
            tasks,
            workers,
            session,
            reports,
            token,
            imports,
            board,
            self.patience,
        )
        return self.crew

    def close(self) -> None:
        with suppress(Exception):  # whatever is left of the cluster, this end of it is closed
            if self.crew is not None:
                self.crew.close()
        self.client.close(timeout=5)

    def _wait_for_workers(self, board: Board) -> dict[str, Any]:
        start, told, refused = time.monotonic(), False, []
        while True:
            found = {
                worker: there
                for worker, there in probe_workers(self.client).items()
                if not isinstance(there, OSError)
            }
            if found:  # with an OSError, a worker has ended as it was asked
                return found
            if self.refusals is not None:
                refused, before = list(self.refusals.said), len(refused)
                if self.refusals.are_all():
                    raise ClusterGone(f"the queue took no job: {refused[0]}")
                for said in refused[before:]:
                    board.write(f"the queue did not take a job: {said}")
            if time.monotonic() - start > self.patience:
                raise ClusterGone(
                    f"{self.address} has had no worker for {self.patience / 60:g} minutes:"
                    f" {self.how}"
                )
            if not told:
                board.write(f"waiting for the first worker: {self.how}")
                told = True
            time.sleep(1)


def check_versions(found: dict[str, Any]) -> None:
    """ValueError with the workers that have another vitlab than this machine. found: worker ->
    answer of `probe_worker`.

    One that gave no answer is passed over, as long as any gave one: it may have ended that moment,
    and is asked again."""
    here = probe_worker()
    answers = {
        worker: there for worker, there in found.items() if not isinstance(there, BaseException)
    } or found
    others = [
        f"{worker} has {describe_vitlab(there)}"
        for worker, there in answers.items()
        if not fits(there, here)
    ]
    if others:
        raise UserError(
            f"no notebook was started: this machine has vitlab {describe_vitlab(here)}, but worker"
            f" {'; worker '.join(others)}. Bring them to the same version (the same commit, in the"
            " Python that runs `dask worker`) and start them again."
        )


def fits(there: Any, here: dict[str, Any]) -> bool:
    return isinstance(there, dict) and (there["version"], there["code"]) == (
        here["version"],
        here["code"],
    )


def check_resources(steps: list[Step], workers: Workers) -> None:
    """ValueError for a step that asks for what no worker has."""
    for step in steps:
        wanted = step.resources or {}
        if wanted and not any(workers.offers(address, wanted) for address in workers.known):
            text = describe_resources(wanted)
            how = (
                f"start one with `dask worker ADDRESS --nthreads 1 --resources {shlex.quote(text)}`"
            )
            raise UserError(
                f"no worker offers the resources {text} that {step.notebook} asks for; {how}"
            )
