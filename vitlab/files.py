"""Atomic writing of files, their hashes, and a quick check that they are still whole."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` if the block succeeds, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict | list) -> None:
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8", newline="\n"
        )


def hash_file(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(
    paths: Iterable[Path], folder: Path, hash_one: Callable[[Path], str] = hash_file
) -> str:
    """SHA-256 over the paths below a folder and their contents, in any order."""
    found = {path.relative_to(folder).as_posix(): hash_one(path) for path in paths}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def hash_package() -> str:
    """A short hash of the Python files of this vitlab."""
    folder = Path(__file__).parent
    return hash_files(folder.rglob("*.py"), folder)[:8]


def find_damage(folder: Path, files: Iterable[str]) -> list[str]:
    """What is wrong with these files of a folder, such as "history.csv is missing".

    It takes milliseconds: only the structure is read (JSON, the header of a safetensors file, the
    footer of a Parquet file), and the size compared with that in run.json."""
    sizes = _read_sizes(Path(folder) / "run.json")
    problems = {file: _find_problem(Path(folder) / file, sizes.get(file, 1)) for file in files}
    return [f"{file} {problem}" for file, problem in problems.items() if problem]


def _read_sizes(path: Path) -> dict[str, int]:
    with suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
        sizes = json.loads(path.read_text(encoding="utf-8"))["sizes"]
        return {name: int(size) for name, size in dict(sizes).items()}
    return {}


def _find_problem(path: Path, size: int) -> str:
    if not path.is_file():
        return "is missing"
    try:
        if path.suffix == ".json":
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                return "is damaged"
        elif path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                pass
        found = path.stat().st_size
        if found < size:
            return f"is cut off ({found} of {size} bytes)" if found else "is empty"
    # pyarrow's errors are ValueErrors
    except (OSError, ValueError, RecursionError, SafetensorError):
        return "is damaged"
    return ""
