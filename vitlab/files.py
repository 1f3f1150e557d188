"""Files: atomic writing, hashes, a quick check that they are whole, and one clear sentence for what
is wrong with a file or folder that a user names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from vitlab.errors import MissingFileError, UserError

# errors of a place or a machine, not of the program, and what may help
MACHINE = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "choose a place that you may read and write (VITLAB_REPORTS)",
    ),
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "free some space, or choose another place (VITLAB_REPORTS)"
    ),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "end other programs, or raise `ulimit -n`"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "name another place"),
}


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


def read_json(path: Path) -> dict:
    """The object in a JSON file; MissingFileError without one, UserError for a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UserError(f"it holds {type(content).__name__}, not an object")
        return content
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, or make it again") from error


def find_damage(folder: Path, files: Iterable[str]) -> list[str]:
    """What is wrong with these files of a run, such as "history.csv is missing".

    It takes milliseconds: only the structure is read (JSON, the header of a safetensors file, the
    footer of a Parquet file), and the size compared with that in run.json."""
    try:
        sizes = dict(read_json(Path(folder) / "run.json").get("sizes", {}))
    except (UserError, TypeError, ValueError):
        sizes = {}
    problems = {file: _find_problem(Path(folder) / file, sizes.get(file, 1)) for file in files}
    return [f"{file} {problem}" for file, problem in problems.items() if problem]


def _find_problem(path: Path, size: int) -> str:
    # imported here, because an exported app has neither
    import pyarrow.parquet as pq
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return "is missing"
    try:
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                pass
        found = path.stat().st_size
        if found < size:
            return f"is cut off ({found} of {size} bytes)" if found else "is empty"
    # pyarrow's errors and UserError are ValueErrors
    except (OSError, ValueError, SafetensorError):
        return "is damaged"
    return ""


def read_text(path: Path | str, what: str = "file") -> str:
    """The text of a file; UserError if it does not exist, cannot be read or is not UTF-8."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(f"there is no {what} {path}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name a {what}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text in UTF-8, so it is no {what}") from error
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read ({error.strerror})") from error


def read_yaml(path: Path | str, what: str, loader: type = yaml.SafeLoader) -> Any:
    """The content of a YAML file; UserError, in one line, if it cannot be read or is not YAML."""
    text = read_text(path, what)
    try:
        return yaml.load(text, Loader=loader)
    # besides YAMLError: 2026-99-99 is a ValueError, a damaged tag raises the others
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def check_writable(folder: Path) -> None:
    """UserError if results cannot be written to a folder; nothing is created."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"results cannot be written to {folder} ({error.strerror or error}); make it a folder"
            " that you may write to, or choose another one (VITLAB_REPORTS, --output)"
        ) from error


def describe_machine(error: OSError) -> str:
    """An error of MACHINE as one sentence: what, where, and what may help."""
    place = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{error.strerror}{place and f' ({place})'}: {MACHINE[error.errno]}"


@contextmanager
def fill_folder(folder: Path | str, *, parents: bool = False) -> Iterator[tuple[Path, Path]]:
    """The full path of a new or empty folder, and a temporary one beside it whose content is moved
    there if the block succeeds. A failure leaves nothing behind.

    UserError for a folder that is not empty, a file, or a place that cannot be written to. parents:
    make the folders above it, too."""
    folder = Path(os.path.abspath(Path(folder).expanduser()))  # so that `.` and `..` have a name
    if folder.is_dir():
        held = sorted(path.name for path in folder.iterdir())
        if held:
            names = ", ".join(held[:4]) + (", ..." if len(held) > 4 else "")
            raise UserError(
                f"{folder} is not empty, it holds {names}; nothing is overwritten: give the name of"
                " a new folder"
            )
    elif folder.exists():
        raise UserError(f"{folder} is a file; give the name of a new folder")
    elif not folder.parent.is_dir() and not parents:
        raise UserError(
            f"{folder.parent} does not exist; make it first, or give another place for the new"
            " folder"
        )
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except OSError as error:
        raise UserError(
            f"nothing can be written in {folder.parent} ({error.strerror}); choose another place"
        ) from error
    try:
        yield folder, work
        if folder.is_dir():
            # not the folder itself: it may be somebody's working folder
            for path in work.iterdir():
                path.rename(folder / path.name)
        else:
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
