"""Files and folders that a user names: one clear sentence for what is wrong with them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
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
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:  # 2026-99-99 is a ValueError
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


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
