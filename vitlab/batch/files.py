"""Files of a reports folder as they go to a worker and come back: what is there, what has changed,
and piece by piece.
"""

from __future__ import annotations

import os
from pathlib import Path

from vitlab.errors import UserError

PIECE = 16 * 2**20  # bytes on the way at a time
Listing = dict[str, tuple[int, int]]  # path below the reports folder -> size, time of change in ns


def list_files(reports: Path, folders: list[str] | None = None) -> Listing:
    """The files below these folders (default: runs/) of a reports folder, without hidden ones (not
    whole yet).
    """
    found: Listing = {}
    for folder in folders if folders is not None else ["runs"]:
        for path in sorted((reports / folder).rglob("*")):
            parts = path.relative_to(reports).parts
            if path.is_file() and not any(part.startswith(".") for part in parts):
                status = path.stat()
                found["/".join(parts)] = status.st_size, status.st_mtime_ns
    return found


def find_changes(before: Listing, after: Listing) -> tuple[Listing, list[str]]:
    """Files that are new or changed, and the names of those that are gone."""
    return {name: entry for name, entry in after.items() if before.get(name) != entry}, sorted(
        before.keys() - after.keys()
    )


def read_piece(folder: str, name: str, offset: int) -> bytes:
    with open(place_of(folder, name), "rb") as file:
        file.seek(offset)
        return file.read(PIECE)


def write_piece(folder: str, name: str, offset: int, piece: bytes) -> None:
    """Write at an offset of a file; with offset 0 it is made anew."""
    path = place_of(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(piece)


def set_time(folder: str, name: str, changed_ns: int) -> None:
    os.utime(place_of(folder, name), ns=(changed_ns, changed_ns))


def place_of(folder: str | Path, name: str) -> Path:
    """The path of a file below a folder. ValueError for a name that leads out of it, whoever sent
    it.
    """
    path = Path(os.path.normpath(Path(folder, name)))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise UserError(f"{name!r} leads out of {folder}")
    return path
