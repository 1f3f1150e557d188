"""Files of a reports folder on their way to a Dask worker and back, for workers that do not share
it.

They travel in memory, as arguments and results of Dask tasks."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vitlab.errors import UserError
from vitlab.files import atomic
from vitlab.run_folders import building_folder, hold, let_go, read_info, replace_run

RUN_FILE = re.compile(r"(runs/[^/]+/[^/]+)/run\.json")
Files = dict[str, tuple[bytes, int]]  # path below the reports folder -> content, change time in ns


@dataclass
class Changes:
    """What a notebook has changed in a reports folder: files with new content, and those gone."""

    files: Files = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)


def list_files(reports: Path, folders: Iterable[str] = ("runs",)) -> dict[str, tuple[int, int]]:
    """Path -> size and change time (ns) of the files below these folders, but for hidden ones."""
    found = {}
    for folder in folders:
        for path in sorted((reports / folder).rglob("*")):
            parts = path.relative_to(reports).parts
            if path.is_file() and not any(part.startswith(".") for part in parts):
                status = path.stat()
                found["/".join(parts)] = status.st_size, status.st_mtime_ns
    return found


def read_files(reports: Path, names: Iterable[str]) -> Files:
    found = {}
    for name in names:
        path = find_place(reports, name)
        found[name] = path.read_bytes(), path.stat().st_mtime_ns
    return found


def read_changes(reports: Path, before: dict[str, tuple[int, int]]) -> Changes:
    """What has changed since `list_files` gave `before`."""
    after = list_files(reports)
    changed = [name for name, state in after.items() if before.get(name) != state]
    return Changes(read_files(reports, changed), sorted(before.keys() - after.keys()))


def write_files(reports: Path, files: Files) -> None:
    for name, (content, changed_ns) in files.items():
        _write_file(find_place(reports, name), content, changed_ns)


def store_changes(reports: Path, changes: Changes, copy: str) -> None:
    """Apply the changes of a worker to the reports folder of the batch.

    A run made there replaces the one here in one step (see run_folders.py); any other file
    replaces its old version, the executed copy last."""
    files, removed = dict(changes.files), set(changes.removed)
    for name in list(changes.files):
        match = RUN_FILE.fullmatch(name)
        if match and _is_made_anew(reports, name, match[1], changes):
            run = match[1]
            _replace_run(reports, run, changes)
            files = {name: file for name, file in files.items() if not _belongs(name, run)}
            removed = {name for name in removed if not _belongs(name, run)}
    for name in removed:
        find_place(reports, name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: (name == copy, name.endswith("/run.json"), name)):
        _write_file(find_place(reports, name), *files[name])


def _is_made_anew(reports: Path, name: str, run: str, changes: Changes) -> bool:
    """Whether a finished run of the worker is not the one here, which 04 to 06 only add to."""
    there = json.loads(changes.files[name][0])
    try:
        here = read_info(find_place(reports, run))
    except UserError:  # there is none here, or a damaged one
        return there["status"] == "done"
    return there["status"] == "done" and there["start_s"] != here["start_s"]


def _replace_run(reports: Path, run: str, changes: Changes) -> None:
    path = find_place(reports, run)
    new = building_folder(path)
    hold(path)
    try:
        shutil.rmtree(new, ignore_errors=True)
        names = [name for name in changes.files if _belongs(name, run)]
        # run.json last: it makes the replacement complete
        for name in sorted(names, key=lambda name: name == f"{run}/run.json"):
            _write_file(find_place(new, name.removeprefix(f"{run}/")), *changes.files[name])
        replace_run(path)
    finally:
        let_go(path)


def _belongs(name: str, run: str) -> bool:
    """Whether a file is one of a run's own; its executed notebooks stay when it is replaced."""
    return name.startswith(f"{run}/") and not name.startswith(f"{run}/notebooks/")


def _write_file(path: Path, content: bytes, changed_ns: int) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        os.utime(temporary, ns=(changed_ns, changed_ns))


def find_place(folder: str | Path, name: str) -> Path:
    """The path of a file below a folder; UserError for a name that leads out of it."""
    path = Path(os.path.normpath(Path(folder, name)))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise UserError(f"{name!r} leads out of {folder}")
    return path
