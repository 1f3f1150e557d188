"""From batches to pages: which executed notebooks make the report, in which order, under which title."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from vitlab.registry import unknown
from vitlab.report.clean import KERNEL, callout, clean_notebook
from vitlab.runs import project_root, reports_dir

HOME = "08_compare"  # the page to open first
NOTEBOOK_LINK = re.compile(r"\[([^\]]*)\]\((?:[\w./-]*/)?(\w+)\.ipynb(#[^)]*)?\)")


@dataclass(frozen=True)
class Page:
    """One notebook of the report, cleaned, without its title.

    slug: file name and anchor. stem: the notebook's own name, such as 03_finetune. heading: its first heading.
    group: where it stands in the navigation: batch, model, further grid values; empty strings where there is none.
    trouble: what went wrong, "" when nothing did.
    """

    slug: str
    stem: str
    heading: str
    point: dict
    group: tuple[str, str, str]
    notebook: NotebookNode
    trouble: str = ""

    @property
    def title(self) -> str:
        return " · ".join([self.heading, *describe_point(self.point)])


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    date: str
    pages: tuple[Page, ...]


def gather_report(batches: list[str] | None = None) -> Report:
    """The pages of these batches (default: all there are), comparison first, then the shared notebooks, then each grid point's.

    ValueError: an unknown batch, or none at all.
    """
    folder = reports_dir() / "runs" / "batches"
    known = sorted(path.parent.name for path in folder.glob("*/batch.json"))
    for name in batches or ():
        if name not in known:
            raise ValueError(unknown("batch", name, known, "Run `vitlab batch FILE.yml` first."))
    if not known:
        raise ValueError(f"no batch in {folder}: run `vitlab batch notebooks/batches/elpv.yml` first")
    chosen = {name: json.loads((folder / name / "batch.json").read_text(encoding="utf-8")) for name in batches or known}
    pages = []
    for name, batch in chosen.items():
        section = batch.get("title", name) if len(chosen) > 1 else ""
        pages += [_make_page(task, section) for task in order_tasks(batch["tasks"])]
    pages = _number_slugs(pages)
    pages = [replace(page, notebook=_resolve_links(page, pages)) for page in pages]
    titles = [batch.get("title", name) for name, batch in chosen.items()]
    datasets = sorted({task["parameters"]["dataset"] for batch in chosen.values() for task in batch["tasks"] if "dataset" in task["parameters"]})
    return Report(
        title=" and ".join(titles),
        subtitle=f"Dataset: {', '.join(datasets)}" if datasets else "",
        date=max((_day(batch) for batch in chosen.values()), default=date.today().isoformat()),
        pages=tuple(_with_overview(pages)),
    )


def order_tasks(tasks: list[dict]) -> list[dict]:
    """Comparison first, then the notebooks outside of the grid, then point after point its notebooks, by name."""
    points = []
    for task in tasks:
        if task["point"] not in points:
            points.append(task["point"])

    def rank(task):
        stem = Path(task["notebook"]).stem
        return stem != HOME, bool(task["point"]), points.index(task["point"]) if task["point"] else 0, stem

    return sorted(tasks, key=rank)


def describe_point(point: dict) -> list[str]:
    """A grid point in words: names stand alone, numbers carry theirs: ["hybrid_vit", "seed 0"]."""
    return [value if isinstance(value, str) else f"{key} {value}" for key, value in point.items()]


def _make_page(task, section):
    stem = Path(task["notebook"]).stem
    copy = reports_dir() / task["path"]
    source = project_root() / task["notebook"]
    trouble = "" if task["status"] == "done" else _trouble(task)
    if copy.is_file():
        notebook = clean_notebook(nbformat.read(copy, as_version=4))
    else:
        trouble = trouble or f"Its executed copy {task['path']} is missing; run the batch again."
        notebook = new_notebook(cells=nbformat.read(source, as_version=4).cells[:1] if source.is_file() else [])
    heading, notebook = _take_heading(notebook)
    heading = heading or re.sub(r"^\d+_", "", stem).replace("_", " ").capitalize()
    if not copy.is_file():
        notebook.cells = []
    if trouble:
        notebook.cells.insert(0, new_markdown_cell(callout("important", _trouble_title(task), trouble)))
    words = describe_point(task["point"])
    group = (section, words[0] if words else "", " · ".join(words[1:]))
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join([section, stem, *words]).lower()).strip("-")
    return Page(slug, stem, heading, task["point"], group, notebook, trouble)


def _trouble_title(task):
    return "This notebook was skipped" if task["status"] == "skipped" else "This notebook did not run to its end"


def _trouble(task):
    error = task.get("error") or {}
    if isinstance(error, str):
        return error
    where = f"In cell {error['cell']}: " if error.get("cell") is not None else ""
    what = ": ".join(str(error[key]) for key in ("name", "message") if error.get(key)) or f"status {task['status']}"
    return f"{where}{what}"


def _take_heading(notebook):
    """The text of the first `# heading`, and the notebook without it."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"(?m)^# +(.+?)(?: *\{[^}]*\})? *$", cell.source)):
            cell.source = (cell.source[: found.start()] + cell.source[found.end() :]).strip()
            return found.group(1), notebook
    return "", notebook


def _number_slugs(pages):
    """Home is `index`; a slug met before gets a number."""
    seen, numbered = {}, []
    for page in pages:
        slug = "index" if not numbered else page.slug
        seen[slug] = seen.get(slug, 0) + 1
        numbered.append(replace(page, slug=slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"))
    return numbered


def _resolve_links(page, pages):
    """Point links to other notebooks at their pages: that of the same grid point, else the first; plain text when there is none."""

    def resolve(match):
        text, stem, anchor = match.group(1), match.group(2), match.group(3) or ""
        targets = [other for other in pages if other.stem == stem and other.group[0] == page.group[0]]
        if not targets:
            return text
        target = next((other for other in targets if other.point == page.point), targets[0])
        return f"[{text}]({target.slug}.ipynb{anchor})"

    for cell in page.notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = NOTEBOOK_LINK.sub(resolve, cell.source)
    return page.notebook


def _with_overview(pages):
    """Say on the first page which notebooks did not make it."""
    troubled = [page for page in pages if page.trouble]
    if troubled:
        lines = [f"- [{page.title}]({page.slug}.ipynb)" for page in troubled]
        title = f"{len(troubled)} of {len(pages)} notebooks did not run to their end"
        pages[0].notebook.cells.insert(0, new_markdown_cell(callout("warning", title, "\n".join(lines))))
    return pages


def _day(batch):
    moment = batch.get("finished") or batch.get("started")
    return datetime.fromisoformat(moment).date().isoformat() if moment else date.today().isoformat()


def page_notebook(page: Page, cells: list) -> NotebookNode:
    """These cells under the page's title, as a notebook that Quarto can render."""
    front = nbformat.v4.new_raw_cell(f"---\ntitle: {json.dumps(page.title, ensure_ascii=False)}\n---")
    return new_notebook(cells=[front, *cells], metadata={"kernelspec": KERNEL})
