"""The run directory: whoever has the folder has the result.

reports/runs/<data set>-<hash>/<name>/ holds run.json (parameters, versions, commit, status, facts)
and the tables and weights that the notebooks put there. Every file is written under a temporary
name and renamed, so it is whole. A finished run stays until its replacement is finished (see
run_folders.py)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from vitlab.errors import MissingFileError, UserError
from vitlab.files import atomic, find_damage, read_json, write_json
from vitlab.markup import html_facts
from vitlab.places import project_root
from vitlab.run_folders import (
    building_folder,
    canonical_dataset,
    hold,
    let_go,
    list_runs,
    read_info,
    read_status,
    recover,
    replace_run,
    run_path,
)

# The files that a notebook must leave in its run. A run is a result only while the files of 03 are
# whole.
PROMISED = {
    "03_finetune": (
        "history.csv",
        "splits.csv",
        "predictions.parquet",
        "model.safetensors",
        "model.json",
        "data_card.md",
    ),
    "04_evaluate": ("metrics.json",),
}
DRAW = {"seed", "split_by", "folds", "fold"}
NOT_OPTIONS = DRAW | {"dataset", "model", "variant", "teacher", "tracker", "checkpoint_minutes"}
PACKAGES = ("vitlab", "torch", "timm", "accelerate", "scikit-learn", "pandas", "captum")


def read_batch(path: Path) -> dict:
    """The content of a batch.json. UserError for a damaged one."""
    content = read_json(path)
    if not isinstance(content.get("tasks"), list):
        raise UserError(f"{path} is damaged (it holds no tasks); remove it, or make it again")
    return content


class Run:
    """One run directory. Make it with `Run.create`, read it back with `Run(path)`.

    >>> import vitlab
    >>> run = vitlab.Run.create(dataset="digits", model="vit_scratch", seed=0)
    >>> run.write_json("metrics.json", {"accuracy": 0.9})
    >>> run.finish(["metrics.json"])
    >>> vitlab.Run(run.path).status
    'done'
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.info: dict = read_info(self.path)

    @classmethod
    def create(cls, *, name: str = "", **parameters) -> Run:
        """Start a run with these parameters, or continue an interrupted one.

        A finished run of the same name stays until this one is finished. An unfinished one is
        replaced; its executed notebooks stay. If it had the same parameters and versions, so do its
        checkpoints, and training continues from them. UserError for an invalid name, for a folder
        that is not a run of this data set, and while another process trains this run."""
        path = run_path(name=name, **parameters)
        recover(path)
        _check_replaceable(path, parameters["dataset"])
        info = {
            "dataset": canonical_dataset(parameters["dataset"]),
            "parameters": parameters,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "start_s": time.time(),
            "versions": list_versions(),
            "commit": _commit(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            "process": f"{os.getpid()} on {platform.node()}",
            "facts": {},
        }
        hold(path)
        if read_status(path) == "done":
            folder = building_folder(path)
        else:
            folder = path
            shutil.rmtree(building_folder(path), ignore_errors=True)  # its finished run is gone
        kept = {"notebooks"}
        if _was_broken_off(folder, info):
            kept.add("checkpoints")
        _empty(folder, kept)
        write_json(folder / "run.json", info)
        return cls(folder)

    @classmethod
    def join(cls, *, name: str = "", **parameters) -> Run:
        """The run that another process of the same training started with `create`."""
        path = run_path(name=name, **parameters)
        new = building_folder(path)
        return cls(new if (new / "run.json").is_file() else path)

    @property
    def place(self) -> Path:
        """The folder of the finished run. While an older run is there, `path` is a hidden folder
        beside it.
        """
        name = self.path.name
        if name.startswith(".") and name.endswith(".new"):
            return self.path.with_name(name[1:-4])
        return self.path

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def dataset(self) -> str:
        """The full name of the data set, see `canonical_dataset`."""
        named = self.info.get("dataset") or canonical_dataset(self.parameters.get("dataset", ""))
        return str(named)

    @property
    def problem(self) -> str:
        """Why this run is not a result, such as "history.csv is missing"; empty if it is done and
        its files are whole.
        """
        if self.status != "done":
            return f"its status is {self.status}"
        return "; ".join(find_damage(self.path, self.info.get("files", PROMISED["03_finetune"])))

    @property
    def options(self) -> dict:
        """The parameters that were given, except data set, model, variant and draw: what two
        comparable runs of a model share.
        """
        return {
            key: value
            for key, value in self.parameters.items()
            if key not in NOT_OPTIONS and value not in (None, "")
        }

    @property
    def parameters(self) -> dict:
        return self.info["parameters"]

    @property
    def draw(self) -> str:
        """What runs of different models share: the seed, and how the images were split unless image
        by image.
        """
        parts = [str(self.seed)]
        if self.parameters.get("folds"):
            parts.append(f"fold {self.fold} of {self.parameters['folds']}")
        if self.parameters.get("split_by", "image") not in ("", "image"):
            parts.append(f"by {self.parameters['split_by']}")
        return ", ".join(parts)

    @property
    def protocol(self) -> str:
        """How the images were split, such as "80/20, by image" or "5 folds, by module"."""
        folds = self.parameters.get("folds")
        parts = f"{folds} folds" if folds else "80/20"
        return f"{parts}, by {self.parameters.get('split_by') or 'image'}"

    @property
    def seed(self) -> int:
        return self.parameters.get("seed", 0)

    @property
    def fold(self) -> int:
        return self.parameters.get("fold") or 0

    @property
    def model(self) -> str:
        return str(self.parameters.get("model", ""))

    @property
    def variant(self) -> str:
        """A name for the way this model was trained, where a batch compares several; else empty."""
        return str(self.parameters.get("variant") or "")

    @property
    def title(self) -> str:
        """The model, and the variant where there is one."""
        return ", ".join(filter(None, (self.model, self.variant)))

    @property
    def status(self) -> str:
        return self.info["status"]

    @property
    def facts(self) -> dict:
        return self.info["facts"]

    def record(self, **facts) -> None:
        """Add facts (seconds of training, number of parameters, device) to run.json."""
        self.info["facts"].update(facts)
        write_json(self.path / "run.json", self.info)

    def finish(self, files: Iterable[str] = ()) -> None:
        """Mark the run as done and move it to its final place; its checkpoints are removed.

        It counts as a result while these files are whole; their sizes are recorded. UserError if
        one is missing or damaged; the run is then not done."""
        files = list(files)
        problem = "; ".join(find_damage(self.path, files))
        if problem:
            raise UserError(
                f"run {self.name} is not complete: {problem}. Run notebook 03 from first to last"
                " cell"
            )
        self.info.update(
            status="done",
            files=files,
            sizes={file: (self.path / file).stat().st_size for file in files},
            wall_s=round(time.time() - self.info["start_s"], 1),
            peak_memory_mb=peak_memory_mb(),
        )
        write_json(self.path / "run.json", self.info)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        place = self.place
        if place != self.path:
            replace_run(place)
            self.path = place
        let_go(place)

    def fail(self, error: BaseException) -> None:
        self.info.update(status="failed", error=f"{type(error).__name__}: {error}")
        write_json(self.path / "run.json", self.info)
        let_go(self.place)

    def write_table(self, file: str, table: pd.DataFrame) -> None:
        """Write a table as CSV or Parquet, by the ending of `file`."""
        with atomic(self.path / file) as temporary:
            if file.endswith(".parquet"):
                table.to_parquet(temporary, index=False)
            else:
                table.to_csv(temporary, index=False)

    def read_table(self, file: str) -> pd.DataFrame:
        path = self.path / file
        if not path.is_file():
            raise MissingFileError(
                f"run {self.name} (status {self.status}) holds no {file}; it has"
                f" {', '.join(self.files())}"
            )
        if file.endswith(".parquet"):
            return pd.read_parquet(path)
        return pd.read_csv(path, keep_default_na=False, na_values=[""])

    def write_json(self, file: str, content: dict) -> None:
        write_json(self.path / file, content)

    def write_text(self, file: str, content: str) -> None:
        with atomic(self.path / file) as temporary:
            temporary.write_text(content, encoding="utf-8")

    def read_json(self, file: str) -> dict:
        return read_json(self.path / file)

    def files(self) -> list[str]:
        return sorted(item.name for item in self.path.iterdir() if not item.name.startswith("."))

    def _repr_html_(self) -> str:
        facts = {
            "folder": self.path,
            "status": self.status,
            "started": self.info.get("started"),
            "time": f"{self.info['wall_s']:,} s" if "wall_s" in self.info else "",
            **self.parameters,
        }
        return html_facts(f"Run {self.name}", facts)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"Run({self.name}, {self.status}, {given})"


def find_runs(dataset: str, status: str = "done", **parameters) -> list[Run]:
    """The runs of a data set with this status and these parameter values, oldest first.

    A finished run counts only while its files are whole. A warning names each run that is left out
    for missing files or a damaged run.json."""
    runs, problems = read_runs(dataset, status, parameters)
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return runs


def read_runs(dataset: str, status: str, parameters: dict) -> tuple[list[Run], list[str]]:
    """`find_runs`, with sentences about the runs left out instead of warnings."""
    wanted = canonical_dataset(dataset)
    runs, problems = [], []
    for path in list_runs(dataset):
        try:
            run = Run(path)
        except UserError as error:
            problems.append(f"{error}. It is left out")
            continue
        if (
            run.dataset != wanted
            or run.status != status
            or not parameters.items() <= run.parameters.items()
        ):
            continue
        if status == "done" and run.problem:
            problems.append(
                f"Run {run.name} is left out: {run.problem}. Run notebook 03 again with its"
                " parameters, or remove it"
            )
            continue
        runs.append(run)
    return sorted(runs, key=lambda run: run.info["start_s"]), problems


def peak_memory_mb() -> int:
    """Peak resident memory of this process in MB; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def _check_replaceable(path: Path, dataset: str) -> None:
    """UserError where the folder of a new run holds anything but a run of this data set."""
    problem = ""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        problem = "is not a folder"
    elif (path / "run.json").is_file():
        try:
            found = Run(path).dataset
        except UserError:  # damaged, in the folder of this data set
            return
        if found != canonical_dataset(dataset):
            problem = f"is a run of {found}, not of {dataset}"
    elif path.is_dir():
        # a batch makes the folder notebooks first
        others = sorted(item.name for item in path.iterdir() if item.name != "notebooks")
        problem = f"is not a run, but holds {', '.join(others[:3])}" if others else ""
    if problem:
        raise UserError(
            f"{path} {problem}; nothing was written. Choose another run_name, or move it away"
        )


def _was_broken_off(path: Path, info: dict) -> bool:
    """Whether an unfinished run of the same code and parameters lies there."""
    try:
        before = read_info(path)
    except UserError:
        return False
    same = {key: info[key] for key in ("parameters", "versions", "commit")}
    same = json.loads(json.dumps(same, default=str))
    return before["status"] != "done" and {key: before.get(key) for key in same} == same


def _empty(folder: Path, kept: set[str]) -> None:
    """Remove what a folder holds, except the names in `kept`."""
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name in kept:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()


def list_versions() -> dict[str, str]:
    """Name -> version of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short commit of the working folder's repository, with a + when files differ from it; empty
    outside a repository.
    """

    def ask(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return done.stdout.strip()

    try:
        commit, changed = ask("rev-parse", "--short", "HEAD"), ask("status", "--porcelain")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit + ("+" if changed else "")
