"""A bundle as files: the zip, the manifest with the SHA-256 of every file, and reading them.

The manifest shows that files are those that were packed. It does not show who packed them: anyone
can write a new one for other files."""

from __future__ import annotations

import json
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ValidationError

from vitlab.errors import MissingFileError, UserError
from vitlab.files import atomic, hash_file
from vitlab.notebook import read_cells

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
    """notebooks: the executed ones, in the order of their execution. files: path -> SHA-256."""

    format: Literal[2] = 2
    title: str
    author: str
    made: str = ""
    vitlab: str = ""
    commit: str = ""
    notebooks: list[str] = []
    files: dict[str, str] = {}


def write_zip(folder: Path, target: Path) -> Path:
    """Pack all files, sorted by name and without dates: equal files give an equal zip."""
    with atomic(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            packed = zipfile.ZIP_STORED if path.suffix in COMPRESSED else zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes(), packed)
    return target


@contextmanager
def open_bundle(path: Path) -> Iterator[Path]:
    """The files of a bundle in a temporary folder; an unpacked folder is used as it is.

    MissingFileError without a bundle; UnsafeBundle for a damaged zip, or one over the limits."""
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
    """Write the files of a zip; UnsafeBundle, before that, for one that breaks the limits."""
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)  # links become plain files
    except UnsafeBundle:
        raise
    except DAMAGE as error:
        raise UnsafeBundle(
            f"{path.name} is damaged or incomplete ({error}); ask for the zip again"
        ) from error


def check_zip(path: Path) -> None:
    """UnsafeBundle for a zip that breaks a limit, or has names that lead out of the folder."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > MAX_FILES:
        raise UnsafeBundle(f"{path.name} has {len(members):,} files; at most {MAX_FILES:,}")
    size = max(path.stat().st_size, sum(info.file_size for info in members))
    if size > MAX_BYTES:
        limit = f"at most {MAX_BYTES / 1e9:.1f} GB are allowed"
        raise UnsafeBundle(f"{path.name} would unpack to {size / 1e9:,.1f} GB; {limit}")
    for info in members:
        name, packed, unpacked = info.filename, info.compress_size, info.file_size
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not name.isprintable():
            raise UnsafeBundle(f"the name {name!r} is not a plain relative path")
        if unpacked > SMALL and unpacked > MAX_RATIO * packed:
            raise UnsafeBundle(f"{name} would grow from {packed:,} to {unpacked:,} bytes; too much")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write MANIFEST.json, with the files that are in the folder now."""
    text = manifest.model_copy(update={"files": list_files(folder)}).model_dump_json(indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def list_files(folder: Path) -> dict[str, str]:
    """Path below the folder -> SHA-256, of every file but the manifest itself."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}
    found.pop(MANIFEST, None)
    return found


@dataclass(frozen=True)
class Options:
    """The arguments of `verify_bundle`. images: whether the images of the data set are read."""

    rerun: bool = False
    tolerance: float = 0.02
    rubric: Path | None = None
    data: str = ""
    images: bool = True
    minutes: float = 120


@dataclass
class Bundle:
    """A bundle as a folder. Paths in it are relative; `place` refuses those that lead out of it."""

    folder: Path
    options: Options = field(default_factory=Options)
    _cells: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        """UserError where it is missing, damaged or of another format."""
        path = self.folder / MANIFEST
        if not path.is_file():
            raise UserError(
                f"{MANIFEST} is missing: vitlab submit did not make this bundle, or a file was"
                " removed"
            )
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = " ".join(map(str, first["loc"]))
            raise UserError(
                f"{MANIFEST} is damaged, or from another version of vitlab: {where}: {first['msg']}"
            ) from error

    @cached_property
    def problems(self) -> dict[str, str]:
        """File -> how it differs from the manifest: altered, missing or added."""
        found, listed = list_files(self.folder), self.manifest.files
        problems = {name: "missing" for name in listed if name not in found}
        for name, digest in found.items():
            if name not in listed:
                problems[name] = "not listed in the manifest"
            elif listed[name] != digest:
                problems[name] = "altered"
        return problems

    @cached_property
    def runs(self) -> list[str]:
        """The folders of all runs in the bundle."""
        return [Path(name).parent.as_posix() for name in self._find("runs/*/*/run.json")]

    @cached_property
    def datasets(self) -> dict[str, str]:
        """Run -> its data set."""
        return {
            run: self.read_json(f"{run}/run.json")["parameters"]["dataset"] for run in self.runs
        }

    @cached_property
    def notebooks(self) -> list[str]:
        """All executed notebooks: first those of the manifest, in its order."""
        return list(dict.fromkeys([*self.manifest.notebooks, *self._find("runs/**/*.ipynb")]))

    def find_run(self, notebook: str) -> str:
        """The run that an executed notebook belongs to, "" for none."""
        return next((run for run in self.runs if notebook.startswith(f"{run}/")), "")

    def place(self, name: str) -> Path:
        """The file of this name. UserError where there is none, or it lies outside the bundle."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{name!r} leads out of the bundle")
        if not path.is_file():
            raise UserError(f"{name} is missing")
        return path

    def read_cells(self, name: str) -> list[dict[str, Any]]:
        """The cells of a notebook with their outputs; kept, because several checks read them."""
        if name not in self._cells:
            self._cells[name] = read_cells(self.place(name), executed=True)
        return self._cells[name]

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def read_text(self, name: str) -> str:
        return self.place(name).read_text(encoding="utf-8")

    def read_table(self, name: str) -> pd.DataFrame:
        """A CSV or Parquet file as a table."""
        path = self.place(name)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        texts = {"sample_id": str, "label": str, "group": str}
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=texts)

    def _find(self, pattern: str) -> list[str]:
        found = sorted(self.folder.glob(pattern))
        return [path.relative_to(self.folder).as_posix() for path in found]
