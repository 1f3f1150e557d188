"""The workers of a cluster as a batch sees them: who is there, whose vitlab fits, what they offer,
and who has a place free.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import cloudpickle
from distributed import Client

from vitlab.batch import probe
from vitlab.batch.probe import probe_worker

INTERVAL = 2  # seconds between two looks
ANSWER = 20  # seconds that the scheduler has to name its workers


def list_workers(client: Client) -> dict[str, dict[str, Any]]:
    """Worker (address) -> what the scheduler says of it. OSError (TimeoutError is one) when the
    scheduler does not answer.

    Not by `client.scheduler_info`: that gives a cache, which Dask itself replaces every two seconds
    by one that names no worker."""
    return client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=ANSWER)["workers"]


def probe_workers(client: Client, addresses: list[str] | None = None) -> dict[str, Any]:
    """Worker (address) -> what `probe_worker` gives there, or the exception in its place; empty
    where there is no worker.
    """
    if addresses is None:
        try:
            addresses = list(list_workers(client))
        except OSError:
            return {}
    if not addresses:
        return {}
    # as source: what a worker has under this name is what we want to know
    cloudpickle.register_pickle_by_value(probe)
    try:
        return client.run(probe_worker, workers=addresses, on_error="return")
    finally:
        cloudpickle.unregister_pickle_by_value(probe)


def describe_resources(wanted: dict[str, float]) -> str:
    """`GPU=1,memory=8`, as `dask worker --resources` takes it."""
    return ",".join(f"{name}={amount:g}" for name, amount in wanted.items())


class Workers:
    """known: address -> name, threads (notebooks at a time), resources and cores, of each worker
    that may be given work.

    there: the addresses of all workers, of those too that end or must not be used.
    """

    def __init__(self, client: Client, found: dict[str, Any]):
        self.client, self.here = client, probe_worker()
        self.known: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()
        self.there: set[str] = set(found)
        self._looked = 0.0
        self._probed = dict(found)
        self.look(force=True)

    def look(self, force: bool = False) -> tuple[list[str], list[str]]:
        """Bring `known` and `there` up to date, every two seconds; give newcomers not to be used,
        and lost workers.
        """
        if not force and time.monotonic() - self._looked < INTERVAL:
            return [], []
        self._looked = time.monotonic()
        try:
            there = list_workers(self.client)
        except OSError:  # nothing is known, so nothing is lost
            return [], []
        new = [address for address in there if address not in self._probed]
        if new:
            self._probed |= probe_workers(self.client, new)
        self._probed = {
            address: found for address, found in self._probed.items() if address in there
        }
        refused, self.known = [], {}
        for address, info in there.items():
            found = self._probed.get(address)
            if isinstance(found, BaseException) or found is None:
                # gone in the meantime, or busy: asked again at the next look
                self._probed.pop(address, None)
            elif (found["version"], found["code"]) != (self.here["version"], self.here["code"]):
                refused += [address] if address not in self.refused else []
            elif info.get("status", "running") == "running":
                self.known[address] = {
                    "name": str(info.get("name") or address),
                    "threads": int(info["nthreads"]),
                    "resources": dict(info.get("resources") or {}),
                    "cores": found["cores"],
                }
        lost, self.there = sorted(self.there - set(there)), set(there)
        self.refused |= set(refused)
        return refused, lost

    def describe(self, address: str) -> dict[str, Any]:
        return self._probed[address]

    def offers(self, address: str, wanted: dict[str, float]) -> bool:
        """Whether a worker has these resources at all, free or not."""
        return all(
            self.known[address]["resources"].get(name, 0) >= amount
            for name, amount in wanted.items()
        )

    def have_gpu(self) -> bool:
        return any(worker["resources"].get("GPU", 0) >= 1 for worker in self.known.values())

    def find_free(
        self, wanted: dict[str, float], busy: Iterable[tuple[str, dict[str, float]]]
    ) -> str | None:
        """The worker with most places free among those that could begin now; None if all are taken.

        busy: for each task on its way, its worker and the resources that it takes there. One more
        than a worker has threads would only wait there; and should the worker be lost, it would be
        held against it."""
        busy, best = list(busy), None
        for address, worker in self.known.items():
            mine = [taken for where, taken in busy if where == address]
            free = worker["threads"] - len(mine)
            left = {
                name: amount - sum(taken.get(name, 0) for taken in mine)
                for name, amount in worker["resources"].items()
            }
            fits = free > 0 and all(left.get(name, 0) >= amount for name, amount in wanted.items())
            if fits and (best is None or free > best[0]):
                best = free, address
        return best and best[1]

    def count_sharers(self) -> dict[str, int]:
        """How many notebooks run at a time on the same cores, by the name of these."""
        sharers: dict[str, int] = {}
        for worker in self.known.values():
            sharers[worker["cores"]["name"]] = (
                sharers.get(worker["cores"]["name"], 0) + worker["threads"]
            )
        return sharers
