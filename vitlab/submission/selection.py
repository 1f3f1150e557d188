"""What belongs to the runs that are handed in: the batches that made them, the executed notebooks,
the clean ones, the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab.errors import MissingFileError, UserError
from vitlab.places import project_root, reports_dir
from vitlab.runs import Run, dataset_folder, read_batch

# where a bundle and the reports folder hold executed notebooks that no batch made
BY_HAND = "runs/notebooks"


@dataclass(frozen=True)
class Notebook:
    """An executed notebook. source: the file. path: its path in the bundle. clean: the file that
    was executed, None where there is none. seconds: how long it took, None where that was not
    noted."""

    source: Path
    path: str
    clean: Path | None
    seconds: float | None = None


@dataclass
class Selection:
    """runs: folder in the bundle -> run. batches: name -> content of batch.json."""

    runs: dict[str, Run]
    batches: dict[str, dict[str, Any]]
    notebooks: list[Notebook] = field(default_factory=list)


def select(names: Sequence[str], notebooks: Sequence[Path] = ()) -> Selection:
    """The content of a bundle for these runs: each a folder, a name or its beginning, or a batch,
    which stands for its runs.

    A batch brings its own notebooks, a run those of every batch that made it. notebooks: executed
    notebooks that no batch made, such as one executed in JupyterLab. UserError for an unknown or
    unfinished run, one without a notebook, and two different notebooks of one name."""
    batches = read_batches()
    asked = {name for name in names if _is_batch(name, batches)}
    found = {name: {_run_place(run): run for run in _find(name, batches)} for name in names}
    runs = {place: run for those in found.values() for place, run in those.items()}
    for place, run in runs.items():
        if run.problem:
            raise UserError(
                f"run {place} is not finished: {run.problem}; run its batch again, or leave it out"
            )
    alone = {place for name, those in found.items() if name not in asked for place in those}
    chosen = {
        name: content
        for name, content in batches.items()
        if name in asked or any(task["run"] in alone for task in content["tasks"] if task["run"])
    }
    selection = Selection(runs, chosen)
    for content in chosen.values():
        sources = _find_sources(content)
        for task in content["tasks"]:
            if not task["run"] or task["run"] in runs:
                clean = sources.get(task["notebook"])
                notebook = Notebook(
                    reports_dir() / task["path"], task["path"], clean, task["seconds"]
                )
                selection.notebooks.append(notebook)
    selection.notebooks += [_by_hand(Path(path)) for path in notebooks]
    selection.notebooks = _check(selection)
    return selection


def read_batches() -> dict[str, dict[str, Any]]:
    """Name -> content of batch.json of every batch that has run here."""
    folder = reports_dir() / "runs" / "batches"
    return {path.parent.name: read_batch(path) for path in sorted(folder.glob("*/batch.json"))}


def find_site(selection: Selection) -> Path | None:
    """The rendered report, where it has the pages of these batches and is younger than all
    notebooks; else None.
    """
    from vitlab.report.gather import gather_report

    site = reports_dir() / "_site"
    pdf = site / "report.pdf"
    if not selection.batches or not pdf.is_file():
        return None
    shown = [
        notebook.source for notebook in selection.notebooks if not notebook.path.startswith(BY_HAND)
    ]
    if any(source.stat().st_mtime > pdf.stat().st_mtime for source in shown):
        return None
    pages = gather_report(list(selection.batches)).pages
    return site if all((site / f"{page.slug}.html").is_file() for page in pages) else None


def _is_batch(name: str, batches: dict[str, dict[str, Any]]) -> bool:
    return name in batches and not (Path(name) / "run.json").is_file()


def _find(name: str, batches: dict[str, dict[str, Any]]) -> list[Run]:
    if _is_batch(name, batches):
        places = {task["run"]: None for task in batches[name]["tasks"] if task["run"]}
        folders = [reports_dir() / place for place in places]
        missing = [folder for folder in folders if not (folder / "run.json").is_file()]
        if missing:
            raise UserError(
                f"batch {name} has no run in {missing[0]} yet; run the batch to its end"
            )
        if not folders:
            raise UserError(f"batch {name} makes no runs of its own; name runs")
        return [Run(folder) for folder in folders]
    from vitlab.deploy.parts import find_run

    folder = find_run(name)
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is not a run: it has no run.json")
    return [Run(folder)]


def _run_place(run: Run) -> str:
    return f"runs/{dataset_folder(run.dataset)}/{run.name}"


def _find_sources(content: dict[str, Any]) -> dict[str, Path]:
    """Notebook -> file of the clean one, as the batch finds them; those of the project where the
    batch file is gone.
    """
    from vitlab.batch import load_batch

    root = project_root()
    try:
        return {step.notebook: step.source for step in load_batch(root / content["file"]).chain}
    except UserError:
        return {path.stem: path for path in (root / "notebooks").glob("*.ipynb")}


def _by_hand(path: Path) -> Notebook:
    """A notebook executed in JupyterLab or by `vitlab run`. The clean one is the project's of that
    name, if any.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no executed notebook {path}")
    project = project_root() / "notebooks" / path.name
    other = project.is_file() and project.resolve() != path.resolve()
    return Notebook(path, f"{BY_HAND}/{path.name}", project if other else None)


def _check(selection: Selection) -> list[Notebook]:
    """The notebooks, each once. UserError where there is none, one is missing, or two would have
    the same path in the bundle.
    """
    if not selection.notebooks:
        names = ", ".join(selection.runs)
        raise UserError(
            f"no executed notebook belongs to {names}: no batch in"
            f" {reports_dir() / 'runs' / 'batches'} made it. Run it with `vitlab batch`, or give"
            " its executed notebook with --notebook FILE"
        )
    found: dict[str, Notebook] = {}
    clean: dict[str, Path | None] = {}
    for notebook in selection.notebooks:
        if not notebook.source.is_file():
            raise UserError(f"the executed copy {notebook.source} is missing; run the batch again")
        same = found.setdefault(notebook.path, notebook)
        other = clean.setdefault(notebook.source.name, notebook.clean)
        if same.source.resolve() != notebook.source.resolve() or _content(other) != _content(
            notebook.clean
        ):
            raise UserError(
                f"{same.source} and {notebook.source} are different notebooks of one name; hand"
                " them in separately"
            )
    return list(found.values())


def _content(path: Path | None) -> bytes | None:
    return path.read_bytes() if path and path.is_file() else None
