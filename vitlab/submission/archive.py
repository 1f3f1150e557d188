"""The zip of a bundle: written reproducibly, and opened so that it can do no harm.

Every name and size is checked before a byte is written. Files are extracted below one new folder,
and nothing is executed."""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitlab.errors import MissingFileError, UserError
from vitlab.runs import atomic

MAX_FILES = 5_000
MAX_BYTES = 2 * 10**9  # of all files, packed or not
# unpacked bytes for each packed byte, in files of 1 MB and more; pages and notebooks have about 3
MAX_RATIO = 100.0
MAX_NAME = 240  # bytes
# absolute, `..`, and what Windows reads as something else
BAD_NAME = re.compile(r'(^|/)\.{0,2}(/|$)|[\\:<>"|?*]|[ .](/|$)')
# compressing them again gains nothing
COMPRESSED = (".png", ".jpg", ".pdf", ".safetensors", ".parquet")
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)
# one name is a file and a folder
DAMAGE += (FileExistsError, NotADirectoryError, IsADirectoryError)


class UnsafeBundle(UserError):
    """The bundle was not opened."""


def write_zip(folder: Path, target: Path) -> Path:
    """Pack all files below the folder, sorted by name and without dates; gives `target`. Equal
    files give an equal zip.
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
    """The files of a bundle in a folder that is removed afterwards; a folder (some course systems
    unpack) is used as it is.

    MissingFileError where there is none. UnsafeBundle for a file that is not a zip, is damaged, or
    breaks the limits."""
    if path.is_dir():
        link = next(
            (
                one
                for one in path.rglob("*")
                if one.is_symlink() or not (one.is_file() or one.is_dir())
            ),
            None,
        )
        if link:
            raise UnsafeBundle(
                f"{link.relative_to(path)} is a link or a special file; a bundle holds plain files"
                " only"
            )
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
    check_size(path)
    name = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive.infolist())
            for info in archive.infolist():
                name = info.filename
                archive.extract(info, folder)
    except UnsafeBundle:
        raise
    except DAMAGE as error:
        raise UnsafeBundle(
            f"{name} is damaged or incomplete ({error}); ask for the zip again"
        ) from error


def check_size(path: Path) -> None:
    """UnsafeBundle for a zip that is too large, or has too many members: zipfile takes about 600
    bytes of memory for each.
    """
    size, signature = path.stat().st_size, b"PK\x01\x02"  # of each member in the directory of a zip
    if size > MAX_BYTES:
        raise UnsafeBundle(
            f"{path.name} has {size / 1e9:,.1f} GB; at most {MAX_BYTES / 1e9:.1f} GB are opened"
        )
    with path.open("rb") as file:
        count = sum(block.count(signature) for block in iter(lambda: file.read(1 << 20), b""))
    if count > MAX_FILES:
        raise UnsafeBundle(f"{path.name} holds over {MAX_FILES:,} files; no bundle does")


def check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """UnsafeBundle for the first member that no bundle has. zipfile never writes more bytes than a
    member states.
    """
    total = sum(info.file_size for info in members)
    if total > MAX_BYTES:
        raise UnsafeBundle(
            f"{path.name} would unpack to {total / 1e9:,.1f} GB; at most {MAX_BYTES / 1e9:.1f} GB"
            " are written"
        )
    if len({info.filename.casefold().rstrip("/") for info in members}) < len(members):
        raise UnsafeBundle(f"{path.name} holds two files of the same name")
    for info in members:
        name = info.filename
        if (
            BAD_NAME.search(name.removesuffix("/"))
            or not name.isprintable()
            or len(name.encode()) > MAX_NAME
        ):
            raise UnsafeBundle(f"the name {name!r} is not a plain relative path")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeBundle(
                f"{name} is a link or a special file; a bundle holds plain files only"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsafeBundle(
                f"{name} is compressed by method {info.compress_type}; only stored and deflated"
                " files are opened"
            )
        if info.file_size > 10**6 and info.file_size > MAX_RATIO * info.compress_size:
            raise UnsafeBundle(
                f"{name} would grow from {info.compress_size:,} to {info.file_size:,} bytes; too"
                " much"
            )


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
