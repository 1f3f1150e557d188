"""The folders of runs on disk: listing, reading run.json, locking, and replacing a run by another.

A finished run stays until its replacement is finished. The replacement is built in the hidden
folder `.<name>.new` beside it and is complete when its run.json says "done". Then three renames put
it in place: the executed notebooks move over, the old run becomes `.<name>.old`, and the new one
gets the name. If the process is killed in between, the next look-up finishes the renames. The
process that trains holds the lock `.<name>.lock`, which the system frees when the process ends."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vitlab.errors import MissingFileError, UserError

SWAP_SECONDS = 10  # to wait for another process that does the three renames
_held: dict[tuple[int, Path], FileLock] = {}  # (process, run) -> its lock


class RunBusy(UserError):
    """Another process is training the run of this path."""

    def __init__(self, path: Path, holder: str):
        self.path = path
        super().__init__(
            f"{holder} is training run {path.name} in {path.parent}; wait until it ends, end it (or"
            " restart its kernel), or choose another run_name"
        )

    def __reduce__(self):
        return RunBusy, (self.path, "another process")


def building_folder(path: Path) -> Path:
    """Where the replacement of a finished run is built."""
    return path.with_name(f".{path.name}.new")


def retired_folder(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def list_runs(folder: Path) -> list[Path]:
    """The run folders of a data set, by name: those with a run.json, including one whose
    replacement was interrupted.
    """
    names = set()
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") and name.endswith(".new"):
                name = name[1:-4]
            if not name.startswith(".") and entry.is_dir():
                names.add(name)
    paths = [Path(folder, name) for name in sorted(names)]
    for path in paths:
        recover(path)
    return [path for path in paths if os.path.lexists(path / "run.json")]


def list_all_runs(runs: Path) -> list[Path]:
    """The run folders of all data sets below reports/runs."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [
            path
            for folder in sorted(runs.iterdir())
            if not folder.name.startswith(".")
            for path in list_runs(folder)
        ]
    return []


def read_info(path: Path) -> dict:
    """The content of run.json: parameters and facts (dicts), status (text), start_s (number) and
    more. MissingFileError where there is none; UserError for one that is damaged.
    """
    recover(path)
    file = Path(path) / "run.json"
    if not os.path.lexists(file):
        raise MissingFileError(f"{path} is not a run directory: it holds no run.json")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        problem = _find_wrong_shape(info)
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise UserError(f"{file} is damaged ({problem}); remove the folder, or run it again")
    return info


def _find_wrong_shape(info) -> str:
    if not isinstance(info, dict):
        return f"it holds {type(info).__name__}, not an object"
    wanted = {"parameters": dict, "status": str, "start_s": int | float, "facts": dict}
    wrong = [name for name, kind in wanted.items() if not isinstance(info.get(name), kind)]
    if "files" in info and not (
        isinstance(info["files"], list) and all(isinstance(file, str) for file in info["files"])
    ):
        wrong.append("files")
    return f"it has no valid {', '.join(wrong)}" if wrong else ""


def hold(path: Path) -> None:
    """Lock a run for this process, until `let_go` or its end. RunBusy while another process has
    the lock.
    """
    key = os.getpid(), path.absolute()
    if key in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _new_lock(path)
    try:
        lock.acquire()
    except Timeout:
        raise RunBusy(path, _describe_holder(path)) from None
    except (OSError, NotImplementedError):
        return  # a file system without locks
    _held[key] = lock


def is_held(path: Path) -> bool:
    """Whether another process holds the lock of a run."""
    try:
        with _new_lock(path):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def let_go(path: Path) -> None:
    lock = _held.pop((os.getpid(), path.absolute()), None)
    if lock is not None:
        lock.release()


def _new_lock(path: Path, timeout: float = 0) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout, thread_local=False)


def _describe_holder(path: Path) -> str:
    for folder in (building_folder(path), path):
        with suppress(OSError, ValueError, LookupError, TypeError):
            info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if info["status"] == "running":
                return f"process {info['process']}"
    return "another process"


def replace_run(path: Path) -> None:
    """Replace a run by its complete replacement. Each step can be repeated, so a kill in between
    loses nothing.
    """
    new, old = building_folder(path), retired_folder(path)
    shutil.rmtree(new / "checkpoints", ignore_errors=True)
    if path.is_dir():
        _move_notebooks(path / "notebooks", new / "notebooks")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    os.rename(new, path)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Finish a replacement that was interrupted between its renames; otherwise do nothing."""
    path = Path(path)
    new, old = building_folder(path), retired_folder(path)
    if not (_is_complete(new) or old.is_dir()):
        return
    ours = (os.getpid(), path.absolute()) in _held
    lock = nullcontext() if ours else _new_lock(path, SWAP_SECONDS)
    with suppress(Timeout, OSError, NotImplementedError), lock:
        if _is_complete(new):
            replace_run(path)
        elif old.is_dir() and not path.exists():
            os.rename(old, path)
        else:
            shutil.rmtree(old, ignore_errors=True)


def _is_complete(new: Path) -> bool:
    try:
        return json.loads((new / "run.json").read_text(encoding="utf-8"))["status"] == "done"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _move_notebooks(here: Path, there: Path) -> None:
    """Move the folder itself: a batch that executes the notebook of this run watches it."""
    if not here.is_dir():
        return
    if there.is_dir():  # moved before a kill, and made anew since
        for file in there.iterdir():
            if not (here / file.name).exists():
                os.replace(file, here / file.name)
        shutil.rmtree(there)
    os.rename(here, there)
