"""Carries files between the batch and workers that do not share its file system, over the connection to the scheduler."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distributed import Client

from vitlab.batch.chain import describe_error
from vitlab.batch.files import PIECE, Listing, list_files, place_of, read_piece, set_time, write_piece
from vitlab.batch.remote import drop_desk, tell_arrived
from vitlab.runs import atomic


def send_files(client: Client, worker: str, folder: str, reports: Path, wanted: list[str]) -> None:
    """Copy these folders of `reports` to the reports folder of a worker, and tell it when all is there, or why it is not."""
    problem = None
    try:
        for name, (size, changed) in list_files(reports, wanted).items():
            for offset in range(0, max(size, 1), PIECE):
                client.run(write_piece, folder, name, offset, read_piece(str(reports), name, offset), workers=[worker])
            client.run(set_time, folder, name, changed, workers=[worker])
    except FileNotFoundError as error:
        told = f"{error.filename} was removed while the batch ran; the same command makes it again"
        problem = {"cell": None, "line": "", "name": "RunFolderRemoved", "value": told}
    except Exception as error:  # the worker's disk is full, say: its notebook must not wait for ever
        problem = describe_error(error)["error"]
    client.run(tell_arrived, folder, problem, workers=[worker])


def fetch_files(client: Client, left: dict[str, Any], reports: Path, copy: str) -> None:
    """Bring home what a notebook has changed on a worker, and clear up there.

    Each file gets its name when it is whole; run.json and the executed copy, which make a result of the rest, come last.
    """
    worker, folder = left["worker"], left["folder"]
    files: Listing = left["files"]
    for name in left["removed"]:
        place_of(reports, name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: (name == copy, name.endswith("/run.json"), name)):
        size, changed = files[name]
        with atomic(place_of(reports, name)) as temporary:
            with open(temporary, "wb") as file:
                for offset in range(0, size, PIECE):
                    file.write(client.run(read_piece, folder, name, offset, workers=[worker])[worker])
            if temporary.stat().st_size != size:
                raise OSError(f"{name} came from {worker} with {temporary.stat().st_size} of {size} bytes")
            os.utime(temporary, ns=(changed, changed))
    client.run(drop_desk, folder, workers=[worker])
