"""One zip out of a folder, the same bytes for the same files, closed with a seal over all of them.

The seal is the SHA-256 of everything before it, kept as the zip's comment. It shows that a byte changed on the way, in a header
or between the files too, where no file's own checksum reaches. It is no signature: whoever changes a file can seal the zip again.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from pathlib import Path

from vitlab.runs import atomic

SEAL = b"vitlab-seal-sha256:"
DIGITS = 64  # of a SHA-256 in hexadecimal
END_RECORD = 22  # bytes of a zip's last record without its comment
STORED = (".png", ".jpg", ".pdf", ".safetensors", ".parquet")  # packing them again gains nothing
BLOCK = 1 << 20


def write_zip(folder: Path, target: Path) -> Path:
    """Pack all files below the folder, in the order of their names and without dates, and seal the zip; gives `target`."""
    with atomic(target) as temporary:
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                info = _member(path.relative_to(folder).as_posix())
                info.file_size = path.stat().st_size
                with path.open("rb") as file, archive.open(info, "w") as packed:
                    while block := file.read(BLOCK):
                        packed.write(block)
            archive.comment = SEAL + b"0" * DIGITS
        with temporary.open("r+b") as file:
            file.seek(0, 2)
            end = file.tell() - DIGITS
            digest = _hash_start(file, end)
            file.seek(end)
            file.write(digest.encode())
    return target


def check_seal(path: Path) -> tuple[str, str]:
    """pass, fail or skipped, and why: whether the bytes of the zip are those that `write_zip` wrote."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - END_RECORD - len(SEAL) - DIGITS))
        tail = file.read()
        end = size - DIGITS
        if re.fullmatch(re.escape(SEAL) + rb"[0-9a-f]{64}", tail[-len(SEAL) - DIGITS :]):
            digest = _hash_start(file, end)
            if digest.encode() == tail[-DIGITS:]:
                return "pass", f"sealed; SHA-256 of the whole file: {hash_file(path)}"
            return "fail", _name_damage(path)
    if tail[-END_RECORD:].startswith(b"PK\x05\x06") and tail[-2:] == b"\0\0":
        return "skipped", "no seal: the zip was packed again by another program; the checksum of each file decides"
    return "fail", "the end of the zip, where the seal stands, was altered"


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_STORED if name.endswith(STORED) else zipfile.ZIP_DEFLATED
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    return info


def _name_damage(path: Path) -> str:
    """In which file's header bytes differ from how they are written; damage within a file is named by the manifest."""
    names = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            wanted = _member(info.filename)
            wanted.flag_bits = info.flag_bits
            wanted.CRC, wanted.file_size, wanted.compress_size = info.CRC, info.file_size, info.compress_size
            file.seek(info.header_offset)
            header = wanted.FileHeader(zip64=False)
            same = info.date_time == wanted.date_time and info.external_attr == wanted.external_attr and not info.comment
            if file.read(len(header)) != header or not same:
                names.append(info.filename)
    where = f"in the header of {', '.join(names[:5])}" if names else "in a file named below, or between the files"
    return f"bytes were altered after the zip was sealed: {where}"


def _hash_start(file, end: int) -> str:
    """SHA-256 of the first `end` bytes of an open file."""
    digest, left = hashlib.sha256(), end
    file.seek(0)
    while left and (block := file.read(min(BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()
