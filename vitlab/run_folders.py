"""Where runs lie: their names, the list of them, run.json, the lock of a run, and its replacement.

A finished run stays until its replacement is finished. The replacement is built in the hidden
folder `.<name>.new` beside it and is complete when its run.json says "done". Then the executed
notebooks move over, the old run is deleted, and the new one gets the name. If the process is killed
in between, the next look-up does the rest. The process that trains holds the lock `.<name>.lock`,
which the system frees when the process ends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import unicodedata
from contextlib import nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vitlab.errors import MissingFileError, UserError
from vitlab.files import read_json
from vitlab.places import reports_dir

# of the 255 that file systems allow: hidden files beside the run need a few more
MAX_NAME_BYTES = 200
MAX_READABLE = 60  # characters of a made name that a person reads; a hash follows
FORBIDDEN = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')  # by Windows and POSIX together
# also of a set made of another, as planted:folder:PATH
PATH_NAME = re.compile(r"((?:[a-z]+:)*(?:folder|csv):)(.+)", re.DOTALL)
SWAP_SECONDS = 10  # to wait for another process that replaces a run
FIELDS = {"parameters": dict, "status": str, "start_s": int | float, "facts": dict}
_held: dict[tuple[int, Path], FileLock] = {}  # (process, run) -> its lock


# names


def check_run_name(name: str, parameter: str = "run_name") -> str:
    """The name, if it is a plain folder name; otherwise UserError.

    >>> check_run_name("first try")
    'first try'
    >>> check_run_name("../other")
    Traceback (most recent call last):
    vitlab.errors.UserError: run_name '../other' contains '/'; write one plain folder name, such as first-try
    """  # noqa: E501
    if not isinstance(name, str):
        problem = f"is of type {type(name).__name__}"
    elif forbidden := FORBIDDEN.search(name):
        problem = f"contains {forbidden[0]!r}"
    elif not name.strip():
        problem = "is empty"
    elif name[0] in ". " or name[-1] in ". ":
        problem = "begins or ends with a dot or a blank"
    elif any(unicodedata.category(letter) == "Cs" for letter in name):
        problem = "is not valid Unicode"
    elif len(name.encode()) > MAX_NAME_BYTES:
        problem = f"is longer than {MAX_NAME_BYTES} bytes"
    else:
        return name
    raise UserError(
        f"{parameter} {name!r} {problem}; write one plain folder name, such as first-try"
    )


def run_name(parameters: dict) -> str:
    """Model, variant, seed and a short hash of all parameters: `hybrid_vit-seed0-1a2b3c4d`."""
    digest = _hash(json.dumps(parameters, sort_keys=True, default=str))
    names = [str(parameters.get("model", "run")), str(parameters.get("variant") or "")]
    readable = "-".join(_readable(name) for name in names if name)
    return f"{readable}-seed{_readable(str(parameters.get('seed', 0)))}-{digest}"


def canonical_dataset(dataset: str) -> str:
    """One spelling for one data set: Unicode in its composed form (NFC), and the absolute path for
    folder:PATH and csv:PATH, without following symbolic links.

    >>> canonical_dataset("planted:folder:/data/./cats/")
    'planted:folder:/data/cats'
    """
    dataset = unicodedata.normalize("NFC", str(dataset))
    found = PATH_NAME.fullmatch(dataset)
    return f"{found[1]}{os.path.abspath(Path(found[2]).expanduser())}" if found else dataset


def dataset_folder(dataset: str) -> str:
    """The folder of a data set's runs: readable name and hash, `folder_data_cats-1a2b3c4d`."""
    dataset = canonical_dataset(dataset)
    return f"{_readable(dataset)}-{_hash(dataset)}"


def runs_folder(dataset: str) -> Path:
    """The folder that holds the runs of a data set, whether it is there or not."""
    return reports_dir() / "runs" / dataset_folder(dataset)


def run_path(*, name: str = "", **parameters) -> Path:
    """The folder of the run of these parameters; UserError for a name that is no folder name."""
    if "dataset" not in parameters:
        raise UserError("a run needs at least the parameter dataset=")
    return runs_folder(parameters["dataset"]) / (
        check_run_name(name) if name else run_name(parameters)
    )


def _readable(text: str) -> str:
    """Portable characters; of a long text more of its end, where a path names the data."""
    text = re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
    if len(text) > MAX_READABLE:
        text = f"{text[:20]}_{text[21 - MAX_READABLE :]}"
    return text.strip("_.") or "other"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


# look-ups


def list_runs(dataset: str = "") -> list[Path]:
    """The run folders of a data set (default: of all), by name: those with a run.json."""
    runs = reports_dir() / "runs"
    folders = [runs_folder(dataset)] if dataset else _list_folders(runs)
    found = []
    for folder in folders:
        hidden = [path.name[1:-4] for path in folder.glob(".*.new")]
        names = {path.name for path in _list_folders(folder)} | set(hidden)
        for name in sorted(names):
            recover(folder / name)
            if os.path.lexists(folder / name / "run.json"):
                found.append(folder / name)
    return found


def _list_folders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden."""
    with suppress(FileNotFoundError, NotADirectoryError):
        shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted(path for path in shown if path.is_dir())
    return []


def read_info(path: Path) -> dict:
    """The content of run.json: parameters and facts (dicts), status (text), start_s (number) and
    more. MissingFileError where there is none; UserError for one that is damaged.
    """
    recover(path)
    return _load_info(path)


def read_status(path: Path) -> str:
    """running, done or failed; empty for a folder without a valid run.json."""
    try:
        return _load_info(path)["status"]
    except UserError:
        return ""


def _load_info(path: Path) -> dict:
    file = Path(path) / "run.json"
    if not os.path.lexists(file):
        raise MissingFileError(f"{path} is not a run directory: it holds no run.json")
    info = read_json(file)
    wrong = [name for name, kind in FIELDS.items() if not isinstance(info.get(name), kind)]
    files = info.get("files", [])
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        wrong.append("files")
    if wrong:
        problem = f"it has no valid {', '.join(wrong)}"
        raise UserError(f"{file} is damaged ({problem}); remove it, or make it again")
    return info


# locks


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


def hold(path: Path) -> None:
    """Lock a run until `let_go` or the end of this process; RunBusy if another one has it."""
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


def _describe_holder(path: Path) -> str:
    for folder in (building_folder(path), path):
        with suppress(UserError):
            info = _load_info(folder)
            if info["status"] == "running" and "process" in info:
                return f"process {info['process']}"
    return "another process"


def _new_lock(path: Path, timeout: float = 0) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout, thread_local=False)


# replacement


def building_folder(path: Path) -> Path:
    """Where the replacement of a finished run is built."""
    return path.with_name(f".{path.name}.new")


def replace_run(path: Path) -> None:
    """Replace a run by its complete replacement. Each step can be repeated after a kill."""
    new = building_folder(path)
    shutil.rmtree(new / "checkpoints", ignore_errors=True)
    _move_notebooks(path / "notebooks", new / "notebooks")
    if path.is_dir():
        shutil.rmtree(path)
    os.rename(new, path)


def recover(path: Path) -> None:
    """Finish a replacement that was interrupted; otherwise do nothing."""
    path = Path(path)
    new = building_folder(path)
    if read_status(new) != "done":
        return
    ours = (os.getpid(), path.absolute()) in _held
    lock = nullcontext() if ours else _new_lock(path, SWAP_SECONDS)
    with suppress(Timeout, OSError, NotImplementedError), lock:
        if read_status(new) == "done":
            replace_run(path)


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
