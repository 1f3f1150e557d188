"""A stranger's zip, opened so that nothing of it can do harm: every name and size is looked at before a byte is written.

Nothing is executed, unpickled or followed: files come out as plain files below one folder that did not exist before. What zips
are known to be misused for (`../` and absolute names, links, names twice, bombs of one file or of overlapping ones) is refused.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vitlab.errors import MissingFileError, UserError

BLOCK = 1 << 20  # bytes read at a time
LOCAL_HEADER = 30  # bytes of a member's header before its name
END_RECORD, LOCATOR, ENTRY = 22, 20, 46  # bytes of a zip's last record, of what precedes it in a zip of over 2 GB, of an entry
BAD_NAME = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')  # control characters, and what Windows reads as something else
DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # names that are devices on Windows, with any ending
OURS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # a full disk is no fault of the bundle
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


class UnsafeBundle(UserError):
    """The file was not opened, and nothing of it was written."""


@dataclass(frozen=True)
class Limits:
    """files: how many. total: bytes of all when unpacked. ratio: unpacked bytes for each packed one, of a file of 1 MB and more.

    Deflate packs at most 1,032 to one; a page of a report or a notebook is packed about 3 to one.
    """

    files: int = 5_000
    total: int = 2**31 - 1  # more is written as zip64
    ratio: float = 100.0
    name: int = 240


@dataclass(frozen=True)
class Opened:
    """A bundle as a folder. damaged: file -> why it could not be read. zipped: the zip that it was, None for a folder."""

    folder: Path
    damaged: dict[str, str] = field(default_factory=dict)
    zipped: Path | None = None


@contextmanager
def open_bundle(path: Path | str, limits: Limits = Limits()) -> Iterator[Opened]:
    """The files of a bundle in a folder that is removed afterwards; a folder (some course systems unpack) is used as it is.

    FileNotFoundError where there is none. UnsafeBundle where it is no zip, cut off, or would do what no bundle does. A file whose
    bytes do not fit their checksum is left out and named in `damaged`; the rest is there.
    """
    path = Path(path)
    if path.is_dir():
        check_folder(path, limits)
        yield Opened(path)
        return
    if not path.is_file():
        raise MissingFileError(f"there is no bundle {path}; vitlab submit writes one")
    with tempfile.TemporaryDirectory(prefix="vitlab-verify-") as folder:
        yield Opened(Path(folder), unpack(path, Path(folder), limits), path)


def unpack(path: Path, folder: Path, limits: Limits = Limits()) -> dict[str, str]:
    """Write the files of a zip below an empty folder; the damaged ones, which are not written, with what is wrong with each."""
    check_directory(path, limits)
    try:
        with zipfile.ZipFile(path) as archive:
            members = check_members(archive.infolist(), limits)
            return {info.filename: reason for info in members if (reason := _write_member(archive, info, folder))}
    except UnsafeBundle:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise UnsafeBundle(f"{path.name} is not a whole zip file ({error}); it may have been cut off on its way") from error


def check_directory(path: Path, limits: Limits) -> None:
    """UnsafeBundle where the zip, or the list of files at its end, which is read as a whole, is larger than a bundle's can be."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - END_RECORD - 0xFFFF - LOCATOR))
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if size > limits.total:
        raise UnsafeBundle(f"{path.name} has {size / 1e9:,.1f} GB; at most {limits.total / 1e9:.1f} GB are opened")
    if place < 0 or len(tail) - place < END_RECORD:
        raise UnsafeBundle(f"{path.name} is not a whole zip file: its end is missing; it may have been cut off on its way")
    count, length = (
        int.from_bytes(tail[place + 10 : place + 12], "little"),
        int.from_bytes(tail[place + 12 : place + 16], "little"),
    )
    if tail[max(0, place - LOCATOR) : place].startswith(b"PK\x06\x07"):
        raise UnsafeBundle(f"{path.name} is a zip64, for more than 65,535 files or 2 GB; no bundle is that large")
    if length > limits.files * (limits.name + ENTRY):
        raise UnsafeBundle(f"{path.name} lists {count:,} files or more in {length:,} bytes; at most {limits.files:,} are opened")


def check_members(members: list[zipfile.ZipInfo], limits: Limits) -> list[zipfile.ZipInfo]:
    """The files among the members of a zip, or UnsafeBundle with the first name that should not be there."""
    if len(members) > limits.files:
        raise UnsafeBundle(f"the zip holds {len(members):,} entries; at most {limits.files:,} are opened")
    total = sum(info.file_size for info in members)
    if total > limits.total:
        raise UnsafeBundle(f"the zip would unpack to {total / 1e9:,.1f} GB; at most {limits.total / 1e9:.1f} GB are written")
    seen: dict[str, str] = {}
    for info in members:
        check_name(info.filename, limits)
        # the name as it stands in the zip: Python cuts one at its first NUL
        if info.orig_filename != info.filename:
            raise UnsafeBundle(f"the name {info.orig_filename!r} is written in two ways")
        _remember(info.filename, seen)
        _check_kind(info)
        if info.file_size > 10**6 and info.file_size > limits.ratio * max(1, info.compress_size):
            raise UnsafeBundle(
                f"{info.filename} would grow {info.file_size / max(1, info.compress_size):,.0f} times, from "
                f"{info.compress_size:,} to {info.file_size:,} bytes; at most {limits.ratio:g} times is believed"
            )
    _check_overlap(members)
    return [info for info in members if not info.is_dir()]


def check_name(name: str, limits: Limits = Limits()) -> None:
    """UnsafeBundle unless the name is a plain relative path that means the same on every system."""
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or name.startswith("\\"):
        raise UnsafeBundle(f"the name {name!r} is absolute; a bundle's files lie below its own folder")
    if ".." in parts:
        raise UnsafeBundle(f"the name {name!r} leads out of the folder")
    if BAD_NAME.search(name) or "" in parts or "." in parts or not name.isprintable():
        raise UnsafeBundle(f"the name {name!r} has parts or characters that no file of a bundle has")
    if len(name.encode()) > limits.name or any(part.endswith((" ", ".")) or DEVICE.fullmatch(part) for part in parts):
        raise UnsafeBundle(f"the name {name!r} is too long, a device, or ends in a blank or dot: not a file on every system")


def check_folder(folder: Path, limits: Limits = Limits()) -> None:
    """UnsafeBundle where an unpacked bundle holds links, devices, or more than the limits allow."""
    count = total = 0
    for where, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(where, name)
            mode = path.lstat().st_mode
            inside = path.relative_to(folder).as_posix()
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UnsafeBundle(f"{inside} is a link or no plain file")
            if stat.S_ISREG(mode):
                check_name(inside, limits)
                count, total = count + 1, total + path.lstat().st_size
            if count > limits.files or total > limits.total:
                raise UnsafeBundle(f"the folder holds more than {limits.files:,} files or {limits.total / 1e9:.1f} GB")


def _remember(name: str, seen: dict[str, str]) -> None:
    """No name twice, on systems that do not tell a from A either, and none both a file and a folder."""
    key = name.casefold()
    if key.rstrip("/") in seen:
        raise UnsafeBundle(f"the name {name!r} stands twice in the zip (the other is {seen[key.rstrip('/')]!r})")
    for end in [place for place, letter in enumerate(key.rstrip("/")) if letter == "/"]:
        if not seen.get(key[:end], "/").endswith("/"):
            raise UnsafeBundle(f"{seen[key[:end]]!r} is a file and, by {name!r}, a folder")
    if any(other.startswith(key + "/") for other in seen):
        raise UnsafeBundle(f"{name!r} is a file and a folder")
    seen[key.rstrip("/")] = name


def _check_kind(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeBundle(
            f"{info.filename} is a {'symbolic link' if kind == stat.S_IFLNK else 'special file'}, not a plain file"
        )
    if info.flag_bits & 0x41:
        raise UnsafeBundle(f"{info.filename} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsafeBundle(f"{info.filename} is packed by method {info.compress_type}; only stored and deflate are opened")
    if info.is_dir() and info.file_size:
        raise UnsafeBundle(f"{info.filename} is a folder with content")


def _check_overlap(members: list[zipfile.ZipInfo]) -> None:
    """A bomb of overlapping members has many that share the same packed bytes."""
    end, before = 0, ""
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise UnsafeBundle(f"{info.filename} lies over {before or 'what precedes it'} in the zip")
        end, before = info.header_offset + LOCAL_HEADER + info.compress_size, info.filename


def _write_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> str:
    """Write one file, never more bytes than the zip says; why it is damaged, or "" when it is there."""
    target = folder / info.filename
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as packed, target.open("xb") as file:
            written = 0
            while block := packed.read(BLOCK):
                written += len(block)
                if written > info.file_size:
                    raise zipfile.BadZipFile("more bytes than the zip says")
                file.write(block)
            if written != info.file_size:
                raise zipfile.BadZipFile("fewer bytes than the zip says")
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno in OURS:
            raise
        with suppress(OSError):
            target.unlink(missing_ok=True)
        return str(error) or type(error).__name__
    return ""
