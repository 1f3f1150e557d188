"""MANIFEST.json: the SHA-256 of every file of a bundle.

It shows that files are those that were packed. It does not show who packed them: anyone can write a
new one for other files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from vitlab.errors import UserError
from vitlab.submission.archive import hash_file

MANIFEST = "MANIFEST.json"
MAX_BYTES = 20 * 10**6


class Manifest(BaseModel):
    """code: hash of the Python files of the author's vitlab. notebooks: paths of the executed ones,
    in the order of their execution. files: path -> SHA-256."""

    format: Literal[2] = 2
    title: str
    author: str
    made: str = ""
    vitlab: str = ""
    commit: str = ""
    code: str = ""
    notebooks: list[str] = []
    files: dict[str, str] = {}


def list_files(folder: Path) -> dict[str, str]:
    """Path below the folder -> SHA-256, of every file but the manifest itself."""
    paths = sorted(
        path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST
    )
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write MANIFEST.json, with the files that lie below the folder now."""
    text = manifest.model_copy(update={"files": list_files(folder)}).model_dump_json(indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The content of MANIFEST.json. UserError where it is missing, damaged or of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{MANIFEST} is missing: vitlab submit did not make this bundle, or a file was removed"
        )
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{MANIFEST} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read"
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = " ".join(map(str, first["loc"]))
        raise UserError(
            f"{MANIFEST} is damaged, or from another version of vitlab: {where}: {first['msg']}"
        ) from error


def compare_files(folder: Path, manifest: Manifest) -> dict[str, str]:
    """File -> what is wrong with it, for every file that is altered, missing or not listed; empty
    where all are as packed.
    """
    found, listed = list_files(folder), manifest.files
    missing = {name: "missing" for name in listed if name not in found}
    altered = {name: "altered" for name in listed if name in found and found[name] != listed[name]}
    return (
        missing
        | altered
        | {name: "not listed in the manifest" for name in found if name not in listed}
    )
