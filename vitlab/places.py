"""The project, the folder for results, and files that users name.

Results go to $VITLAB_REPORTS if it is set, else to reports/ of the project. The project is the
nearest folder with _quarto.yml at or above the notebook or batch file that is run, else the working
folder. `vitlab run` and `vitlab batch` pass it to their kernels in $VITLAB_PROJECT."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitlab.errors import UserError
from vitlab.registry import unknown

CHECKOUT = Path(__file__).resolve().parents[1]  # the clone that vitlab is installed from


def project_root(start: Path | None = None) -> Path:
    """The nearest folder with _quarto.yml at or above `start`; `start` itself where there is none.
    Without `start`: $VITLAB_PROJECT, else the project of the working folder.
    """
    if start is None and os.environ.get("VITLAB_PROJECT"):
        return Path(os.environ["VITLAB_PROJECT"])
    start = Path(start or Path.cwd()).resolve()
    return _find_project(start) or start


def reports_dir() -> Path:
    """The folder of runs, cache and rendered pages: $VITLAB_REPORTS or the project's reports/."""
    own = os.environ.get("VITLAB_REPORTS")
    return Path(own).expanduser().absolute() if own else project_root() / "reports"


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables set for the time of the context, and put back as they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def inside_project(file: Path | str) -> Iterator[Path]:
    """Use the project of a file, here and in child processes; gives its reports folder."""
    root = _find_project(Path(os.path.abspath(file)).parent) or project_root(Path.cwd())
    with environment({"VITLAB_PROJECT": str(root)}):
        yield reports_dir()


def find_file(name: Path | str, folder: str, suffix: str, kind: str) -> Path:
    """The path of a file that a user names: a path, or the name of a file in `folder` of the
    project or of the checkout, with or without its suffix.

    UserError with the nearest names for a plain name that is not there. Any other path comes back
    as it is: whoever reads it says what is wrong."""
    path = Path(name)
    if os.path.lexists(path) or path.name != str(name):
        return path
    known = {}
    for root in (project_root(), CHECKOUT):
        for file in sorted((root / folder).glob(f"*{suffix}")):
            known.setdefault(file.stem, file)
    stem = path.name.removesuffix(suffix)
    if stem not in known:
        raise UserError(unknown(kind, stem, list(known)))
    return known[stem]


def _find_project(start: Path) -> Path | None:
    return next(
        (folder for folder in (start, *start.parents) if (folder / "_quarto.yml").is_file()), None
    )


def count_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
