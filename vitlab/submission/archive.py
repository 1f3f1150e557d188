"""The zip of a bundle, and MANIFEST.json with the SHA-256 of every file in it.

The manifest shows that files are those that were packed. It does not show who packed them: anyone
can write a new one for other files."""

from __future__ import annotations

import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ValidationError

from vitlab.errors import MissingFileError, UserError
from vitlab.files import atomic, hash_file

MANIFEST = "MANIFEST.json"
MAX_FILES = 5_000
MAX_BYTES = 2 * 10**9  # of the zip, and of its files together
MAX_RATIO = 100.0  # unpacked bytes for each packed byte; pages and notebooks have about 3
SMALL = 10**6  # bytes; smaller files may have any ratio
COMPRESSED = (".png", ".jpg", ".pdf", ".safetensors", ".parquet")  # stored as they are
# what zipfile raises for a file that is not a whole zip
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)


class UnsafeBundle(UserError):
    """The bundle was not opened."""


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


def write_zip(folder: Path, target: Path) -> Path:
    """Pack all files of the folder, sorted by name and without dates; returns `target`. Equal files
    give an equal zip.
    """
    with atomic(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            packed = zipfile.ZIP_STORED if path.suffix in COMPRESSED else zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes(), packed)
    return target


@contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """The files of a bundle in a temporary folder; a folder (some course systems unpack) is used as
    it is.

    MissingFileError where there is none. UnsafeBundle for a file that is not a zip, is damaged, or
    breaks the limits."""
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_symlink():
                raise UnsafeBundle(f"{file.relative_to(path)} is a link; a bundle has none")
        yield path
        return
    if not path.is_file():
        raise MissingFileError(f"there is no bundle {path}; vitlab submit writes one")
    with tempfile.TemporaryDirectory(prefix="vitlab-verify-") as folder:
        unpack(path, Path(folder))
        yield Path(folder)


def unpack(path: Path, folder: Path) -> None:
    """Write the files of a zip below a folder. UnsafeBundle, before anything is written, for a zip
    that breaks the limits.
    """
    name = path.name
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename
                archive.extract(info, folder)  # links become plain files
    except UnsafeBundle:
        raise
    except DAMAGE as error:
        raise UnsafeBundle(
            f"{name} is damaged or incomplete ({error}); ask for the zip again"
        ) from error


def check_zip(path: Path) -> None:
    """UnsafeBundle for a zip that breaks the limits of count, size or ratio, or has names that lead
    out of the folder.
    """
    size = path.stat().st_size
    limit = f"at most {MAX_BYTES / 1e9:.1f} GB are allowed"
    if size > MAX_BYTES:
        raise UnsafeBundle(f"{path.name} has {size / 1e9:,.1f} GB; {limit}")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > MAX_FILES:
        raise UnsafeBundle(f"{path.name} has {len(members):,} files; at most {MAX_FILES:,}")
    total = sum(info.file_size for info in members)
    if total > MAX_BYTES:
        raise UnsafeBundle(f"{path.name} would unpack to {total / 1e9:,.1f} GB; {limit}")
    for info in members:
        name, packed, unpacked = info.filename, info.compress_size, info.file_size
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not name.isprintable():
            raise UnsafeBundle(f"the name {name!r} is not a plain relative path")
        if unpacked > SMALL and unpacked > MAX_RATIO * packed:
            raise UnsafeBundle(f"{name} would grow from {packed:,} to {unpacked:,} bytes; too much")


def list_files(folder: Path) -> dict[str, str]:
    """Path below the folder -> SHA-256, of every file but the manifest itself."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in paths
        if path != folder / MANIFEST
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write MANIFEST.json, with the files that are in the folder now."""
    text = manifest.model_copy(update={"files": list_files(folder)}).model_dump_json(indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The content of MANIFEST.json. UserError where it is missing, damaged or of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{MANIFEST} is missing: vitlab submit did not make this bundle, or a file was removed"
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
    """File -> what is wrong with it, for every file that was altered, removed or added."""
    found, listed = list_files(folder), manifest.files
    problems = {}
    for name, digest in listed.items():
        if name not in found:
            problems[name] = "missing"
        elif found[name] != digest:
            problems[name] = "altered"
    for name in found:
        if name not in listed:
            problems[name] = "not listed in the manifest"
    return problems
