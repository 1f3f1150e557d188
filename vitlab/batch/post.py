"""Carries files between the batch and workers that do not share its file system, over the
connection to the scheduler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

from distributed import Client

from vitlab.batch.chain import describe_error
from vitlab.batch.files import PIECE, list_files, place_of, read_piece, set_time, write_piece
from vitlab.batch.remote import drop_desk, tell_arrived
from vitlab.errors import UserError
from vitlab.files import atomic
from vitlab.run_folders import building_folder, hold, let_go, read_info, replace_run

FETCHING = threading.Lock()  # two notebooks may have made the same run


def send_files(client: Client, worker: str, folder: str, reports: Path, wanted: list[str]) -> None:
    """Copy these folders of `reports` to the reports folder of a worker, and tell it when all is
    there, or why it is not.
    """
    problem = None
    try:
        for name, (size, changed) in list_files(reports, wanted).items():
            for offset in range(0, max(size, 1), PIECE):
                client.run(
                    write_piece,
                    folder,
                    name,
                    offset,
                    read_piece(str(reports), name, offset),
                    workers=[worker],
                )
            client.run(set_time, folder, name, changed, workers=[worker])
    except FileNotFoundError as error:
        told = f"{error.filename} was removed while the batch ran; the same command makes it again"
        problem = {"cell": None, "line": "", "name": "RunFolderRemoved", "value": told}
    # the worker's disk is full, say: its notebook must not wait for ever
    except Exception as error:
        problem = describe_error(error)["error"]
    client.run(tell_arrived, folder, problem, workers=[worker])


def fetch_files(client: Client, left: dict[str, Any], reports: Path, copy: str) -> None:
    """Bring home what a notebook has changed on a worker, and clear up there.

    A run that was made there replaces the one here in one step, as a run made here does (see
    run_folders.py). Any other file replaces its old version when it is whole; the executed copy,
    which makes a result of the rest, comes last."""
    files, removed = {*left["files"]}, {*left["removed"]}
    for run in sorted(
        name.removesuffix("/run.json")
        for name in files
        if re.fullmatch(r"runs/[^/]+/[^/]+/run\.json", name)
    ):
        if _is_made_anew(client, left, reports, run):
            _fetch_run(client, left, reports, run)
            files, removed = (
                {name for name in names if not _belongs(name, run)} for names in (files, removed)
            )
    for name in removed:
        place_of(reports, name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: (name == copy, name.endswith("/run.json"), name)):
        _fetch_file(client, left, name, place_of(reports, name))
    client.run(drop_desk, left["folder"], workers=[left["worker"]])


def _is_made_anew(client: Client, left: dict[str, Any], reports: Path, run: str) -> bool:
    """Whether a run on the worker is finished and not the one that is here: 04 to 06 only add to
    one that both have.
    """
    there = json.loads(
        client.run(read_piece, left["folder"], f"{run}/run.json", 0, workers=[left["worker"]])[
            left["worker"]
        ]
    )
    try:
        return (
            there["status"] == "done"
            and there["start_s"] != read_info(place_of(reports, run))["start_s"]
        )
    except UserError:  # there is none here, or a damaged one
        return True


def _fetch_run(client: Client, left: dict[str, Any], reports: Path, run: str) -> None:
    path = place_of(reports, run)
    new = building_folder(path)
    with FETCHING:
        hold(path)
        try:
            shutil.rmtree(new, ignore_errors=True)
            names = [name for name in left["files"] if _belongs(name, run)]
            # last: it makes the replacement complete
            for name in sorted(names, key=lambda name: name == f"{run}/run.json"):
                _fetch_file(client, left, name, place_of(new, name.removeprefix(f"{run}/")))
            replace_run(path)
        finally:
            let_go(path)


def _belongs(name: str, run: str) -> bool:
    """Whether a file is one of a run's own; its executed notebooks stay when it is replaced."""
    return name.startswith(f"{run}/") and not name.startswith(f"{run}/notebooks/")


def _fetch_file(client: Client, left: dict[str, Any], name: str, path: Path) -> None:
    worker, (size, changed) = left["worker"], left["files"][name]
    with atomic(path) as temporary:
        with open(temporary, "wb") as file:
            for offset in range(0, size, PIECE):
                file.write(
                    client.run(read_piece, left["folder"], name, offset, workers=[worker])[worker]
                )
        if temporary.stat().st_size != size:
            raise OSError(
                f"{name} came from {worker} with {temporary.stat().st_size} of {size} bytes"
            )
        os.utime(temporary, ns=(changed, changed))
