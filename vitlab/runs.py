"""The run directory: whoever has the folder has the result.

reports/runs/<dataset>/<name>/ holds run.json (parameters, versions, commit, status, facts) and the tables and weights that the
notebooks put there. Every file is written under a temporary name and renamed, so what is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from vitlab.errors import MissingFileError, UserError
from vitlab.places import project_root, reports_dir

# What each notebook promises to leave in the run it works on. A run is a result only while the files of 03 are there and whole.
PROMISED = {
    "03_finetune": ("history.csv", "splits.csv", "predictions.parquet", "model.safetensors", "model.json", "data_card.md"),
    "04_evaluate": ("metrics.json",),
}
PACKAGES = ("vitlab", "torch", "timm", "accelerate", "scikit-learn", "pandas", "captum")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends well, remove it when it does not."""
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
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8", newline="\n")


def find_damage(folder: Path, files: Iterable[str]) -> list[str]:
    """What is wrong with these files of a folder, such as "history.csv is missing"; empty where all are there and whole.

    Only the structure is read (JSON, the header of a safetensors file, the footer of a Parquet file), which takes milliseconds.
    """
    return [f"{file} {problem}" for file in files if (problem := _find_problem(Path(folder) / file))]


def _find_problem(path: Path) -> str:
    if not path.is_file():
        return "is missing"
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                pass
        elif not path.stat().st_size:
            return "is empty"
    except (OSError, ValueError, SafetensorError):  # pyarrow's errors are ValueErrors
        return "is damaged"
    return ""


def read_batch(path: Path) -> dict:
    """The content of a batch.json. ValueError for a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("tasks"), list):
            raise UserError("it holds no tasks")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and the batch runs anew") from error
    return content


def run_name(parameters: dict) -> str:
    """Readable parameters (model, variant, seed) and a short hash of all of them: `hybrid_vit-seed0-1a2b3c4d`."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest()[:8]
    names = [str(parameters.get("model", "run")), str(parameters.get("variant") or "")]
    readable = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", name) for name in names if name)
    return f"{readable}-seed{parameters.get('seed', 0)}-{digest}"


def dataset_folder(dataset: str) -> str:
    """A folder name for a dataset's name: `folder:/data/cats` becomes `folder_data_cats`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", dataset).strip("_")


def run_path(*, name: str = "", **parameters) -> Path:
    """The folder of the run of these parameters, whether it is there or not."""
    if "dataset" not in parameters:
        raise UserError("a run needs at least the parameter dataset=")
    return reports_dir() / "runs" / dataset_folder(parameters["dataset"]) / (name or run_name(parameters))


class Run:
    """One run directory. Make it with `Run.create`, read it back with `Run(path)`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise MissingFileError(f"{self.path} is no run directory: it holds no run.json")
        try:
            self.info: dict = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.path / 'run.json'} is damaged ({error}); remove the folder, or run it again") from error

    @classmethod
    def create(cls, *, name: str = "", **parameters) -> Run:
        """Start a run of these parameters, or start again the one that was broken off.

        An earlier run of the same name makes room; its executed notebooks stay. If it was of the same parameters and versions
        and did not end well, its checkpoints stay too, and the training carries on from them.
        """
        path = run_path(name=name, **parameters)
        info = {
            "parameters": parameters,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "start_s": time.time(),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            "commit": _commit(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            "facts": {},
        }
        kept = {"notebooks"} | ({"checkpoints"} if _was_broken_off(path, info) else set())
        for old in path.iterdir() if path.is_dir() else ():
            if old.name not in kept:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_json(path / "run.json", info)
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parameters(self) -> dict:
        return self.info["parameters"]

    @property
    def draw(self) -> str:
        """What a run shares with those of other models: the seed, and how its images were split where that was not at random."""
        return describe_draw(self.parameters)

    @property
    def variant(self) -> str:
        """What sets this run apart from others of its model, where a batch compares several ways to train it; mostly empty."""
        return str(self.parameters.get("variant") or "")

    @property
    def title(self) -> str:
        """The model, and the variant where there is one."""
        return ", ".join(filter(None, (str(self.parameters.get("model", "")), self.variant)))

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

    def finish(self) -> None:
        """Mark the run as done: from now on it counts as a result, and needs its checkpoints no more."""
        self.info.update(status="done", wall_s=round(time.time() - self.info["start_s"], 1), peak_memory_mb=peak_memory_mb())
        write_json(self.path / "run.json", self.info)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def fail(self, error: BaseException) -> None:
        self.info.update(status="failed", error=f"{type(error).__name__}: {error}")
        write_json(self.path / "run.json", self.info)

    def write_table(self, file: str, table: pd.DataFrame) -> None:
        """Write a table as CSV or Parquet, by the ending of `file`."""
        with atomic(self.path / file) as temporary:
            table.to_parquet(temporary, index=False) if file.endswith(".parquet") else table.to_csv(temporary, index=False)

    def read_table(self, file: str) -> pd.DataFrame:
        path = self.path / file
        if not path.is_file():
            raise MissingFileError(f"run {self.name} (status {self.status}) holds no {file}; it has {', '.join(self.files())}")
        return pd.read_parquet(path) if file.endswith(".parquet") else pd.read_csv(path, keep_default_na=False, na_values=[""])

    def write_json(self, file: str, content: dict) -> None:
        write_json(self.path / file, content)

    def write_text(self, file: str, content: str) -> None:
        with atomic(self.path / file) as temporary:
            temporary.write_text(content, encoding="utf-8")

    def read_json(self, file: str) -> dict:
        return json.loads((self.path / file).read_text(encoding="utf-8"))

    def files(self) -> list[str]:
        return sorted(item.name for item in self.path.iterdir() if not item.name.startswith("."))

    def __repr__(self) -> str:
        return f"Run({self.name}, {self.status}, {', '.join(f'{k}={v}' for k, v in self.parameters.items())})"


def describe_draw(parameters: dict) -> str:
    """The draw of a run of these parameters: its seed, fold and way of splitting, in words."""
    split_by, folds, fold = (parameters.get(name) for name in ("split_by", "folds", "fold"))
    parts = [
        str(parameters.get("seed", 0)),
        f"fold {fold or 0} of {folds}" if folds else "",
        f"by {split_by}" if split_by else "",
    ]
    return ", ".join(filter(None, parts))


def find_runs(dataset: str, status: str = "done", **parameters) -> list[Run]:
    """The runs of a dataset with this status and these parameter values, oldest first. A folder without run.json is no run.

    One whose run.json is damaged is passed over with a warning; `vitlab.run_index` lists it.
    """
    folder = reports_dir() / "runs" / dataset_folder(dataset)
    runs = []
    for path in folder.glob("*/run.json"):
        try:
            runs.append(Run(path.parent))
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
    fitting = [run for run in runs if run.status == status and parameters.items() <= run.parameters.items()]
    return sorted(fitting, key=lambda run: run.info["start_s"])


def latest_runs(dataset: str, *, variants: bool = False) -> list[Run]:
    """The newest finished run of each model and draw (seed, fold), ordered by them.

    variants: the runs that have a variant, instead of those that have none: the newest of each model, variant and draw, the
    variants in the order in which they were first trained.
    """
    newest: dict[tuple, Run] = {}
    for run in find_runs(dataset):
        if bool(run.variant) == variants:
            newest[str(run.parameters.get("model")), run.variant, run.draw] = run
    order = list(dict.fromkeys(variant for _, variant, _ in newest))
    place = {key: (key[0], order.index(key[1]), run.parameters.get("seed", 0), run.draw) for key, run in newest.items()}
    return [newest[key] for key in sorted(newest, key=place.__getitem__)]


def peak_memory_mb() -> int:
    """Peak resident memory of this process in MB; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def _was_broken_off(path: Path, info: dict) -> bool:
    """Whether an unfinished run lies there that the same code began with the same parameters."""
    try:
        before = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = json.loads(json.dumps({key: info[key] for key in ("parameters", "versions", "commit")}, default=str))
    return before.get("status") != "done" and {key: before.get(key) for key in same} == same


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short commit of the working folder's repository, with a + when files differ from it; empty outside a repository."""
    git = ["git", "-C", str(project_root())]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
