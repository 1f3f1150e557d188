"""What belongs to the runs that are handed in: the batches that made them, the executed notebooks, the clean ones, the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab.errors import MissingFileError, UserError
from vitlab.places import project_root, reports_dir
from vitlab.runs import Run, dataset_folder, read_batch

CLEAN = "project/notebooks"  # where the clean notebooks lie in a bundle
# the files of a bundle that a rerun sees: never a run or a cache, which would give its results without computing them
PROJECT_FILE = re.compile(r"project/(_quarto\.yml|notebooks/[^/]+\.ipynb|reports/[^/]+\.(csv|bib|csl))")
BY_HAND = "runs/notebooks"  # where executed notebooks lie that no batch made, in the reports folder and in a bundle


@dataclass(frozen=True)
class Notebook:
    """An executed notebook. source: the file. path, clean: where it and its clean copy lie in the bundle. clean_source: the file
    of the clean one, None where there is none. run: folder of its run in the bundle, "" for none. pages: what its page of the
    report may be called, which hangs on how many batches the report is of. seconds: it took, None where that was not noted.
    """

    source: Path
    path: str
    clean: str
    clean_source: Path | None
    parameters: dict[str, Any]
    run: str = ""
    pages: tuple[str, ...] = ()
    seconds: float | None = None

    def find_page(self, report: Path) -> str:
        """The file of its page in a rendered report; "" where it has none."""
        return next((page for page in self.pages if (report / page).is_file()), "")


@dataclass
class Selection:
    """runs: folder in the bundle -> run. batches: name -> content of batch.json. site: the report, None if out of date."""

    runs: dict[str, Run]
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    notebooks: list[Notebook] = field(default_factory=list)
    site: Path | None = None


def select(names: Sequence[str], notebooks: Sequence[Path] = ()) -> Selection:
    """What goes into the bundle for these runs: each a folder, a name or its beginning, or a batch, which stands for its runs.

    With a batch go its own notebooks, with a run those of every batch that made it.
    notebooks: executed notebooks that no batch made, such as one worked on in JupyterLab. ValueError for an unknown or unfinished
    run, one that no notebook belongs to, two clean notebooks of one name.
    """
    batches = read_batches()
    asked = {name for name in names if _is_batch(name, batches)}
    found = {name: {_run_place(run): run for run in _find(name, batches)} for name in names}
    runs = {place: run for those in found.values() for place, run in those.items()}
    for place, run in runs.items():
        if run.problem:
            raise UserError(f"run {place} is not finished: {run.problem}; run its batch again, or leave it out")
    alone = {place for name, those in found.items() if name not in asked for place in those}
    chosen = {
        name: content
        for name, content in batches.items()
        if name in asked or any(task["run"] in alone for task in content["tasks"] if task["run"])
    }
    selection = Selection(runs, chosen)
    for content in chosen.values():
        sources = _find_sources(content)
        selection.notebooks += [
            _of_task(task, sources, content) for task in content["tasks"] if not task["run"] or task["run"] in runs
        ]
    selection.notebooks += [_by_hand(Path(path)) for path in notebooks]
    selection.notebooks = _merge(selection.notebooks)
    _check(selection)
    selection.site = find_site(selection)
    return selection


def read_batches() -> dict[str, dict[str, Any]]:
    """Name -> content of batch.json of every batch that has run here."""
    folder = reports_dir() / "runs" / "batches"
    return {path.parent.name: read_batch(path) for path in sorted(folder.glob("*/batch.json"))}


def _merge(notebooks: Sequence[Notebook]) -> list[Notebook]:
    """Each notebook once, by its place in the bundle."""
    found: dict[str, Notebook] = {}
    for notebook in notebooks:
        other = found.setdefault(notebook.path, notebook)
        if other.source.resolve() != notebook.source.resolve():
            raise UserError(f"{other.source} and {notebook.source} would lie at one place, {notebook.path}; rename one of them")
    return list(found.values())


def find_site(selection: Selection) -> Path | None:
    """The rendered report, where it has a page for each notebook of the batches and is younger than all of them; else None."""
    site = reports_dir() / "_site"
    shown = [notebook for notebook in selection.notebooks if notebook.pages]
    if not shown or not (site / "report.pdf").is_file():
        return None
    rendered = (site / "report.pdf").stat().st_mtime
    fresh = all(notebook.find_page(site) and notebook.source.stat().st_mtime <= rendered for notebook in shown)
    return site if fresh else None


def _is_batch(name: str, batches: dict[str, dict[str, Any]]) -> bool:
    return name in batches and not (Path(name) / "run.json").is_file()


def _find(name: str, batches: dict[str, dict[str, Any]]) -> list[Run]:
    if _is_batch(name, batches):
        places = {task["run"]: None for task in batches[name]["tasks"] if task["run"]}
        folders = [reports_dir() / place for place in places]
        missing = [folder for folder in folders if not (folder / "run.json").is_file()]
        if missing:
            raise UserError(f"batch {name} has no run in {missing[0]} yet; run the batch to its end")
        if not folders:
            raise UserError(f"batch {name} makes no runs of its own; name runs")
        return [Run(folder) for folder in folders]
    from vitlab.deploy.parts import find_run

    folder = find_run(name)
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} is no run: it holds no run.json")
    return [Run(folder)]


def _run_place(run: Run) -> str:
    return f"runs/{dataset_folder(run.dataset)}/{run.name}"


def _find_sources(content: dict[str, Any]) -> dict[str, Path]:
    """Notebook -> file of the clean one, as the batch finds them; those of the project where the batch file is gone."""
    from vitlab.batch import load_batch

    root = project_root()
    try:
        return {step.notebook: step.source for step in load_batch(root / content["file"]).chain}
    except (ValueError, FileNotFoundError):
        return {path.stem: path for path in (root / "notebooks").glob("*.ipynb")}


def _of_task(task: dict[str, Any], sources: dict[str, Path], content: dict[str, Any]) -> Notebook:
    stem = task["notebook"]
    return Notebook(
        reports_dir() / task["path"],
        task["path"],
        f"{CLEAN}/{stem}.ipynb",
        sources.get(stem),
        task["parameters"],
        task["run"] or "",
        _name_pages(task, content),
        task["seconds"],
    )


def _name_pages(task: dict[str, Any], content: dict[str, Any]) -> tuple[str, ...]:
    """Names of a notebook's page: with the batch's title in a report of several batches, without it in one of its own."""
    from vitlab.report.gather import describe_point, order_tasks

    words = [task["notebook"], *describe_point(task["point"])]
    slugs = [re.sub(r"[^a-z0-9]+", "-", "-".join([section, *words]).lower()).strip("-") for section in (content["title"], "")]
    home = ["index"] if order_tasks(content["tasks"])[0] == task else []
    return tuple(f"{slug}.html" for slug in [*slugs, *home])


def _by_hand(path: Path) -> Notebook:
    """A notebook executed in JupyterLab or by `vitlab run`. Its clean copy is the project's of that name; else it is stripped."""
    from vitlab.submission.notebooks import injected_parameters, read_notebook

    if not path.is_file():
        raise MissingFileError(f"there is no executed notebook {path}")
    project = project_root() / "notebooks" / path.name
    other = project.is_file() and project.resolve() != path.resolve()
    parameters = injected_parameters(read_notebook(path))
    return Notebook(path, f"{BY_HAND}/{path.name}", f"{CLEAN}/{path.name}", project if other else None, parameters)


def _check(selection: Selection) -> None:
    if not selection.notebooks:
        names = ", ".join(selection.runs)
        raise UserError(
            f"no executed notebook belongs to {names}: no batch in {reports_dir() / 'runs' / 'batches'} made it. Run it with "
            "`vitlab batch`, or give its executed notebook with --notebook FILE"
        )
    clean: dict[str, Notebook] = {}
    for notebook in selection.notebooks:
        if not notebook.source.is_file():
            raise UserError(f"the executed copy {notebook.source} is missing; run the batch again")
        other = clean.setdefault(notebook.clean, notebook)
        if _content(other.clean_source) != _content(notebook.clean_source):
            raise UserError(
                f"{notebook.clean_source} and {other.clean_source} are different notebooks of one name; hand them in apart"
            )


def _content(path: Path | None) -> bytes | None:
    return path.read_bytes() if path and path.is_file() else None
