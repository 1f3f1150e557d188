"""What belongs to the runs that are handed in: the batches that made them, the executed notebooks,
the clean ones, the report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab.errors import MissingFileError, UserError
from vitlab.places import project_root, reports_dir
from vitlab.run_folders import dataset_folder
from vitlab.runs import Run, read_batch

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
    runs: dict[str, Run] = {}
    chosen: set[str] = set()
    for name in names:
        is_batch = name in batches and not (Path(name) / "run.json").is_file()
        found = _runs_of_batch(name, batches[name]) if is_batch else [_find_run(name)]
        places = {f"runs/{dataset_folder(run.dataset)}/{run.name}": run for run in found}
        runs |= places
        if is_batch:
            chosen.add(name)
        else:
            for other, content in batches.items():
                if any(task["run"] in places for task in content["tasks"]):
                    chosen.add(other)
    for place, run in runs.items():
        if run.problem:
            raise UserError(
                f"run {place} is not finished: {run.problem}; run its batch again, or leave it out"
            )
    selection = Selection(runs, {name: batches[name] for name in batches if name in chosen})
    for content in selection.batches.values():
        sources = _find_sources(content)
        for task in content["tasks"]:
            if not task["run"] or task["run"] in runs:
                source, clean = reports_dir() / task["path"], sources.get(task["notebook"])
                notebook = Notebook(source, task["path"], clean, task["seconds"])
                selection.notebooks.append(notebook)
    selection.notebooks += [_by_hand(Path(path)) for path in notebooks]
    selection.notebooks = _check(selection)
    return selection


def read_batches() -> dict[str, dict[str, Any]]:
    """Name -> content of batch.json of every batch that has run here."""
    folder = reports_dir() / "runs" / "batches"
    return {path.parent.name: read_batch(path) for path in sorted(folder.glob("*/batch.json"))}


def find_site(selection: Selection) -> Path | None:
    """The rendered report, where its pages show these notebooks as they are now; else None."""
    site = reports_dir() / "_site"
    listed = site / "pages.json"
    if not selection.batches or not listed.is_file():
        return None
    pages = json.loads(listed.read_text(encoding="utf-8"))
    for notebook in selection.notebooks:
        if notebook.path.startswith(BY_HAND):
            continue
        page = site / pages.get(notebook.path, "none")
        if not page.is_file() or page.stat().st_mtime < notebook.source.stat().st_mtime:
            return None
    return site


def _runs_of_batch(name: str, content: dict[str, Any]) -> list[Run]:
    places = dict.fromkeys(task["run"] for task in content["tasks"] if task["run"])
    if not places:
        raise UserError(f"batch {name} makes no runs of its own; name runs")
    for place in places:
        folder = reports_dir() / place
        if not (folder / "run.json").is_file():
            raise UserError(f"batch {name} has no run in {folder} yet; run the batch to its end")
    return [Run(reports_dir() / place) for place in places]


def _find_run(name: str) -> Run:
    from vitlab.deploy.parts import find_run

    folder = find_run(name)
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is not a run: it has no run.json")
    return Run(folder)


def _find_sources(content: dict[str, Any]) -> dict[str, Path]:
    """Notebook -> file of the clean one: of the batch, or of the project without its file."""
    from vitlab.batch import load_batch

    root = project_root()
    try:
        return {step.notebook: step.source for step in load_batch(root / content["file"]).chain}
    except UserError:
        return {path.stem: path for path in (root / "notebooks").glob("*.ipynb")}


def _by_hand(path: Path) -> Notebook:
    """A notebook executed in JupyterLab or by `vitlab run`, with the project's of that name."""
    if not path.is_file():
        raise MissingFileError(f"there is no executed notebook {path}")
    project = project_root() / "notebooks" / path.name
    other = project.is_file() and project.resolve() != path.resolve()
    return Notebook(path, f"{BY_HAND}/{path.name}", project if other else None)


def _check(selection: Selection) -> list[Notebook]:
    """The notebooks, each once; UserError if there is none, or two would have one path."""
    if not selection.notebooks:
        raise UserError(
            f"no executed notebook belongs to {', '.join(selection.runs)}: no batch in"
            f" {reports_dir() / 'runs' / 'batches'} made it. Run it with `vitlab batch`, or give"
            " its executed notebook with --notebook FILE"
        )
    found: dict[str, Notebook] = {}
    clean: dict[str, bytes | None] = {}
    for notebook in selection.notebooks:
        if not notebook.source.is_file():
            raise UserError(f"the executed copy {notebook.source} is missing; run the batch again")
        same = found.setdefault(notebook.path, notebook)
        content = _read_clean(notebook)
        other = clean.setdefault(notebook.source.name, content)
        if same.source.resolve() != notebook.source.resolve() or other != content:
            raise UserError(
                f"{same.source} and {notebook.source} are different notebooks of one name; hand"
                " them in separately"
            )
    return list(found.values())


def _read_clean(notebook: Notebook) -> bytes | None:
    path = notebook.clean
    return path.read_bytes() if path and path.is_file() else None
